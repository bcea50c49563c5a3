"""The sockets of a namespace, as ``ss`` lists them: ask, read, and end one.

Floor 1: sans-IO.

Source: sock_diag(7); linux/inet_diag.h. Ports and addresses are in network order.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from ambient.errors import RemoteProtocolError
from ambient.wire.netlink import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    NLM_F_ACK,
    NLM_F_DUMP,
    Message,
    Request,
    attributes,
    number,
)

TCPDIAG_GETSOCK, SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 18, 20, 21
IPPROTO_TCP, IPPROTO_UDP = 6, 17
# States of TCP (net/tcp_states.h).
ESTABLISHED, SYN_RECV, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, LISTEN = 1, 3, 4, 5, 8, 10
# Those in which bytes may still come or go.
CARRYING = frozenset({ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT})
_ANY = 0xFFFFFFFF
NO_COOKIE = (0xFFFFFFFF, 0xFFFFFFFF)

# family, protocol, extensions, (pad), states; then the socket's name.
_REQUEST = struct.Struct("=BBBxI")
# struct inet_diag_req: family, two lengths, extensions; the socket's name; then states, and a word more.
_OLD_HEAD, _OLD_STATES = struct.Struct("=BBBB"), struct.Struct("=II")
_NAME = struct.Struct("!HH16s16s")
_INTERFACE_AND_COOKIE = struct.Struct("=III")
# family, state, timer, retransmissions; name; expires, receive queue, send queue, uid, inode.
_ANSWER_HEAD = struct.Struct("=BBBB")
_ANSWER_TAIL = struct.Struct("=IIIII")
_NAME_BYTES = _NAME.size + _INTERFACE_AND_COOKIE.size
_ANSWER_BYTES = _ANSWER_HEAD.size + _NAME_BYTES + _ANSWER_TAIL.size
# A pod's connections have few of them, and reading one as text takes as long as all the rest. Picked.
MAX_ADDRESSES = 4096
# The kernel adds it to every answer to those with CAP_NET_ADMIN.
INET_DIAG_MARK = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpSocket:
    """One TCP socket.

    Attributes:
        local, remote: Addresses as canonical text; IPv4 behind an IPv6 socket is IPv4.
        inode: Of the socket, as in ``/proc/<pid>/fd``: tells whose it is; 0 if nobody's any more.
        cookie: The kernel's name for it, never used again; SOCK_DESTROY takes it.
        mark: Of the socket (SO_MARK); 0 if it has none, or if we may not know.
        raw_name: Its name as the kernel wrote it: ports, addresses, interface, cookie.
    """

    family: int
    state: int
    local: str
    local_port: int
    remote: str
    remote_port: int
    uid: int
    inode: int
    cookie: tuple[int, int]
    raw_name: bytes
    mark: int = 0


def dump_tcp(*states: int) -> Request:
    """Ask for the TCP sockets of both families in any of *states*.

    By the older of the kernel's two questions: the newer one names a family, and every dump is a walk over
    the sockets of all namespaces.
    """
    mask = sum(1 << state for state in states)
    body = _OLD_HEAD.pack(AF_UNSPEC, 0, 0, 0) + bytes(_NAME_BYTES) + _OLD_STATES.pack(mask, 0)
    return Request(TCPDIAG_GETSOCK, body, "list TCP sockets", NLM_F_DUMP)


def find_listener(family: int, port: int) -> Request:
    """Ask for the socket that listens on *port* of every address; one answer, a refusal if there is none."""
    name = _NAME.pack(port, 0, bytes(16), bytes(16)) + _INTERFACE_AND_COOKIE.pack(0, *NO_COOKIE)
    body = _REQUEST.pack(family, IPPROTO_TCP, 0, 1 << LISTEN) + name
    return Request(SOCK_DIAG_BY_FAMILY, body, f"find the listener on port {port}", 0)


def find_door(family: int, protocol: int, address: str, port: int) -> Request:
    """Ask for the socket that waits on *port* of *address*; one answer, a refusal if there is none.

    A listener's or an unconnected datagram socket's. The kernel looks up a datagram socket by the other
    end of the name than a listener (inet(6)_diag: "src and dst are swapped for historical reasons"), so
    both ends say the same.
    """
    raw = ip_address(address).packed.ljust(16, b"\0")
    # The other end of a listener's name must be nobody's, or a connection from the port to itself is found.
    there = (port, raw) if protocol == IPPROTO_UDP else (0, bytes(16))
    name = _NAME.pack(port, there[0], raw, there[1]) + _INTERFACE_AND_COOKIE.pack(0, *NO_COOKIE)
    states = 1 << LISTEN if protocol == IPPROTO_TCP else _ANY
    body = _REQUEST.pack(family, protocol, 0, states) + name
    return Request(SOCK_DIAG_BY_FAMILY, body, f"find who waits on port {port} of {address}", 0)


def find_connection(local: tuple[str, int], remote: tuple[str, int]) -> Request:
    """Ask for the end at *local* of a connection; one answer, or a refusal (ENOENT) if there is none.

    One that has just ended is found, too, or else who listens there: see ``is_connection``.
    """
    ends = (ip_address(local[0]).packed, ip_address(remote[0]).packed)
    family = AF_INET if len(ends[0]) == 4 else AF_INET6
    name = _NAME.pack(local[1], remote[1], *(each.ljust(16, b"\0") for each in ends))
    body = _REQUEST.pack(family, IPPROTO_TCP, 0, 0) + name + _INTERFACE_AND_COOKIE.pack(0, *NO_COOKIE)
    return Request(SOCK_DIAG_BY_FAMILY, body, "find a connection", 0)


def find(known: TcpSocket) -> Request:
    """Ask whether *known* is still there: one answer, or a refusal (ENOENT, ESTALE)."""
    body = _REQUEST.pack(known.family, IPPROTO_TCP, 0, 0) + known.raw_name
    return Request(SOCK_DIAG_BY_FAMILY, body, "find a connection", 0)


def destroy(found: TcpSocket) -> Request:
    """End a connection: its application reads ECONNABORTED, its peer a reset. Needs CAP_NET_ADMIN."""
    body = _REQUEST.pack(found.family, IPPROTO_TCP, 0, 1 << found.state) + found.raw_name
    what = f"reset {found.local}:{found.local_port} - {found.remote}:{found.remote_port}"
    return Request(SOCK_DESTROY, body, what, NLM_F_ACK)


def is_connection(message: Message) -> bool:
    """Whether an inet_diag_msg is of a connection that has begun and is not over; or else of a listener."""
    return message.body[1] in CARRYING or message.body[1] == SYN_RECV


def decode_socket(message: Message) -> TcpSocket:
    """Read an inet_diag_msg.

    Raises:
        RemoteProtocolError: it is too short.
    """
    body = message.body
    if len(body) < _ANSWER_HEAD.size + _NAME_BYTES + _ANSWER_TAIL.size:
        raise RemoteProtocolError(f"inet_diag message of {len(body)} bytes")
    family, state, _, _ = _ANSWER_HEAD.unpack_from(body)
    name = body[_ANSWER_HEAD.size : _ANSWER_HEAD.size + _NAME_BYTES]
    local_port, remote_port, local, remote = _NAME.unpack_from(name)
    _, *cookie = _INTERFACE_AND_COOKIE.unpack_from(name, _NAME.size)
    _, _, _, uid, inode = _ANSWER_TAIL.unpack_from(body, _ANSWER_HEAD.size + _NAME_BYTES)
    return TcpSocket(
        family=family,
        state=state,
        local=_address(family, local),
        local_port=local_port,
        remote=_address(family, remote),
        remote_port=remote_port,
        uid=uid,
        inode=inode,
        cookie=(cookie[0], cookie[1]),
        raw_name=name,
        mark=number(attributes(body[_ANSWER_BYTES:]).get(INET_DIAG_MARK)),
    )


@functools.lru_cache(MAX_ADDRESSES)
def _address(family: int, raw: bytes) -> str:
    parsed = ip_address(raw[:4] if family == AF_INET else raw)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.compressed
    return parsed.compressed
