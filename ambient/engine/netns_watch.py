"""Cheap questions about one network namespace, asked over sockets that stay open.

Floor 2. Per second and namespace: the generation of its rules (6 us) and who listens on a few ports (4 us
each); and a descriptor that becomes readable when somebody touches rules or routing. Answers are compared
as bytes and never decoded: what matters is whether anything moved.

Measured on Linux 6.18 with Python 3.11; see ``benchmarks/attestation.py``.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from ambient.engine.netns import in_netns
from ambient.engine.xtables import XtablesWatch
from ambient.wire import netlink, netlink_diag, nft_generation
from ambient.wire.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG
from ambient.wire.netlink_diag import TcpSocket

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
# Events are counted, not read: a full buffer says as much as an empty one. The kernel's least is 2 KiB.
EVENT_BUFFER_BYTES = 4096
# An answer has some 130; news may be longer, and are cut off: nobody reads them. Small is fast.
ANSWER_BYTES = 256
# A question whose answer found no room is asked again this often; picked, not measured.
ATTEMPTS = 5
# Far from what others use on our sockets: tells our answer from the news of somebody's change.
_SEQUENCE = 0x0A77E57
_HEADER = struct.Struct("=IHHII")
# What tells the answer from news, which may be cut off; it comes alone.
_KIND_AND_SEQUENCE = slice(4, 12)
_ANSWER = _HEADER.pack(0, nft_generation.NFT_MSG_NEWGEN, 0, _SEQUENCE, 0)[_KIND_AND_SEQUENCE]
# The first attribute of the answer, behind netlink's and netfilter's headers: NFTA_GEN_ID.
_GENERATION = slice(_HEADER.size + 8, _HEADER.size + 12)
# Where uid and inode stand behind the header of an inet_diag answer, and the cookie in its name.
_STATE = _HEADER.size + 1
_COOKIE = slice(_HEADER.size + 4 + 40, _HEADER.size + 4 + 48)
_INODE = slice(_HEADER.size + 4 + 48 + 16, _HEADER.size + 4 + 48 + 20)

# To these REDIRECT sends lookups.
_LOOPBACKS = ("127.0.0.1", "::1")
# Port -> (inode, cookie) of who listens there.
Holders: TypeAlias = dict[int, tuple[int, bytes]]
# (protocol, address, port): where captured lookups arrive.
Door: TypeAlias = tuple[str, str, int]
DoorHolders: TypeAlias = dict[Door, tuple[int, bytes]]
_Name = TypeVar("_Name", int, Door)
_PROTOCOLS = {"tcp": netlink_diag.IPPROTO_TCP, "udp": netlink_diag.IPPROTO_UDP}
_WATCHED = (NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG)
_GENERATION_ASKED = netlink.encode_all([nft_generation.ask_generation()], _SEQUENCE)


@dataclass(frozen=True, slots=True)
class Look:
    """What the kernel said to one question for everything.

    Attributes:
        fingerprint: Equal bytes mean that nothing moved.
        rules: The state of the rules alone.
    """

    fingerprint: bytes
    rules: bytes
    listeners: Holders
    name_servers: DoorHolders


class NetnsWatch:
    """The sockets; close it.

    Args:
        netns: Descriptor of the namespace; not kept.
        ports: Whose listeners ``listeners`` looks for.
        names_port: Where lookups arrive, on loopback; 0 if they are nobody's business.
        legacy: Whether rules of the legacy iptables are looked at too, which have no generation.

    Raises:
        OSError: the namespace cannot be entered, or no descriptor is left.
    """

    def __init__(
        self, netns: int, ports: Sequence[int], *, names_port: int = 0, legacy: bool = False
    ) -> None:
        self.ports = tuple(ports)
        self._sockets: list[socket.socket] = []
        self._legacy: XtablesWatch | None = None
        trials: dict[str, socket.socket] = {}
        try:
            with in_netns(netns):
                self._rules, self._routing, self._diag = map(self._made, _WATCHED)
                if names_port:
                    trials = _trials()
            self._listen_to(self._rules, (nft_generation.NFNLGRP_NFTABLES,))
            self._listen_to(self._routing, nft_generation.ROUTING_GROUPS)
            self._listen_to(self._diag, ())
            if legacy:
                self._legacy = XtablesWatch(netns)
            self.doors = tuple(
                door for host in trials for door in self._doors(host, trials[host], names_port)
            )
        except OSError:
            self.close()
            raise
        finally:
            for each in trials.values():
                each.close()
        self._family = 0
        doors = [_find_door(door) for door in self.doors]
        # Dual-stack listeners are found as IPv6 ones; a kernel without IPv6 has only the others.
        finds = [
            [netlink_diag.find_listener(family, port) for port in self.ports]
            for family in (netlink.AF_INET6, netlink.AF_INET)
        ]
        self._find = tuple(netlink.encode_all(find, _SEQUENCE) for find in finds)
        self._find_all = tuple(netlink.encode_all([*find, *doors], _SEQUENCE) for find in finds)
        self._find_doors = netlink.encode_all(doors, _SEQUENCE)

    def close(self) -> None:
        """Close the sockets; twice is fine."""
        for each in self._sockets:
            each.close()
        if self._legacy is not None:
            self._legacy.close()

    def fingerprint(self, *, names: bool = False) -> bytes:
        """The rules and the listeners in one: equal bytes mean that nothing moved.

        Args:
            names: With those who wait for lookups.

        Raises:
            OSError: the kernel does not answer.
        """
        return _fingerprint(self.rules(), self._answers(names))

    def look(self, *, names: bool = False) -> Look:
        """The fingerprint, and what it was made of.

        Raises:
            OSError: the kernel does not answer.
        """
        rules, answers = self.rules(), self._answers(names)
        found = _holders(self.ports, answers)
        if len(found) < len(self.ports):
            found = self.listeners()
        doors = _holders(self.doors, answers[len(self.ports) :])
        return Look(_fingerprint(rules, answers), rules, found, doors)

    def _answers(self, names: bool) -> list[bytes]:
        questions = self._find_all if names else self._find
        number = len(self.ports) + (len(self.doors) if names else 0)
        self._diag.send(questions[self._family])
        receive = self._diag.recv
        return [receive(ANSWER_BYTES) for _ in range(number)]

    def event_fds(self) -> tuple[int, int]:
        """What becomes readable when rules or routing change."""
        return self._rules.fileno(), self._routing.fileno()

    def rules(self) -> bytes:
        """The state of the rules: equal bytes mean that nobody changed any.

        Raises:
            OSError: the kernel does not answer.
        """
        generation = self.generation().to_bytes(4, "big")
        return generation if self._legacy is None else generation + self._legacy.digest()

    def generation(self) -> int:
        """The generation of the rules; news of changes that waited are taken along.

        Raises:
            OSError: the kernel does not answer.
        """
        for _ in range(ATTEMPTS):
            self._rules.send(_GENERATION_ASKED)
            try:
                while True:
                    data = _receive(self._rules)
                    if data[_KIND_AND_SEQUENCE] == _ANSWER:
                        return int.from_bytes(data[_GENERATION], "big")
            except BlockingIOError:
                continue  # News filled the buffer, and there was no room for the answer; now there is.
        raise InterruptedError("the rules change faster than their generation can be read")

    def routing_touched(self) -> bool:
        """Whether routing rules or routes changed since the last call."""
        touched = False
        try:
            while True:
                _receive(self._routing)
                touched = True
        except BlockingIOError:
            return touched

    def listeners(self) -> Holders:
        """Who listens on the ports, on every address; a port without a listener is not in it."""
        found: Holders = {}
        for index, question in enumerate(self._find):
            self._diag.send(question)
            answers = [self._diag.recv(ANSWER_BYTES) for _ in self.ports]
            found = {**_holders(self.ports, answers), **found}
            if len(found) == len(self.ports):
                self._family = index
                break
        return found

    def name_servers(self) -> DoorHolders:
        """Who waits for lookups; a door at which nobody waits is not in it."""
        if self.doors:
            self._diag.send(self._find_doors)
        return _holders(self.doors, [self._diag.recv(ANSWER_BYTES) for _ in self.doors])

    def _doors(self, host: str, trial: socket.socket, port: int) -> Iterator[Door]:
        """The doors that there can be: of the families that the pod's loopback has.

        A kernel without udp_diag answers as if nobody were there, so it is tried with a socket of ours.
        """
        try:
            trial.bind((host, 0))
            self._diag.send(
                netlink.encode_all([_find_door(("udp", host, trial.getsockname()[1]))], _SEQUENCE)
            )
            answer = self._diag.recv(ANSWER_BYTES)
        except OSError:
            return
        yield "tcp", host, port
        if _kind(answer) == netlink_diag.SOCK_DIAG_BY_FAMILY:
            yield "udp", host, port

    def living(self, connections: Sequence[TcpSocket]) -> list[TcpSocket]:
        """Those of *connections* that are still there."""
        return [each for each in connections if self._is_there(each)]

    def _is_there(self, known: TcpSocket) -> bool:
        self._diag.send(netlink.encode_all([netlink_diag.find(known)], _SEQUENCE))
        answer = self._diag.recv(ANSWER_BYTES)
        found = _kind(answer) == netlink_diag.SOCK_DIAG_BY_FAMILY
        return found and answer[_STATE] in netlink_diag.CARRYING

    def _made(self, protocol: int) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        made = socket.socket(socket.AF_NETLINK, kind, protocol)
        self._sockets.append(made)
        return made

    @staticmethod
    def _listen_to(made: socket.socket, groups: Sequence[int]) -> None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER_BYTES)
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)


def _trials() -> dict[str, socket.socket]:
    """A datagram socket for each loopback, where there is such a family."""
    made = {}
    for host in _LOOPBACKS:
        with suppress(OSError):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            made[host] = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    return made


def _fingerprint(rules: bytes, answers: Iterable[bytes]) -> bytes:
    parts = [rules]
    for answer in answers:
        parts += (answer[_COOKIE], answer[_INODE])
    return b"".join(parts)


def _holders(names: Iterable[_Name], answers: Iterable[bytes]) -> dict[_Name, tuple[int, bytes]]:
    """Who is found under each name; one without anybody is not in it."""
    return {
        name: (int.from_bytes(answer[_INODE], sys.byteorder), answer[_COOKIE])
        for name, answer in zip(names, answers, strict=False)
        if _kind(answer) == netlink_diag.SOCK_DIAG_BY_FAMILY
    }


def _find_door(door: Door) -> netlink.Request:
    protocol, host, port = door
    family = netlink.AF_INET6 if ":" in host else netlink.AF_INET
    return netlink_diag.find_door(family, _PROTOCOLS[protocol], host, port)


def _receive(sock: socket.socket) -> bytes:
    """One datagram; b"" where the buffer ran over, which is news too."""
    try:
        return sock.recv(ANSWER_BYTES)
    except OSError as exc:
        if exc.errno != errno.ENOBUFS:
            raise
        return b""


def _kind(answer: bytes) -> int:
    kind: int = _HEADER.unpack_from(answer)[1]
    return kind
