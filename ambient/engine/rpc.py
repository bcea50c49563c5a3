"""Calls over unix sockets: the admin wire's two ends, under trio.

Floor 2. Frames are ``ambient.wire.frames``; shapes::

    client                                   server
      | {id, method, params[, fds]}            |
      |--------------------------------------->|
      |            {id, event} *               |   only if the method emits events
      |            {id, result}                |
      |     or     {id, error: {code, message}}|
      |<---------------------------------------|
      | {id, cancel: true}                     |   the caller lost interest
      |--------------------------------------->|

``fds`` counts the descriptors that travel beside the frame (SCM_RIGHTS). Calls of one connection run
concurrently. ``code`` is the exit code of interfaces.md, so that the CLI ends as the method did.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import trio

from ambient.engine.nursery import plain_nursery
from ambient.engine.rights import descriptors, rights, room
from ambient.errors import (
    AmbientError,
    ConfigError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    Unavailable,
)
from ambient.wire.frames import Frame, FrameReader, encode

# Exit codes of interfaces.md.
FAILED, BAD_INPUT, UNREACHABLE = 1, 65, 69
# Descriptors beside one read; we send one, the kernel's bound is 253.
MAX_FDS = 16
READ_BYTES = 64 * 1024
# Events a slow reader of a stream may lag behind before the connection waits; picked, not measured.
STREAM_BACKLOG = 256


class RpcError(AmbientError):
    """The other end answered with an error; *code* is the exit code it stands for."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Call:
    """One running call, as its method sees it.

    Attributes:
        params: The caller's keyword arguments.
        fds: Descriptors that came with the call; the method owns them and closes them.
        peer_pid: Process at the other end (SO_PEERCRED), 0 if unknown.
    """

    method: str
    params: dict[str, Any]
    fds: list[int]
    peer_pid: int
    peer_uid: int
    _emit: Callable[[Any], Awaitable[None]] = field(repr=False)

    async def event(self, value: Any) -> None:
        """Send one event of a stream; waits while the caller does not read."""
        await self._emit(value)


Method: TypeAlias = Callable[[Call], Awaitable[Any]]


# The server's end ----------------------------------------------------------------------------


