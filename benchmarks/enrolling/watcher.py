"""Says of many pods when each is first captured, seen from outside: a process of its own, like ``probe``.

    python -m benchmarks.enrolling.watcher <netns fd>

A line for each pod, its address and the path of its namespace; answered by [address, time] as it is captured.

Asking costs what the mesh could use: four watchers that asked all the time took a fifth of a core each. So a
pod is asked for when the kernel tells that its routing rules have changed, which is done just before it is
captured, and from then on every millisecond; or else now and then, in case that nothing has to be changed.
It says "ready" first: starting it is no part of what is measured.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ambient.engine.netns import in_netns, open_netns
from ambient.wire.netlink import NETLINK_ROUTE
from ambient.wire.nft_generation import RTNLGRP_IPV4_RULE
from benchmarks.enrolling.probe import PAUSE_SECONDS, is_captured

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
# Without news; picked.
OTHERWISE_SECONDS = 1.0


@dataclass(slots=True)
class Waiting:
    """One pod that is not captured yet."""

    address: str
    news: socket.socket
    due: float
    told: bool = False


class Watcher:
    """Asks from the namespace *netns*."""

    def __init__(self, netns: int) -> None:
        self._netns = netns
        self._epoll = select.epoll()
        self._epoll.register(0, select.EPOLLIN)
        self._waiting: dict[int, Waiting] = {}
        self._buffer = b""
        os.set_blocking(0, False)

    def run(self) -> None:
        """Until stdin closes."""
        print("ready", flush=True)
        while True:
            now = time.monotonic()
            first = min((each.due for each in self._waiting.values()), default=now + 1.0)
            for fd, _ in self._epoll.poll(max(0.0, first - now)):
                if fd != 0:
                    self._waiting[fd].told, self._waiting[fd].due = True, 0.0
                    self._epoll.unregister(fd)
                elif not self._read():
                    return
            now = time.monotonic()
            for waiting in [each for each in self._waiting.values() if each.due <= now]:
                self._ask(waiting)

    def _read(self) -> bool:
        data = os.read(0, 65536)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._watch(*line.decode().split())
        return bool(data)

    def _watch(self, address: str, path: str) -> None:
        netns = open_netns(Path(path))
        with in_netns(netns):
            news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        os.close(netns)
        news.bind((0, 0))
        news.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_IPV4_RULE)
        self._epoll.register(news, select.EPOLLIN)
        self._waiting[news.fileno()] = Waiting(address, news, time.monotonic())

    def _ask(self, waiting: Waiting) -> None:
        if is_captured(self._netns, waiting.address):
            print(json.dumps([waiting.address, time.monotonic()]), flush=True)
            del self._waiting[waiting.news.fileno()]
            waiting.news.close()
            return
        waiting.due = time.monotonic() + (PAUSE_SECONDS if waiting.told else OTHERWISE_SECONDS)


if __name__ == "__main__":
    Watcher(int(sys.argv[1])).run()
