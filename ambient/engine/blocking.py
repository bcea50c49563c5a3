"""The admin wire for whoever has no loop: the command line and the bench.

Floor 2. Blocking on purpose: a command that asks one question must not pay for starting trio (about
80 ms of imports). Bytes and rules are ``ambient.wire.admin``'s.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ambient.errors import RemoteProtocolError, Unavailable
from ambient.wire.admin import Answer, CallFailed, ClientEnd, ErrorSent, EventSent, ExitCode, ResultSent

READ_BYTES = 65536
# A daemon of a local socket answers at once or is gone; picked, not measured.
CONNECT_SECONDS = 5.0


class BlockingAdminClient:
    """One connection to ``control.sock`` or ``fabric.sock``; close it, or use ``with``.

    Attributes:
        timeout: Seconds a call may take in all, None for ever; the default of every call.
    """

    def __init__(self, sock: socket.socket, timeout: float | None = None) -> None:
        self.timeout = timeout
        self._socket = sock
        self._end = ClientEnd()
        self._waiting: list[Answer] = []

    @classmethod
    def connect(cls, path: Path, timeout: float | None = None) -> Self:
        """Connect to the daemon that listens at *path*.

        Raises:
            Unavailable: nobody listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect(str(path))
        except OSError as exc:
            sock.close()
            raise Unavailable(f"no mesh answers at {path.parent}: {exc.strerror or exc}") from exc
        return cls(sock, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, which cancels what it still asked for."""
        self._socket.close()

    def call(self, method: str, **params: Any) -> Any:
        """Return the result of *method*; events of a stream are dropped.

        Raises:
            CallFailed: the daemon refused, or the time is over (exit code 124).
            Unavailable: the daemon went away.
        """
        return self.call_with((), method, params)

    def call_with(self, fds: Sequence[int], method: str, params: Mapping[str, Any]) -> Any:
        """The same as ``call``, with descriptors beside it; they stay the caller's to close."""
        stream = self._stream(fds, method, params)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    def stream(self, method: str, **params: Any) -> Generator[Any, None, Any]:
        """Yield the events of *method*; the generator's return value is the result."""
        return self._stream((), method, params)

    def _stream(
        self, fds: Sequence[int], method: str, params: Mapping[str, Any]
    ) -> Generator[Any, None, Any]:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        number, data = self._end.call(method, params, len(fds))
        self._send(data, fds)
        while True:
            answer = self._next_answer(method, deadline)
            if answer.id != number:
                continue
            match answer:
                case EventSent(event=event):
                    yield event
                case ResultSent(result=result):
                    return result
                case ErrorSent(code=code, message=message):
                    raise CallFailed(code, message)

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            sent = socket.send_fds(self._socket, [data], list(fds)) if fds else 0
            self._socket.sendall(data[sent:])
        except OSError as exc:
            raise Unavailable(f"the mesh went away: {exc.strerror or exc}") from exc

    def _next_answer(self, method: str, deadline: float | None) -> Answer:
        while not self._waiting:
            self._waiting = self._end.receive_data(self._receive(method, deadline))
        return self._waiting.pop(0)

    def _receive(self, method: str, deadline: float | None) -> bytes:
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(READ_BYTES)
        except TimeoutError as exc:
            raise CallFailed(ExitCode.TIMED_OUT, f"{method}: no answer within the timeout") from exc
        except OSError as exc:
            raise Unavailable(f"the mesh went away: {exc.strerror or exc}") from exc
        if not data:
            self._refuse_half_a_frame()
            raise Unavailable(f"the mesh went away while it worked on {method!r}")
        return data

    def _refuse_half_a_frame(self) -> None:
        try:
            self._end.receive_data(b"")
        except RemoteProtocolError as exc:
            raise Unavailable(f"the mesh went away: {exc}") from exc