async def serve_admin(
    where: str | Path | socket.socket,
    methods: Mapping[str, Method],
    *,
    on_failure: Callable[[Exception], None] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer calls until cancelled (or, over one connected socket, until the peer closes).

    Args:
        where: A path to listen at (mode 0600, a stale socket is replaced), a listening socket, or
            one end of a socketpair. A socket given becomes ours to close.
        methods: Name -> ``async def method(call: Call) -> result``. ``ConfigError`` becomes code 65,
            ``Unavailable`` 69, ``RpcError`` its own, any other ``AmbientError`` 1; anything else is
            a bug, answered as code 1.
        on_failure: Told of a method's bug; without it the bug ends ``serve_admin``.
    """
    if isinstance(where, socket.socket):
        listening = where.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listening:
            task_status.started()
            await _serve_connection(trio.socket.from_stdlib_socket(where), methods, on_failure)
            return
        listener = where
    else:
        listener = _listen_at(Path(where))
    with trio.socket.from_stdlib_socket(listener) as accepting:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                connection, _ = await accepting.accept()
                nursery.start_soon(_serve_connection, connection, methods, on_failure)


def _listen_at(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Nobody else may connect between bind and chmod.
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener


async def _serve_connection(
    sock: trio.socket.SocketType,
    methods: Mapping[str, Method],
    on_failure: Callable[[Exception], None] | None,
) -> None:
    wire = _Wire(sock)
    answers = _Answers(wire, methods, on_failure)
    try:
        async with trio.open_nursery() as nursery:
            async for frame, fds in wire:
                match frame:
                    case {"id": int(number), "cancel": True}:
                        answers.cancel(number)
                    case {"id": int(number), "method": str(name), "params": dict(params)}:
                        nursery.start_soon(answers.answer, number, name, params, fds)
                    case _:
                        _close_all(fds)
                        raise RemoteProtocolError("a call needs id, method and params")
            nursery.cancel_scope.cancel()
    except* (trio.BrokenResourceError, ProtocolError, OSError):
        pass  # The peer went away or broke the wire: only its own connection ends.
    finally:
        wire.close()


class _Answers:
    """The running calls of one connection."""

    def __init__(
        self, wire: _Wire, methods: Mapping[str, Method], on_failure: Callable[[Exception], None] | None
    ) -> None:
        self._wire = wire
        self._methods = methods
        self._on_failure = on_failure
        self._running: dict[int, trio.CancelScope] = {}

    def cancel(self, number: int) -> None:
        if number in self._running:
            self._running[number].cancel()

    async def answer(self, number: int, name: str, params: dict[str, Any], fds: list[int]) -> None:
        """Run one method and send what came of it, unless the caller has gone."""
        with trio.CancelScope() as scope:
            self._running[number] = scope
            try:
                answer = await self._outcome(number, name, params, fds)
                try:
                    await self._wire.send({"id": number, **answer})
                except LocalProtocolError as exc:
                    await self._wire.send({"id": number, **_error(FAILED, f"the answer is too large: {exc}")})
            finally:
                self._running.pop(number, None)

    async def _outcome(self, number: int, name: str, params: dict[str, Any], fds: list[int]) -> Frame:
        async def emit(value: Any) -> None:
            await self._wire.send({"id": number, "event": value})

        method = self._methods.get(name)
        if method is None:
            _close_all(fds)
            return _error(FAILED, f"no method {name!r}")
        try:
            wire = self._wire
            return {"result": await method(Call(name, params, fds, wire.peer_pid, wire.peer_uid, emit))}
        except AmbientError as exc:
            return _error(_code_of(exc), str(exc))
        except Exception as exc:
            if self._wire.broken:
                raise  # It failed because the caller is gone.
            if self._on_failure is None:
                await self._wire.send({"id": number, **_error(FAILED, repr(exc))})
                raise RuntimeError(f"method {name!r} failed") from exc
            self._on_failure(exc)
            return _error(FAILED, repr(exc))


def _error(code: int, message: str) -> Frame:
    return {"error": {"code": code, "message": message}}


def _code_of(exc: AmbientError) -> int:
    match exc:
        case RpcError():
            return exc.code
        case ConfigError():
            return BAD_INPUT
        case Unavailable():
            return UNREACHABLE
        case _:
            return FAILED


def error_of(code: int, message: str) -> AmbientError:
    """The exception a caller gets for an error frame; the inverse of what the server did."""
    match code:
        case 65:
            return ConfigError(message)
        case 69:
            return Unavailable(message)
        case _:
            return RpcError(code, message)


# The client's end ----------------------------------------------------------------------------


class AdminStream:
    """Events of one call, then its result::

    async with client.stream("enroll", targets=[...]) as stream:
        async for event in stream:
            ...
    stream.result
    """

    def __init__(self, client: AdminClient, number: int) -> None:
        self._client = client
        self._number = number
        self._send, self._receive = trio.open_memory_channel[Frame](STREAM_BACKLOG)
        self.result: Any = None

    def __aiter__(self) -> AdminStream:
        return self

    async def __anext__(self) -> Any:
        try:
            frame = await self._receive.receive()
        except trio.EndOfChannel:
            raise Unavailable("the connection ended before the answer") from None
        match frame:
            case {"event": event}:
                return event
            case {"error": {"code": int(code), "message": str(message)}}:
                raise error_of(code, message)
            case {"result": result}:
                self.result = result
                raise StopAsyncIteration
            case _:
                raise RemoteProtocolError("an answer needs event, result or error")

    async def __aenter__(self) -> AdminStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._receive.close()  # The connection's reader must not wait for us any more.
        await self._client._forget(self._number)


class AdminClient:
    """The caller's end; made by ``connect`` or ``over``, usable from several tasks."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._numbers = itertools.count(1)
        self._calls: dict[int, AdminStream] = {}
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: str | Path) -> AsyncIterator[AdminClient]:
        """``async with AdminClient.connect(path) as client``.

        Raises:
            Unavailable: nobody listens there.
        """
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(str(path))
        except OSError as exc:
            sock.close()
            raise Unavailable(f"nobody answers at {path}: {exc.strerror or exc}") from exc
        async with cls._running(_Wire(sock)) as client:
            yield client

    @classmethod
    @asynccontextmanager
    async def over(cls, sock: socket.socket) -> AsyncIterator[AdminClient]:
        """The same over a connected socket, which becomes ours to close."""
        async with cls._running(_Wire(trio.socket.from_stdlib_socket(sock))) as client:
            yield client

    @classmethod
    @asynccontextmanager
    async def _running(cls, wire: _Wire) -> AsyncIterator[AdminClient]:
        client = cls(wire)
        try:
            async with plain_nursery() as nursery:
                nursery.start_soon(client._read)
                yield client
                nursery.cancel_scope.cancel()
        finally:
            wire.close()

    async def call(self, method: str, /, *, fds: Iterable[int] = (), **params: Any) -> Any:
        """Call and wait for the result; events, if any, are dropped.

        Args:
            fds: Descriptors to send along; they stay the caller's to close.

        Raises:
            ConfigError, Unavailable, RpcError: what the method raised.
            Unavailable: the connection ended first.
        """
        async with await self._open(method, params, list(fds)) as stream:
            async for _ in stream:
                pass
            return stream.result

    @asynccontextmanager
    async def stream(
        self, method: str, /, *, fds: Iterable[int] = (), **params: Any
    ) -> AsyncIterator[AdminStream]:
        """Call a method that emits events; leaving the block early cancels it at the server."""
        async with await self._open(method, params, list(fds)) as stream:
            yield stream

    async def _open(self, method: str, params: dict[str, Any], fds: list[int]) -> AdminStream:
        if self._closed:
            raise Unavailable("the connection has ended")
        number = next(self._numbers)
        stream = self._calls[number] = AdminStream(self, number)
        try:
            await self._wire.send({"id": number, "method": method, "params": params}, fds)
        except trio.BrokenResourceError as exc:
            self._calls.pop(number, None)
            raise Unavailable("the connection has ended") from exc
        return stream

    async def _forget(self, number: int) -> None:
        if self._calls.pop(number, None) is None or self._closed:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            try:
                await self._wire.send({"id": number, "cancel": True})
            except (trio.BrokenResourceError, OSError):
                pass  # Gone already, and the call with it.

    async def _read(self) -> None:
        try:
            async for frame, fds in self._wire:
                _close_all(fds)
                number = frame.get("id")
                stream = self._calls.get(number) if isinstance(number, int) else None
                if stream is None:
                    continue
                if "event" not in frame:
                    del self._calls[number]  # type: ignore[arg-type]
                try:
                    await stream._send.send(frame)
                except trio.BrokenResourceError:
                    continue
        except (trio.BrokenResourceError, ProtocolError, OSError):
            pass  # Every waiting call hears of it below.
        finally:
            self._closed = True
            for stream in self._calls.values():
                stream._send.close()


