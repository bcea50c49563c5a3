"""What stands in a pod's namespace beside what should: the plain looks behind attestation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeVar

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns_watch import Door, DoorHolders, Holders
from ambient.redirect.attestation_plan import Listeners, Namespace
from ambient.redirect.plan import ROUTING_RULES, ROUTING_TABLE, Capture, capture_plan
from ambient.redirect.sockets import owner
from ambient.wire import nft_dump, nft_encode
from ambient.wire.netlink import AF_UNSPEC, NETLINK_NETFILTER, Message

# Shapes of rule sets that were read and compared once; one for each set of exclusions. Picked.
MAX_SHAPES = 64

_Key = TypeVar("_Key", bytes, tuple[bytes, ...])
# Inode of a socket -> who holds it, in words; "" if nobody is found.
Namer: TypeAlias = Callable[[int], str]


def namespace_at(path: str, identity: tuple[int, int]) -> Namespace:
    """What *path* leads to, compared with the namespace that was enrolled."""
    try:
        found = os.stat(path)
    except OSError:
        return Namespace.GONE
    return Namespace.SAME if (found.st_dev, found.st_ino) == identity else Namespace.OTHER


class RuleReader:
    """Tells whether rules are what a capture asks for; remembers the bytes that were.

    Decoding a dump costs milliseconds, comparing it with one that was decoded before a tenth of that, and
    less than that where it is the same to the byte: rules that one transaction made where none stood.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[bytes, ...], Capture] = {}
        self._dumps: dict[bytes, Capture] = {}

    def stand(self, netns: int, capture: Capture) -> bool:
        """Whether exactly the rules of *capture* are there, and the routes that they need.

        Raises:
            OSError: the kernel cannot be asked.
        """
        with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
            dumped = nl.dump(nft_encode.dump_rules(capture.table))
        whole = b"".join(map(nft_dump.whole, dumped))
        if self._dumps.get(whole) != capture:
            if not self._is_shape_of(capture, dumped):
                return False
            _note(self._dumps, whole, capture)
        return routing_stands(netns)

    def _is_shape_of(self, capture: Capture, dumped: Sequence[Message]) -> bool:
        shape = tuple(map(nft_dump.shape, dumped))
        if self._shapes.get(shape) != capture:
            if not nft_dump.stands(capture_plan(capture), map(nft_dump.decode_rule, dumped)):
                return False
            _note(self._shapes, shape, capture)
        return True


def _note(known: dict[_Key, Capture], key: _Key, capture: Capture) -> None:
    if len(known) >= MAX_SHAPES:
        known.clear()
    known[key] = capture


def routing_stands(netns: int) -> bool:
    """Whether answers to the proxy are routed to it."""
    with NetlinkSocket(netns) as nl:
        rules = nl.rules(AF_UNSPEC, ROUTING_TABLE)
        return all(
            rule in rules
            and any(each.destination == "default" for each in nl.routes(rule.family, ROUTING_TABLE))
            for rule in ROUTING_RULES
        )


def routing_left_over(netns: int) -> bool:
    """Whether any routing rule or route of a capture is there."""
    with NetlinkSocket(netns) as nl:
        return any(
            rule in nl.rules(rule.family, ROUTING_TABLE) or nl.routes(rule.family, ROUTING_TABLE)
            for rule in ROUTING_RULES
        )


def listeners(
    found: Holders, ports: Iterable[int], sockets_of_ztunnel: frozenset[int], name: Namer = owner
) -> tuple[Listeners, str]:
    """Who listens, and in words what is wrong with that.

    Args:
        sockets_of_ztunnel: Inodes of the sockets that our processes hold.
        name: Who holds a socket; by default every process of the machine is looked at.
    """
    missing = sorted(set(ports) - found.keys())
    for port, (inode, _) in sorted(found.items()):
        if inode not in sockets_of_ztunnel:
            return Listeners.FOREIGN, f"port {port} is taken by {name(inode) or 'another process'}"
    if missing:
        return Listeners.MISSING, f"nobody listens on port {missing[0]}"
    return Listeners.OURS, ""


def name_servers(
    found: DoorHolders,
    doors: Iterable[Door],
    sockets_of_ztunnel: frozenset[int],
    name: Namer = owner,
) -> tuple[Listeners, str]:
    """The same of those who wait for lookups."""
    for (protocol, host, port), (inode, _) in sorted(found.items()):
        if inode not in sockets_of_ztunnel:
            who = name(inode) or "another process"
            return Listeners.FOREIGN, f"{protocol} port {port} of {host} is taken by {who}"
    for protocol, host, port in sorted(set(doors) - found.keys()):
        return Listeners.MISSING, f"nobody answers lookups on {protocol} port {port} of {host}"
    return Listeners.OURS, ""


def sockets_of(pids: Iterable[int | str]) -> frozenset[int]:
    """Inodes of the sockets that processes hold; of those that we may not look at, none.

    Args:
        pids: As /proc numbers them; ``"self"`` for this one.
    """
    found: set[int] = set()
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue  # Closed meanwhile.
            if target.startswith("socket:["):
                found.add(int(target[len("socket:[") : -1]))
    return frozenset(found)
