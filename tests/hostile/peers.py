"""Peers that misbehave on :15008: TLS with any certificate, HTTP/2 frames by hand. Blocking, for a thread."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import hpack

from ambient.engine.tls import Svid
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from tests.hostile.forge import Signer

# For ever, on a machine that does something else as well.
PATIENCE = 15.0

Frame: TypeAlias = tuple[int, int, int, bytes]  # kind, flags, stream, payload


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Give *context* a chain with its key, past the disk."""
    fd = os.memfd_create("hostile")
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def client_context(shown: Svid | bytes | None, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
    """A client that believes everybody and shows *shown*, an SVID or the PEM of a chain and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # What we show may be weak; whether it is taken is the question.
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if shown is not None:
        load_pem(context, shown if isinstance(shown, bytes) else pem_of(shown))
    return context


def pem_of(svid: Svid) -> bytes:
    """Chain and key."""
    return b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in svid.chain) + svid.key


@dataclass
class Door:
    """Where a hostile peer comes from, what it may show, and whom it meets.

    Attributes:
        address: The pod's :15008.
        source: The address it comes from.
        svid: Of an identity of the mesh.
        authority: Of the application in the pod.
        ca: The mesh's, which signs whatever it is asked for.
        elsewhere: An address of nobody's.
        got: What the application has got from it so far.
    """

    address: tuple[str, int]
    source: str
    svid: Svid
    authority: str
    ca: Signer
    elsewhere: str
    got: Callable[[], bytes] = bytes

    def arrived(self, data: bytes) -> None:
        """Wait until the application has got *data*: one that is reset too soon never learns from whom."""
        end = time.monotonic() + PATIENCE
        while self.got() != data:
            assert time.monotonic() < end, "the application did not get everything"
            time.sleep(0.005)

    @property
    def pod(self) -> str:
        """The pod's address."""
        return self.address[0]

    def knock(self) -> socket.socket:
        """A plain TCP connection."""
        return socket.create_connection(self.address, PATIENCE, (self.source, 0))

    def tls(self, context: ssl.SSLContext | None = None, sni: str | None = None) -> ssl.SSLSocket:
        """After the handshake as the client sees it; a server may still refuse."""
        sock = self.knock()
        try:
            return (context or client_context(self.svid)).wrap_socket(sock, server_hostname=sni)
        except BaseException:
            sock.close()
            raise

    def http2(self, *settings: tuple[int, int], greet: bool = True) -> Wire:
        """An HTTP/2 connection whose preface and SETTINGS are sent."""
        wire = Wire(self.tls())
        if greet:
            wire.send(f.PREFACE + f.settings(settings))
        return wire

    def refuses(self, context: ssl.SSLContext | None, sni: str | None = None) -> str:
        """The handshake with *context* ends in an alert or a close; returns the alert's name or ""."""
        try:
            with self.tls(context, sni) as sock:
                sock.sendall(f.PREFACE + f.settings(()))
                assert sock.recv(1) == b"", "it was let in"
        except ssl.SSLError as exc:
            return exc.reason or ""
        except ConnectionError:
            pass
        return ""


class Wire:
    """HTTP/2 by hand."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = hpack.Decoder()
        self._buffer = b""
        self.closed = False
        self.code: int | None = None  # Of the last GOAWAY.

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        """All at once; a connection that is gone takes no more, which others notice."""
        with suppress(ConnectionError, ssl.SSLError):
            self.sock.sendall(b"".join(parts))

    def connect(self, authority: str, stream: int = 1, *fields: tuple[str, str], end: bool = False) -> None:
        """Send a CONNECT."""
        flags = f.END_HEADERS | (f.END_STREAM if end else 0)
        self.send(f.frame(f.HEADERS, flags, stream, h.encode_request(authority, fields)))

    def frame(self) -> Frame | None:
        """The next frame, or None at the end."""
        header = self._take(9)
        if header is None:
            return None
        size_and_kind, flags, stream = f.FRAME_HEADER.unpack(header)
        payload = self._take(size_and_kind >> 8)
        return None if payload is None else (size_and_kind & 0xFF, flags, stream & f.MAX_STREAM_ID, payload)

    def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            try:
                data = self.sock.recv(65536)
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                self.closed = True
                return None
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The first frame that is *wanted*; fails at the end of the connection."""
        while (frame := self.frame()) is not None:
            if frame[0] == f.GOAWAY:
                self.code = f.UINT32.unpack_from(frame[3], 4)[0]
            if wanted(frame):
                return frame
        raise AssertionError(f"the connection ended, GOAWAY {self.code}")

    def status(self, stream: int = 1) -> int:
        """Of the answer on *stream*."""
        while True:
            kind, _flags, number, payload = self.until(lambda frame: frame[0] in (f.HEADERS, f.RST_STREAM))
            if kind == f.HEADERS:
                fields = dict(self._decoder.decode(payload))
                if number == stream:
                    return int(fields[":status"])
            elif number == stream:
                raise AssertionError(f"stream {stream} was reset: {f.UINT32.unpack(payload)[0]}")

    def reset(self, stream: int = 1) -> int:
        """The code with which *stream* is reset."""
        frame = self.until(lambda frame: frame[0] == f.RST_STREAM and frame[2] == stream)
        return int(f.UINT32.unpack(frame[3])[0])

    def end(self) -> int | None:
        """Read to the end; the code of the GOAWAY, None if none arrived."""
        while (frame := self.frame()) is not None:
            if frame[0] == f.GOAWAY:
                self.code = f.UINT32.unpack_from(frame[3], 4)[0]
        return self.code

    def finished(self, stream: int = 1) -> None:
        """The other end has sent all it had on *stream*; whoever leaves earlier is recorded as gone."""
        self.until(lambda frame: frame[0] == f.DATA and bool(frame[1] & f.END_STREAM) and frame[2] == stream)

    def alive(self, payload: bytes = b"are you?") -> None:
        """A PING is answered: the connection lives."""
        self.send(f.frame(f.PING, 0, 0, payload))
        self.until(lambda frame: frame[0] == f.PING and frame[1] == f.ACK and frame[3] == payload)
