"""What the built-in workload answers.

/healthz     200, at once
/whoami      the caller's address as this program sees it
/bytes/N     N bytes, streamed
anything     after the calls and the service time: pod, version, and each callee's result, as JSON; 502 if a
             callee failed or answered 5xx
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from ambient.engine.http_server import ServerConnection
from ambient.engine.reactor import Reactor
from ambient.fabric.app_calls import Caller, passed_on
from ambient.fabric.app_settings import AppSettings, Callee
from ambient.wire.http1_heads import RequestHead, ResponseHead

# The unit in which /bytes/N is written.
PIECE = b"ambient " * 8192
MAX_STREAM_DIGITS = 13

_BYTES = re.compile(rb"/bytes/([0-9]{1,%d})" % MAX_STREAM_DIGITS)
_JSON = b"content-type: application/json\r\n"


class Service:
    """Answers the requests of one workload."""

    def __init__(self, settings: AppSettings, reactor: Reactor, caller: Caller | None) -> None:
        self.settings = settings
        self.reactor = reactor
        self.caller = caller
        self._constant = b"" if settings.calls else self.body([])

    def on_request(self, connection: ServerConnection, head: RequestHead) -> Sink:
        """For ``HttpServer(on_request=...)``."""
        path = head.target.partition(b"?")[0]
        if path == b"/healthz":
            return Sink(lambda: connection.answer(200, "ok\n"))
        if path == b"/whoami":
            ip, port = connection.channel.peer_address
            return Sink(lambda: connection.answer(200, f"{ip} {port}\n"))
        if (found := _BYTES.fullmatch(path)) is not None:
            return Stream(connection, int(found[1]), head.method == b"HEAD")
        return Work(self, connection, head)

    def body(self, calls: list[dict[str, object]]) -> bytes:
        """The answer's JSON, padded to the size asked for."""
        document: dict[str, object] = {"pod": self.settings.pod, "version": self.settings.version}
        if calls:
            document["calls"] = calls
        text = json.dumps(document)
        missing = self.settings.response_bytes - len(text) - len(', "padding": ""') - 1
        if missing >= 0:
            text = json.dumps(document | {"padding": "x" * missing})
        return text.encode() + b"\n"

    def send(self, connection: ServerConnection, head_only: bool, calls: list[dict[str, object]]) -> None:
        """Answer with the calls' results."""
        body = self.body(calls) if calls else self._constant
        failed = any(not isinstance(each["status"], int) or not 0 < each["status"] < 500 for each in calls)
        connection.send_head(ResponseHead(502 if failed else 200, content_length=len(body)), _JSON)
        if not head_only:
            connection.send_body(body)
        connection.send_end()


class Sink:
    """Waits for the end of a request, then answers; base of those that do more."""

    __slots__ = ("_answer", "gone")

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer = answer
        self.gone = False

    def body_received(self, data: bytes) -> None:
        """Requests may have bodies; nothing here reads them."""

    def body_ended(self) -> None:
        """Now it can be answered."""
        self._answer()

    def client_writable(self) -> None:
        """Only a stream waits for it."""

    def client_gone(self, reason: str) -> None:
        """Nobody is left to answer."""
        self.gone = True


class Work(Sink):
    """Calls all callees at once, waits the service time, answers."""

    __slots__ = ("_connection", "_head", "_left", "_results", "_service")

    def __init__(self, service: Service, connection: ServerConnection, head: RequestHead) -> None:
        super().__init__(self._begin)
        self._service = service
        self._connection = connection
        self._head = head
        self._results: dict[Callee, dict[str, object]] = {}
        self._left = len(service.settings.calls)

    def _begin(self) -> None:
        service = self._service
        if service.settings.calls and service.caller is not None:
            headers = passed_on(self._head.headers)
            for callee in service.settings.calls:
                service.caller.call(callee, headers, self._called)
        else:
            self._wait()

    def _called(self, callee: Callee, status: int, size: int, error: str) -> None:
        result: dict[str, object] = {"url": callee.url, "status": status, "bytes": size}
        self._results[callee] = result | {"error": error} if error else result
        self._left -= 1
        if not self._left:
            self._wait()

    def _wait(self) -> None:
        if self._service.settings.service_time:
            self._service.reactor.call_later(self._service.settings.service_time, self._send)
        else:
            self._send()

    def _send(self) -> None:
        if not self.gone:
            calls = [self._results[callee] for callee in self._service.settings.calls]
            self._service.send(self._connection, self._head.method == b"HEAD", calls)


class Stream(Sink):
    """Writes many bytes, no faster than the client reads them."""

    __slots__ = ("_connection", "_left", "_size")

    def __init__(self, connection: ServerConnection, size: int, head_only: bool) -> None:
        super().__init__(self._begin)
        self._connection = connection
        self._size = size
        self._left = 0 if head_only else size

    def _begin(self) -> None:
        self._connection.send_head(ResponseHead(200, content_length=self._size))
        self.client_writable()

    def client_writable(self) -> None:
        """Write until there is no room."""
        while self._left and self._connection.writable and not self.gone:
            piece = PIECE[: min(self._left, len(PIECE))]
            self._left -= len(piece)
            self._connection.send_body(piece)
        if not self._left and not self.gone:
            self.gone = True
            self._connection.send_end()
