"""The processes of a mesh, as ``ambient status`` shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ambient.fabric.initclient import Process


@dataclass(eq=False, slots=True, kw_only=True)
class Entry:
    """One program that is kept running.

    Attributes:
        name: For example ``"ztunnel/node-1"``, ``"app/bookinfo/details-v1-0/details"``.
        role: control, agent, ztunnel, waypoint, sidecar or app.
        pod: ``namespace/name``, or "" for daemons of nodes.
        restarts: How often it was started again.
    """

    name: str
    role: str
    log: str
    node: str = ""
    pod: str = ""
    container: str = ""
    process: Process | None = None
    restarts: int = 0

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        return self.process is not None and self.process.running

    @property
    def pid(self) -> int:
        """Host PID, 0 while it does not run."""
        return self.process.host_pid if self.process is not None and self.process.running else 0

    def status(self) -> dict[str, Any]:
        """As one of ``processes`` of the ``status`` call."""
        return {
            "name": self.name,
            "role": self.role,
            "node": self.node,
            "pod": self.pod,
            "container": self.container,
            "pid": self.pid,
            "started": self.process.started if self.process is not None else 0.0,
            "restarts": self.restarts,
            "log": self.log,
        }


@dataclass(slots=True)
class Table:
    """All of them, in the order they came."""

    _entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> Entry:
        """Show *entry* until it is removed."""
        self._entries.append(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        """Show it no longer."""
        self._entries.remove(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries))

    def pid(self, name: str) -> int:
        """Host PID of the running program of that name, or 0."""
        return next((entry.pid for entry in self._entries if entry.name == name), 0)
