"""A mesh whose every answer a test chooses, behind the port that a measurement uses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ambient.bench.measure import Proxy, Switched
from ambient.bench.plan import Turn

PLAIN = {
    "packets": 50, "dropped": 0, "captured_bytes": 1000, "link_bytes_low": 900, "link_bytes_high": 1100,
    "markers": 4, "plaintext": 9, "hellos": 0, "wire_bytes": 500,
}  # fmt: skip
SECRET = {**PLAIN, "markers": 0, "plaintext": 0, "hellos": 6}


class Script:
    """A talker that says what it was given."""

    def __init__(self, events: Sequence[dict[str, Any]]) -> None:
        self._events = list(events)
        self.heard: list[str] = []
        self.closed = False

    def expect(self, event: str, timeout: float) -> dict[str, Any]:
        """The next event, which must be the expected one."""
        said = self._events.pop(0)
        assert said["event"] == event
        return said

    def say(self, line: str) -> None:
        """Remember what was said."""
        self.heard.append(line)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


@dataclass
class FakePort:
    """Keeps the contract of ``LiveMesh``.

    Attributes:
        wire: Mode -> what the capture sees; None for a fabric without a wire.
        flapping: Whether a proxy is another process after the load.
    """

    sent: int = 400
    failed: int = 0
    wire: dict[str, dict[str, Any]] | None = field(
        default_factory=lambda: {
            "none": PLAIN,
            "sidecar": SECRET,
            "ambient": SECRET,
            "ambient+waypoint": SECRET,
        }
    )
    flapping: bool = False
    pid: int = field(default_factory=os.getpid)
    turns: list[Turn] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)
    arguments: list[Sequence[str]] = field(default_factory=list)
    asked: int = 0

    def switch(self, turn: Turn) -> Switched:
        """Remember the order."""
        self.turns.append(turn)
        return Switched(0.5, 7 if turn.mode == "sidecar" else 0)

    def proxies(self) -> Sequence[Proxy]:
        """One of every role, all of them this very process."""
        self.asked += 1
        tail = f"#{self.asked}" if self.flapping else ""
        roles = ("ztunnel", "sidecar", "waypoint", "control")
        return [
            Proxy(name=f"{role}/x{tail}", role=role, node="node-1", pod=None, pid=self.pid) for role in roles
        ]

    def load(self, arguments: Sequence[str]) -> Script:
        """A load that went as the test says; burns CPU so that there is something to divide."""
        self.arguments.append(arguments)
        ok = self.sent - self.failed
        sum(range(200_000))
        result = {
            "event": "result", "sent": self.sent, "ok": ok, "failed": self.failed, "errors": {},
            "achieved_rps": ok / 4.0, "latencies_us": list(range(1000, 1000 + ok)), "lags_us": [50],
        }  # fmt: skip
        return self._script([{"event": "ready"}, result])

    def capture(self, marker: str) -> Script | None:
        """What the wire showed."""
        if self.wire is None:
            return None
        return self._script([{"event": "ready"}, {"event": "result", **self.wire[self.turns[-1].mode]}])

    def _script(self, events: Sequence[dict[str, Any]]) -> Script:
        self.scripts.append(Script(events))
        return self.scripts[-1]
