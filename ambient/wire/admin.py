"""Admin calls: the desk asks control or the fabric, and the fabric asks control.

Floor 1: sans-IO, both ends. Frames of ``ambient.wire.frames`` over a unix stream socket.

Theory of operation
===================

    client                                              server
      |  {id, method, params[, fds]}                       |
      |---------------------------------------------------->|
      |                          {id, event: {...}}*         |   streams only
      |<----------------------------------------------------|
      |         {id, result} | {id, error: {code, message}}   |
      |<----------------------------------------------------|
      |  {id, cancel: true}                                  |   the caller lost interest
      |---------------------------------------------------->|

Calls of one connection may overlap; ``id`` tells them apart. ``fds`` counts the file descriptors that
travel beside the call as ancillary data (``attach``): a shell that carries descriptors keeps them in
order of arrival and hands each call as many of the oldest as it announced. An answer and a cancel may
cross, so neither a late cancel nor the answer after one is an error.

``code`` is the exit code of the command line: 1 failed, 2 usage, 65 bad input, 69 unavailable,
124 a wait ran out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

from ambient.errors import (
    AmbientError,
    ConfigError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    Unavailable,
)
from ambient.wire.frames import Frame, FrameReader, encode

# Calls of one connection that wait for an answer at the same time; picked, not measured.
MAX_OPEN_CALLS = 1024


class ExitCode(IntEnum):
    """What an error means to a script; the numbers are sysexits' where it has one."""

    FAILED = 1
    USAGE = 2
    BAD_INPUT = 65
    UNAVAILABLE = 69
    TIMED_OUT = 124


@dataclass(frozen=True, slots=True)
class Call:
    """The client wants *method*; answer with ``result`` or ``error``, after any ``event``."""

    id: int
    method: str
    params: Mapping[str, Any]
    fds: int = 0


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client no longer wants the answer to call *id*; say nothing more about it."""

    id: int


@dataclass(frozen=True, slots=True)
class EventSent:
    """One object of a stream; more may follow."""

    id: int
    event: Any


@dataclass(frozen=True, slots=True)
class ResultSent:
    """The call ended well."""

    id: int
    result: Any


@dataclass(frozen=True, slots=True)
class ErrorSent:
    """The call ended badly; *code* is the exit code for it."""

    id: int
    code: int
    message: str


Answer: TypeAlias = EventSent | ResultSent | ErrorSent


class CallFailed(AmbientError):
    """The other end refused or failed a call.

    Args:
        code: The exit code it chose.
        message: One line for the person at the desk.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def error_code(exc: BaseException) -> int:
    """Return the exit code that stands for *exc*."""
    match exc:
        case CallFailed(code=code):
            return code
        case ConfigError():
            return ExitCode.BAD_INPUT
        case Unavailable():
            return ExitCode.UNAVAILABLE
        case _:
            return ExitCode.FAILED


class _End:
    """What both ends share: frames in, and no word after an error."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._broken = False

    def _frames(self, data: bytes | memoryview) -> list[Frame]:
        self._require_whole()
        try:
            if not data and not self._reader.at_boundary():
                raise RemoteProtocolError("peer closed in the middle of a frame")
            return list(self._reader.feed(data))
        except ProtocolError:
            self._broken = True
            raise

    def _require_whole(self) -> None:
        if self._broken:
            raise LocalProtocolError("not possible after an error on this connection")

    def _blame(self, message: str) -> RemoteProtocolError:
        self._broken = True
        return RemoteProtocolError(message)


class ServerEnd(_End):
    """The end that answers calls."""

    def __init__(self) -> None:
        super().__init__()
        self._open: set[int] = set()

    def receive_data(self, data: bytes | memoryview) -> list[Call | Cancelled]:
        """Take what the socket gave; ``b""`` means the client closed.

        Raises:
            RemoteProtocolError: the client broke the protocol.
        """
        return [event for frame in self._frames(data) for event in self._read(frame)]

    def _read(self, frame: Frame) -> Iterator[Call | Cancelled]:
        match frame:
            case {"id": int(number), "cancel": True}:
                if number in self._open:
                    self._open.discard(number)
                    yield Cancelled(number)
            case {"id": int(number), "method": str(method), **rest}:
                yield self._called(number, method, rest)
            case _:
                raise self._blame("a call needs an id, a method and params")

    def _called(self, number: int, method: str, rest: dict[str, Any]) -> Call:
        params, fds = rest.get("params", {}), rest.get("fds", 0)
        if isinstance(number, bool) or not isinstance(params, dict) or type(fds) is not int or fds < 0:
            raise self._blame("a call needs an id, a method and params")
        if number in self._open:
            raise self._blame(f"call {number} is open already")
        if len(self._open) >= MAX_OPEN_CALLS:
            raise self._blame(f"over {MAX_OPEN_CALLS} calls at once")
        self._open.add(number)
        return Call(number, method, params, fds)

    def event(self, number: int, event: Any) -> bytes:
        """One object of the stream that answers call *number*."""
        self._require_open(number)
        return encode({"id": number, "event": event})

    def result(self, number: int, result: Any) -> bytes:
        """End call *number* well."""
        self._require_open(number)
        data = encode({"id": number, "result": result})
        self._open.discard(number)
        return data

    def error(self, number: int, code: int, message: str) -> bytes:
        """End call *number* badly."""
        self._require_open(number)
        self._open.discard(number)
        return encode({"id": number, "error": {"code": int(code), "message": message}})

    def _require_open(self, number: int) -> None:
        self._require_whole()
        if number not in self._open:
            raise LocalProtocolError(f"no open call {number}")


class ClientEnd(_End):
    """The end that makes calls."""

    def __init__(self) -> None:
        super().__init__()
        self._open: set[int] = set()
        self._given_up: set[int] = set()
        self._last = 0

    def call(self, method: str, params: Mapping[str, Any] | None = None, fds: int = 0) -> tuple[int, bytes]:
        """Start a call; return its number and the bytes to send.

        Args:
            fds: How many descriptors the caller sends beside these bytes.
        """
        self._require_whole()
        self._last += 1
        frame = {"id": self._last, "method": method, "params": dict(params or {})}
        data = encode(frame | ({"fds": fds} if fds else {}))
        self._open.add(self._last)
        return self._last, data

    def cancel(self, number: int) -> bytes:
        """Give up on call *number*: nothing more is heard of it."""
        self._require_whole()
        if number not in self._open:
            raise LocalProtocolError(f"no open call {number}")
        self._open.discard(number)
        self._given_up.add(number)
        return encode({"id": number, "cancel": True})

    def receive_data(self, data: bytes | memoryview) -> list[Answer]:
        """Take what the socket gave; ``b""`` means the server closed.

        Raises:
            RemoteProtocolError: the server broke the protocol.
        """
        answers = [self._read(frame) for frame in self._frames(data)]
        return [answer for answer in answers if answer is not None]

    def _read(self, frame: Frame) -> Answer | None:
        answer: Answer
        match frame:
            case {"id": int(number), "event": event, **rest} if not rest:
                answer = EventSent(number, event)
            case {"id": int(number), "result": result, **rest} if not rest:
                answer = ResultSent(number, result)
            case {"id": int(number), "error": {"code": int(code), "message": str(message)}, **rest} if (
                not rest
            ):
                answer = ErrorSent(number, code, message)
            case _:
                raise self._blame("an answer needs an id and an event, a result or an error")
        if answer.id in self._given_up:
            return None
        if answer.id not in self._open:
            raise self._blame(f"an answer to call {answer.id}, which is not open")
        if not isinstance(answer, EventSent):
            self._open.discard(answer.id)
        return answer
