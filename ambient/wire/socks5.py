"""SOCKS5 as a server speaks it: no authentication, CONNECT only.

Floor 1: sans-IO. Source: RFC 1928. The handshake is read to the byte and never further, so that the socket
can be handed on with everything behind the handshake still in it::

    handshake = ServerHandshake()
    while handshake.target is None:
        data = recv(handshake.needs)         # never more
        send(handshake.receive_data(data))   # perhaps nothing
    ...                                      # reach handshake.target
    send(reply(Reply.SUCCEEDED))
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from ipaddress import ip_address

from ambient.errors import LocalProtocolError, RemoteProtocolError
from ambient.model.address import canonical, is_hostname

VERSION = 5
NO_AUTHENTICATION, NO_METHOD = 0, 0xFF
CONNECT = 1
IPV4, NAME, IPV6 = 1, 3, 4


class Reply(IntEnum):
    """RFC 1928 section 6."""

    SUCCEEDED = 0
    FAILED = 1
    NOT_ALLOWED = 2
    HOST_UNREACHABLE = 4
    REFUSED = 5
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


class Refused(RemoteProtocolError):
    """What the client wants is not to be had here; *answer* says so in its own words."""

    def __init__(self, message: str, answer: bytes) -> None:
        super().__init__(message)
        self.answer = answer


class ServerHandshake:
    """One client's, until it has said where it wants to go.

    Attributes:
        needs: How many bytes to read next; 0 when ``target`` is known.
        target: (address or name, port).
    """

    def __init__(self) -> None:
        self.needs = 2
        self.target: tuple[str, int] | None = None
        self._data = self._head = b""
        self._next: Callable[[bytes], bytes] = self._greeting

    def receive_data(self, data: bytes) -> bytes:
        """Take what was read; return what to send.

        Raises:
            Refused: close the connection, after sending its ``answer``.
        """
        if len(data) > self.needs:
            raise LocalProtocolError(f"{len(data)} bytes where {self.needs} were asked for")
        self._data += data
        self.needs -= len(data)
        if self.needs:
            return b""
        data, self._data = self._data, b""
        return self._next(data)

    def _greeting(self, data: bytes) -> bytes:
        version, methods = data
        if version != VERSION or not methods:
            raise Refused(f"not a SOCKS5 greeting (version {version})", b"")
        self.needs, self._next = methods, self._methods
        return b""

    def _methods(self, data: bytes) -> bytes:
        if NO_AUTHENTICATION not in data:
            raise Refused("the client wants to authenticate itself", bytes((VERSION, NO_METHOD)))
        # One byte more than the fixed part: the first of an address, or the length of a name.
        self.needs, self._next = 5, self._request
        return bytes((VERSION, NO_AUTHENTICATION))

    def _request(self, data: bytes) -> bytes:
        version, command, _reserved, kind, first = data
        if version != VERSION:
            raise Refused(f"not a SOCKS5 request (version {version})", b"")
        if command != CONNECT:
            raise Refused(f"SOCKS command {command}", reply(Reply.COMMAND_NOT_SUPPORTED))
        sizes = {IPV4: 3, IPV6: 15, NAME: first}
        if kind not in sizes or sizes[kind] == 0:
            raise Refused(f"SOCKS address type {kind}", reply(Reply.ADDRESS_NOT_SUPPORTED))
        self._head = data[3:]
        self.needs, self._next = sizes[kind] + 2, self._address
        return b""

    def _address(self, data: bytes) -> bytes:
        kind, first = self._head
        host, (port,) = data[:-2], struct.unpack("!H", data[-2:])
        if kind == NAME:
            name = host.decode("latin-1").lower().removesuffix(".")
            if not is_hostname(name):
                raise Refused("not a host name", reply(Reply.ADDRESS_NOT_SUPPORTED))
        else:
            name = canonical(str(ip_address(bytes((first,)) + host)))
        if not port:
            raise Refused("port 0", reply(Reply.NOT_ALLOWED))
        self.target = name, port
        return b""


def reply(code: Reply) -> bytes:
    """The answer to a request; the address we dialled from is nobody's business (RFC: 0.0.0.0:0)."""
    return bytes((VERSION, code, 0, IPV4)) + bytes(6)
