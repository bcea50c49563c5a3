"""Putting rule sets into a network namespace by netlink, and reading back what stands there.

All functions take a namespace descriptor and are plain: those that delete something wait some 15 ms
for the kernel. Each is idempotent; a half-done change does not exist, because every change of rules is
one transaction.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace as changed
from enum import Enum, auto

from ambient.engine.netlink import NetlinkSocket
from ambient.redirect import conntrack, listing
from ambient.redirect.listing import Found
from ambient.redirect.plan import (
    LOCAL_ROUTES,
    ROUTING_RULES,
    ROUTING_TABLE,
    TABLE,
    Capture,
    capture_plan,
    closed_plan,
    drain_plan,
)
from ambient.wire import netlink_route, nft_dump, nft_encode
from ambient.wire.netlink import AF_INET, AF_INET6, NETLINK_NETFILTER, Message, Request
from ambient.wire.netlink_route import RTN_LOCAL
from ambient.wire.nft import Table

# Well below what the kernel takes from anybody (net.core.wmem_max, 212,992 by default, counted twice).
SLICE_BYTES = 128 * 1024
# Sets of rules that are encoded, or judged, once; there is one for each set of exclusions. Picked.
MAX_JUDGED = 64
# Of every namespace's loopback (LOOPBACK_IFINDEX of the kernel's net_namespace.h).
LOOPBACK_INDEX = 1

# One datagram. The routes come before the rules that use them.
_ROUTING = (
    netlink_route.change_link("lo", up=True),
    *(
        netlink_route.add_route(route, link_index=LOOPBACK_INDEX, table=ROUTING_TABLE, local=True)
        for route in LOCAL_ROUTES
    ),
    *map(netlink_route.add_rule, ROUTING_RULES),
)


class Standing(Enum):
    """What a pod's namespace says about its capture."""

    NONE = auto()  # no table of ours
    CAPTURED = auto()  # exactly the rules of an enrolled pod
    CLOSED = auto()  # a pod that could not be kept captured, and takes no plaintext
    DRAINING = auto()  # exactly the rules of one that leaves
    DAMAGED = auto()  # a table of ours with other rules


# What was found for what was asked and read: reading a dump takes milliseconds, and most are the same.
_judged: dict[tuple[Capture, tuple[bytes, ...]], Standing] = {}


def install(netns: int, capture: Capture) -> None:
    """Capture the pod, whatever stood there; connections already captured live on.

    The routes come first: with a rule but without its route an answer would leave for the client and
    never pass the proxy. They lead to loopback, which not every runtime has brought up by then.
    """
    add_routing(netns)
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        # Asked first: a batch that is refused, because the table stands, costs the kernel's 15 ms too.
        if not _chains(nl, capture.table) and _created(nl, capture):
            return
        table = capture_plan(capture)
        if not _holds(nl, table):
            nl.transaction(nft_encode.refill(table))


def drain(netns: int) -> None:
    """Capture nothing new; a pod that was never captured stays as it is."""
    if standing(netns) is not Standing.NONE:
        put(netns, drain_plan())


def remove(netns: int) -> None:
    """Leave nothing behind; connections still captured are cut."""
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        if _chains(nl, TABLE):
            nl.transaction(nft_encode.delete(TABLE))
    remove_routing(netns)


def add_routing(netns: int) -> None:
    """Lead the answers to foreign addresses back to the proxy: not netfilter's part, and the same for all."""
    with NetlinkSocket(netns) as nl:
        for refusal in nl.refusals(*_ROUTING):
            # Routes replace each other; a rule that stands is refused.
            if not isinstance(refusal, FileExistsError):
                raise refusal


def remove_routing(netns: int) -> None:
    """Undo ``add_routing``, when no rule of ours is left; loopback stays up, conntrack forgets our part."""
    conntrack.forget_captured(netns)
    with NetlinkSocket(netns) as nl:
        for rule, route in zip(ROUTING_RULES, LOCAL_ROUTES, strict=True):
            with suppress(FileNotFoundError):
                nl.run(netlink_route.delete_rule(rule))
            with suppress(ProcessLookupError):  # ESRCH: no such route
                nl.delete_route(route, table=ROUTING_TABLE, local=True)


