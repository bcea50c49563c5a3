"""The traffic generator: a process of its own, so that nobody's pauses but the mesh's are measured.

    python -m benchmarks.enrolling.traffic     # flows on stdin, then a command a line; an answer a line

Per flow (a pod's namespace, an address): new connections all the time, one every few milliseconds, and long
ones that are kept over enrollments. Everything is echoed and compared.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

from benchmarks.enrolling.flows import STALL_SECONDS, Client, Echo, Flow

# The figure.
NEW_EVERY_SECONDS = 0.005
# Of each long connection. 64 of them make 1280 kilobytes a second, which the small machine that this runs
# on carries through Python proxies without being busy; picked.
SAY_EVERY_SECONDS = 0.05
# New connections at the same time; beyond it the generator waits rather than pile up.
MAX_NEW = 512


class Traffic:
    """All connections.

    Args:
        servers: Namespaces of the pods that echo.
        flows: New and long connections take them in turn.
        patience: Seconds; a connection that has not echoed for so long is given up.
    """

    def __init__(self, servers: list[int], flows: list[Flow], patience: float = STALL_SECONDS) -> None:
        self.selector = selectors.DefaultSelector()
        self._flows, self._patience = flows, patience
        self._numbers = count(1)
        self._echoes = [Echo(self.selector, netns) for netns in servers]
        self._new: set[Client] = set()
        self.kept: dict[str, list[Client]] = {}
        self.new_ok = self.new_failed = self.lost_bytes = 0
        self.reasons: dict[str, int] = {}
        self.generating = False
        now = time.monotonic()
        self._next_new = self._next_say = self._next_check = now

    def turn(self) -> None:
        """One round of the loop: what is due, then what is ready."""
        now = time.monotonic()
        while self.generating and now >= self._next_new:
            self._next_new += NEW_EVERY_SECONDS
            if len(self._new) < MAX_NEW:
                self._new.add(self._open(next(self._numbers), self._ended_new))
        if now >= self._next_say:
            self._next_say = now + SAY_EVERY_SECONDS
            for client in self._all_kept():
                if client.idle:
                    client.say()
        if now >= self._next_check:
            self._next_check = now + 0.5
            self._find_stalled(now)
        wait = min(self._next_say, self._next_new if self.generating else self._next_say) - time.monotonic()
        for key, events in self.selector.select(max(0.0, wait)):
            key.data(events)
        for client in [each for each in self._new if each.idle]:
            client.close()

    def open_long(self, group: str, number: int) -> None:
        """Open *number* long connections, taking the flows in turn."""
        self.kept[group] = [self._open(next(self._numbers), self._ended_long) for _ in range(number)]

    def generate(self, on: bool) -> None:
        """Open new connections from now on, or no more."""
        self.generating = on
        self._next_new = time.monotonic()

    def quiet(self) -> bool:
        """Whether no new connection is under way."""
        return not self._new

    def close_long(self, group: str) -> bool:
        """End the long connections of *group* as a program would: after the last echo. Whether all have."""
        for client in self.kept[group]:
            if client.idle:
                client.close()
        return all(client.over for client in self.kept[group])

    def is_open(self, group: str) -> bool:
        """Whether every one of *group* has got an echo (or has failed)."""
        return all(client.received or client.over for client in self.kept[group])

    def cut(self, group: str) -> int:
        """How many of *group* ended before their time."""
        return sum(1 for client in self.kept.get(group, ()) if client.failure)

    def _open(self, number: int, on_end: Any) -> Client:
        flow = self._flows[number % len(self._flows)]
        return Client(self.selector, flow, number, on_end)

    def _all_kept(self) -> Iterator[Client]:
        for clients in self.kept.values():
            yield from (client for client in clients if not client.over)

    def _find_stalled(self, now: float) -> None:
        for client in [*self._new, *self._all_kept()]:
            if client.is_stalled(now, self._patience):
                client.fail(f"the generator waited {self._patience:g} s for an answer")

    def _ended_new(self, client: Client) -> None:
        self._new.discard(client)
        self.new_ok += client.done
        self.new_failed += not client.done
        self._note(client)

    def _ended_long(self, client: Client) -> None:
        self._note(client)

    def _note(self, client: Client) -> None:
        self.lost_bytes += client.lost_bytes
        if client.failure:
            why = f"{client.flow.name}: {client.failure}, {client.stage}"
            self.reasons[why] = self.reasons.get(why, 0) + 1
            moment = datetime.now(UTC).strftime("%H:%M:%S.%f")
            print(f"{moment} port {client.local}: {why}", file=sys.stderr)


class Desk:
    """Commands from stdin, each answered when it is done."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._waiting: Any = None
        self._buffer = b""
        os.set_blocking(0, False)
        traffic.selector.register(0, selectors.EVENT_READ, self._read)
        self.ended = False

    def serve(self) -> None:
        """Until stdin closes."""
        while not self.ended:
            self._traffic.turn()
            if self._waiting is not None and self._waiting():
                self._waiting = None
                print(json.dumps(self._answer()), flush=True)

    def _read(self, _events: int) -> None:
        data = os.read(0, 65536)
        self.ended = not data
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._waiting = self._obey(*line.decode().split())

    def _obey(self, verb: str, group: str = "", number: str = "0") -> Any:
        traffic = self._traffic
        match verb:
            case "start":
                traffic.generate(True)
            case "stop":
                traffic.generate(False)
                return traffic.quiet
            case "open":
                traffic.open_long(group, int(number))
                return lambda: traffic.is_open(group)
            case "close":
                return lambda: traffic.close_long(group)
        return lambda: True

    def _answer(self) -> dict[str, Any]:
        traffic = self._traffic
        return {
            "new_ok": traffic.new_ok,
            "new_failed": traffic.new_failed,
            "lost_bytes": traffic.lost_bytes,
            "cut": {group: traffic.cut(group) for group in traffic.kept},
            "reasons": traffic.reasons,
        }


def main() -> None:
    """Read the scene, then serve."""
    with open(0, "rb", buffering=0, closefd=False) as unbuffered:
        scene = json.loads(unbuffered.readline())
    flows = [Flow(*each) for each in scene["flows"]]
    Desk(Traffic(scene["servers"], flows, scene["patience"])).serve()


if __name__ == "__main__":
    main()
