"""Putting rule sets into a network namespace by netlink, and reading back what stands there.

All functions take a namespace descriptor and are plain: those that delete something wait some 15 ms
for the kernel. Each is idempotent; a half-done change does not exist, because every change of rules is
one transaction.
"""

from __future__ import annotations

import errno
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
from ambient.wire.netlink import AF_INET, AF_INET6, NETLINK_NETFILTER
from ambient.wire.netlink_route import RTN_LOCAL
from ambient.wire.nft import Table

# Well below what the kernel takes from anybody (net.core.wmem_max, 212,992 by default, counted twice).
SLICE_BYTES = 128 * 1024


class Standing(Enum):
    """What a pod's namespace says about its capture."""

    NONE = auto()  # no table of ours
    CAPTURED = auto()  # exactly the rules of an enrolled pod
    CLOSED = auto()  # a pod that could not be kept captured, and takes no plaintext
    DRAINING = auto()  # exactly the rules of one that leaves
    DAMAGED = auto()  # a table of ours with other rules


def install(netns: int, capture: Capture) -> None:
    """Capture the pod, whatever stood there; connections already captured live on.

    The routes come first: with a rule but without its route an answer would leave for the client and
    never pass the proxy. They lead to loopback, which not every runtime has brought up by then.
    """
    add_routing(netns)
    table = capture_plan(capture)
    if not _stands(netns, table):
        put(netns, table)


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
        nl.set_up("lo")
        for rule, route in zip(ROUTING_RULES, LOCAL_ROUTES, strict=True):
            nl.add_route(route, link="lo", table=ROUTING_TABLE, local=True)
            with suppress(FileExistsError):
                nl.run(netlink_route.add_rule(rule))


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
        chains = _chains(nl, TABLE)
        rules = (
            [nft_dump.decode_rule(each) for each in nl.dump(nft_encode.dump_rules(TABLE))] if chains else []
        )
    if not chains:
        return Standing.NONE
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


def _stands(netns: int, table: Table) -> bool:
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        if not _chains(nl, table.name):
            return False
        return nft_dump.stands(table, map(nft_dump.decode_rule, nl.dump(nft_encode.dump_rules(table.name))))


def _chains(nl: NetlinkSocket, table: str) -> set[str]:
    found = (nft_dump.decode_chain(each) for each in nl.dump(nft_encode.dump_chains()))
    return {chain for owner, chain in found if owner == table}
