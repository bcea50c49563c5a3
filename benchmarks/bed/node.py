"""One node's zygote, and the ztunnel forked from it: the daemon as it is, pods on loopback addresses.

    INPOD_UDS=... AMBIENT_ZYGOTE_FD=... AMBIENT_BENCH_TARGET=127.1.2.3:80 python -m benchmarks.bed.node

It is asked for a ztunnel in the way that the fabric asks (``ztunnel.zygote``), so that memory is counted as
it is spent: two processes a node, which share what start-up made.
Only redirection is played: where a captured connection wanted to go is always the target. The kernel is
asked all the same, because in a pod it would be.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ambient.engine import collector, host, pool
from ambient.engine.dial import dial_socket
from ambient.engine.follow import control_socket
from ambient.engine.headroom import raise_file_limit
from ambient.engine.netns import LISTEN_BACKLOG, listen_in
from ambient.engine.reactor import Reactor
from ambient.model.pool_plan import Assign, Instruction, PoolKey, PoolPlan
from ztunnel import __main__ as ztunnel_main
from ztunnel import zygote
from ztunnel.daemon import Daemon
from ztunnel.network import Address, Cancellable, OnDialled
from ztunnel.settings import Settings, read_settings

TARGET_VARIABLE = "AMBIENT_BENCH_TARGET"
# Set: a tunnel carries one stream and closes, so that each new one costs a handshake.
UNPOOLED_VARIABLE = "AMBIENT_BENCH_UNPOOLED"
# Set: the kernel deals connections out among all processes that listen on the same port.
SHARED_VARIABLE = "AMBIENT_BENCH_SHARED"


class OneStreamEach(PoolPlan):
    """The pool's plan, but for its purpose: no connection is used twice."""

    def lease(self, key: PoolKey) -> None:
        """Nothing is ever free."""

    def _serve(self, key: PoolKey, group: Any) -> list[Instruction]:
        found = super()._serve(key, group)
        for each in found:
            if isinstance(each, Assign):
                self._connections[each.connection].retired = True
        return found


class LoopbackNetwork:
    """A pod's network: one address of 127.0.0.0/8, which the agent wrote into the descriptor it sent."""

    def __init__(self, reactor: Reactor, target: Address, fd: int) -> None:
        self._reactor = reactor
        self._target = target
        self._fd = fd
        self._ip = os.pread(fd, 64, 0).decode()

    def listen(self, port: int) -> socket.socket:
        """On this pod's address only."""
        if SHARED_VARIABLE not in os.environ:
            return listen_in(None, port, host=self._ip)
        sock = socket.create_server((self._ip, port), backlog=LISTEN_BACKLOG, reuse_port=True)
        sock.setblocking(False)
        return sock

    def listen_locally(self, port: int) -> socket.socket:
        """The pod's address is all the loopback that it has."""
        return self.listen(port)

    def listen_for_names(self, port: int) -> list[tuple[socket.socket, socket.socket]]:
        """Nobody asks for names here."""
        return []

    def ask(self, address: Address) -> socket.socket:
        """Raises OSError: nobody does."""
        raise OSError(errno.ENETUNREACH, "no name server is in reach")

    def original_destination(self, sock: socket.socket, peer: Address) -> Address:
        """Always the target. The kernel is asked a question, as in a pod, where conntrack knows an answer.

        Here it would know none, and to hear that costs Python five times as much.
        """
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 16)
        socket.inet_ntop(socket.AF_INET, raw[4:8])
        return self._target

    def dial(
        self, address: Address, on_done: OnDialled, *, source: str = "", live: Container[Address] = ()
    ) -> Cancellable | None:
        """From this pod's address, or from the client's, as in a pod."""
        return dial_socket(self._reactor, address, on_done, source=(source or self._ip, 0))

    def knocks(self) -> AbstractContextManager[Callable[[], bool]]:
        """Handshakes on loopback are never half done."""
        return nullcontext(lambda: False)

    def close(self) -> None:
        """Nothing is left of it."""
        os.close(self._fd)


class LoopbackDaemon(Daemon):
    """The daemon without HTTP of its own, so that two fit one machine."""

    def __init__(self, reactor: Reactor, settings: Settings, control: socket.socket, target: Address) -> None:
        super().__init__(reactor, settings, control, lambda reactor, fd: LoopbackNetwork(reactor, target, fd))

    async def _serve_http(self) -> None:
        pass


def main() -> int:
    """Serve until SIGTERM."""
    settings = read_settings(os.environ)
    ip, _, port = os.environ[TARGET_VARIABLE].rpartition(":")
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(ztunnel_main.Lines())
    logging.basicConfig(level=logging.INFO, handlers=[output])
    raise_file_limit()
    if UNPOOLED_VARIABLE in os.environ:
        vars(pool)["PoolPlan"] = OneStreamEach
    collector.settle()
    control = control_socket()
    host.run(lambda reactor: LoopbackDaemon(reactor, settings, control, (ip, int(port))).run())
    return 0


if __name__ == "__main__":
    sys.exit(zygote.main(main))
