"""Ports 15020 (metrics) and 15021 (readiness): a few GETs, served by the engine's own HTTP server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import TypeAlias

from ambient.engine.channel import SocketChannel
from ambient.engine.http_server import HttpServer, ServerConnection
from ambient.engine.listener import Listener
from ambient.engine.reactor import Reactor
from ambient.wire.http1_heads import RequestHead

# (status, text)
Page: TypeAlias = Callable[[], tuple[int, str]]


class Status:
    """Serves *pages* (path -> what to answer) on one listening socket."""

    def __init__(self, reactor: Reactor, sock: socket.socket, pages: Mapping[str, Page]) -> None:
        self._reactor = reactor
        self._pages = pages
        self._server = HttpServer(reactor, self._on_request)
        self._listener = Listener(reactor, sock, self._accepted)

    def close(self) -> None:
        """Stop serving now."""
        self._listener.close()
        self._server.abort()

    def _accepted(self, sock: socket.socket) -> None:
        self._server.serve(SocketChannel(self._reactor, sock))

    def _on_request(self, connection: ServerConnection, head: RequestHead) -> _Get:
        return _Get(connection, *self._answer(head))

    def _answer(self, head: RequestHead) -> tuple[int, str]:
        page = self._pages.get(head.target.partition(b"?")[0].decode("latin-1"))
        if page is None:
            return 404, "not found\n"
        if head.method not in (b"GET", b"HEAD"):
            return 405, "only GET is understood here\n"
        return page()


class _Get:
    """Waits for the end of the request, then answers."""

    __slots__ = ("_connection", "_status", "_text")

    def __init__(self, connection: ServerConnection, status: int, text: str) -> None:
        self._connection = connection
        self._status = status
        self._text = text

    def body_received(self, data: bytes) -> None:
        """Nobody reads it."""

    def body_ended(self) -> None:
        """Answer."""
        self._connection.answer(self._status, self._text)

    def client_writable(self) -> None:
        """Answers are short."""

    def client_gone(self, reason: str) -> None:
        """So be it."""
