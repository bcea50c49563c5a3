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
from collections.abc import Sequence
from typing import TypeAlias

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
_PROTOCOLS = {"tcp": netlink_diag.IPPROTO_TCP, "udp": netlink_diag.IPPROTO_UDP}


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
        try:
            self._rules = self._open(netns, NETLINK_NETFILTER, (nft_generation.NFNLGRP_NFTABLES,))
            self._routing = self._open(netns, NETLINK_ROUTE, nft_generation.ROUTING_GROUPS)
            self._diag = self._open(netns, NETLINK_SOCK_DIAG, ())
            if legacy:
                self._legacy = XtablesWatch(netns)
        except OSError:
            self.close()
            raise
        self.doors = self._doors(netns, names_port) if names_port else ()
        self._find_doors = netlink.encode_all([_find_door(door) for door in self.doors], _SEQUENCE)
        self._ask = netlink.encode_all([nft_generation.ask_generation()], _SEQUENCE)
        self._family = 0
        # Dual-stack listeners are found as IPv6 ones; a kernel without IPv6 has only the others.
        self._find = tuple(
            netlink.encode_all([netlink_diag.find_listener(family, port) for port in self.ports], _SEQUENCE)
            for family in (netlink.AF_INET6, netlink.AF_INET)
        )

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
        parts = [self.rules()]
        ask, receive = self._find[self._family], self._diag.recv
        self._diag.send(ask)
        for _ in self.ports:
            answer = receive(ANSWER_BYTES)
            parts += (answer[_COOKIE], answer[_INODE])
        if names:
            for inode, cookie in self.name_servers().values():
                parts += (cookie, inode.to_bytes(4, "big"))
        return b"".join(parts)

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
            self._rules.send(self._ask)
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
            for port in self.ports:
                answer = self._diag.recv(ANSWER_BYTES)
                if _kind(answer) == netlink_diag.SOCK_DIAG_BY_FAMILY:
                    found.setdefault(port, (int.from_bytes(answer[_INODE], sys.byteorder), answer[_COOKIE]))
            if len(found) == len(self.ports):
                self._family = index
                break
        return found

    def name_servers(self) -> DoorHolders:
        """Who waits for lookups; a door at which nobody waits is not in it."""
        found: DoorHolders = {}
        if self.doors:
            self._diag.send(self._find_doors)
        for door in self.doors:
            answer = self._diag.recv(ANSWER_BYTES)
            if _kind(answer) == netlink_diag.SOCK_DIAG_BY_FAMILY:
                found[door] = (int.from_bytes(answer[_INODE], sys.byteorder), answer[_COOKIE])
        return found

    def _doors(self, netns: int, port: int) -> tuple[Door, ...]:
        """The doors that there can be: of the families that the pod's loopback has.

        A kernel without udp_diag answers as if nobody were there, so it is tried with a socket of ours.
        """
        found: list[Door] = []
        for host in _LOOPBACKS:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                with in_netns(netns):
                    trial = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                with trial:
                    trial.bind((host, 0))
                    self._diag.send(
                        netlink.encode_all([_find_door(("udp", host, trial.getsockname()[1]))], _SEQUENCE)
                    )
                    answer = self._diag.recv(ANSWER_BYTES)
            except OSError:
                continue
            found.append(("tcp", host, port))
            if _kind(answer) == netlink_diag.SOCK_DIAG_BY_FAMILY:
                found.append(("udp", host, port))
        return tuple(found)

    def living(self, connections: Sequence[TcpSocket]) -> list[TcpSocket]:
        """Those of *connections* that are still there."""
        return [each for each in connections if self._is_there(each)]

    def _is_there(self, known: TcpSocket) -> bool:
        self._diag.send(netlink.encode_all([netlink_diag.find(known)], _SEQUENCE))
        answer = self._diag.recv(ANSWER_BYTES)
        found = _kind(answer) == netlink_diag.SOCK_DIAG_BY_FAMILY
        return found and answer[_STATE] in netlink_diag.CARRYING

    def _open(self, netns: int, protocol: int, groups: Sequence[int]) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with in_netns(netns):
            made = socket.socket(socket.AF_NETLINK, kind, protocol)
        self._sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER_BYTES)
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        return made


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
