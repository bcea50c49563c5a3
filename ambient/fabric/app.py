"""The built-in workload: ``python -m ambient.fabric.app``, one HTTP service in a pod.

It stands for an application: it answers, calls others, takes its time, and is cheap enough not to drown the
cost of the proxies beside it. What it does comes from ``ambient.fabric.app_settings``.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys

import trio

from ambient.engine import collector
from ambient.engine.channel import SocketChannel
from ambient.engine.host import run
from ambient.engine.http_server import HttpServer
from ambient.engine.listener import Listener
from ambient.engine.netns import listen_in
from ambient.engine.reactor import Reactor
from ambient.errors import ConfigError
from ambient.fabric.app_calls import Caller, Names
from ambient.fabric.app_service import Service
from ambient.fabric.app_settings import AppSettings, read_settings

EXIT_BAD_INPUT = 65
# How long requests in flight may take after SIGTERM; Kubernetes would kill after 30 s.
DRAIN_SECONDS = 5.0


async def serve(reactor: Reactor, settings: AppSettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    async with trio.open_nursery() as nursery:
        caller = Caller(reactor, Names(reactor, nursery)) if settings.calls else None
        service = Service(settings, reactor, caller)
        server = HttpServer(reactor, service.on_request)
        listeners = [_listen(reactor, settings.address, port, server) for port in settings.ports]
        collector.settle()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _number in signals:
                break
        for listener in listeners:
            listener.accept_pending()
            listener.close()
        await _drain(server)
        nursery.cancel_scope.cancel()


async def _drain(server: HttpServer) -> None:
    empty = trio.Event()
    server.on_empty = empty.set
    server.drain()
    server.close_idle()
    with trio.move_on_after(DRAIN_SECONDS):
        await empty.wait()
    server.abort()


def _listen(reactor: Reactor, address: str, port: int, server: HttpServer) -> Listener:
    def accepted(sock: socket.socket) -> None:
        server.serve(SocketChannel(reactor, sock))

    return Listener(reactor, listen_in(None, port, host=address), accepted)


def main() -> int:
    """Run the workload; returns the exit code."""
    try:
        settings = read_settings(os.environ)
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return EXIT_BAD_INPUT
    run(functools.partial(serve, settings=settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