def standing(netns: int, capture: Capture = Capture()) -> Standing:  # noqa: B008 (a frozen value)
    """Read from the kernel what stands in the namespace, where *capture* is what should be captured."""
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        if not _chains(nl, TABLE):
            return Standing.NONE
        dumped = nl.dump(nft_encode.dump_rules(TABLE))
    known = (capture, tuple(map(nft_dump.shape, dumped)))
    if known not in _judged:
        if len(_judged) >= MAX_JUDGED:
            _judged.clear()
        _judged[known] = _judge(capture, dumped)
    return _judged[known]


def _judge(capture: Capture, dumped: Sequence[Message]) -> Standing:
    rules = list(map(nft_dump.decode_rule, dumped))
    if any(nft_dump.stands(capture_plan(changed(capture, dns=dns)), rules) for dns in (False, True)):
        return Standing.CAPTURED
    if nft_dump.stands(closed_plan(capture), rules):
        return Standing.CLOSED
    return Standing.DRAINING if nft_dump.stands(drain_plan(), rules) else Standing.DAMAGED


def read(netns: int) -> Found:
    """Read from the kernel everything of ours, rule by rule."""
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        chains = _chains(nl, TABLE)
        dumped = nl.dump(nft_encode.dump_rules(TABLE)) if chains else []
    with NetlinkSocket(netns) as nl:
        there = [each for family in (AF_INET, AF_INET6) for each in nl.rules(family)]
        routes = {
            index
            for index, family in enumerate((AF_INET, AF_INET6))
            if any(each.table == ROUTING_TABLE and each.kind == RTN_LOCAL for each in nl.routes(family))
        }
    return Found(
        chains=frozenset(chains),
        rules=tuple(map(nft_dump.decode_rule, dumped)),
        routing_rules=frozenset(index for index, rule in enumerate(ROUTING_RULES) if rule in there),
        routes=frozenset(routes),
    )


def planned(table: Table | None) -> list[str]:
    """The lines of what should stand."""
    return listing.planned(table)


def present(netns: int, known: Sequence[Table]) -> list[str]:
    """The lines of what stands."""
    return listing.standing(read(netns), known)


def put(netns: int | None, table: Table) -> None:
    """Make *table* stand: by creating it, or, where it stands already, by refilling its chains."""
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        try:
            nl.transaction(nft_encode.create(table))
        except FileExistsError:
            nl.transaction(nft_encode.refill(table))


def replace(netns: int | None, table: Table) -> None:
    """Put *table* in the place of whatever bears its name.

    Connections translated by the old rules live on: the new chains are registered before the old
    ones go, so conntrack never loses its last one. A table too large for one transaction (without
    root the kernel takes some 400 KiB) is written in several; new connections in between must try again.
    """
    batch = nft_encode.replace(table)
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        try:
            nl.transaction(batch)
        except OSError as exc:
            if exc.errno != errno.EMSGSIZE:
                raise
            for part in nft_encode.slices(batch, SLICE_BYTES):
                nl.transaction(part)


def _created(nl: NetlinkSocket, capture: Capture) -> bool:
    """Make the rules where there are none: all of them, or, if somebody was faster, False and nothing."""
    try:
        nl.transaction(_creation(capture))
    except FileExistsError:
        return False
    return True


@functools.lru_cache(MAX_JUDGED)
def _creation(capture: Capture) -> tuple[Request, ...]:
    # Encoding takes longer than the kernel needs for it, and most pods are captured alike.
    return tuple(nft_encode.create(capture_plan(capture)))


def _holds(nl: NetlinkSocket, table: Table) -> bool:
    return nft_dump.stands(table, map(nft_dump.decode_rule, nl.dump(nft_encode.dump_rules(table.name))))


def _chains(nl: NetlinkSocket, table: str) -> set[str]:
    found = (nft_dump.decode_chain(each) for each in nl.dump(nft_encode.dump_chains()))
    return {chain for owner, chain in found if owner == table}