# Frames and descriptors over one socket --------------------------------------------------------


class _Wire:
    """Frames both ways over one unix socket, descriptors beside them."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._frames: deque[Frame] = deque()
        self._fds: deque[int] = deque()
        self._sending = trio.Lock()
        self.broken = False
        self.peer_pid, self.peer_uid = _credentials(sock)

    def __aiter__(self) -> _Wire:
        return self

    async def __anext__(self) -> tuple[Frame, list[int]]:
        while not self._frames:
            data, ancillary, _, _ = await self._sock.recvmsg(READ_BYTES, room(MAX_FDS))
            self._fds.extend(descriptors(ancillary))
            if not data:
                if not self._reader.at_boundary():
                    raise RemoteProtocolError("closed in the middle of a frame")
                raise StopAsyncIteration
            self._frames.extend(self._reader.feed(data))
        frame = self._frames.popleft()
        return frame, self._take_fds(frame.get("fds", 0))

    async def send(self, frame: Frame, fds: list[int] | None = None) -> None:
        """Send one frame whole."""
        if fds:
            frame = {**frame, "fds": len(fds)}
        async with self._sending:
            try:
                await self._send_all(memoryview(encode(frame)), fds)
            except OSError as exc:
                self.broken = True
                raise trio.BrokenResourceError("the peer is gone") from exc

    async def _send_all(self, data: memoryview, fds: list[int] | None) -> None:
        if fds:
            data = data[await self._sock.sendmsg([data], rights(fds)) :]
        while data:
            data = data[await self._sock.send(data) :]

    def close(self) -> None:
        _close_all(self._fds)
        self._fds.clear()
        self._sock.close()

    def _take_fds(self, count: object) -> list[int]:
        if not isinstance(count, int) or not 0 <= count <= len(self._fds):
            raise RemoteProtocolError(f"{count!r} descriptors announced, {len(self._fds)} came")
        return [self._fds.popleft() for _ in range(count)]


def _credentials(sock: trio.socket.SocketType) -> tuple[int, int]:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
