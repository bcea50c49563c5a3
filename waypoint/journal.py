"""Where the end of every request and connection is written: the access log and the metrics.

Lines are gathered during one batch of the reactor and written once, because a write for each request
costs more than the record itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ambient.engine.reactor import Reactor
from ambient.model.record import AccessRecord, format_text
from waypoint.metrics import RequestMetrics

LOG_FD = 2
# Lines wait at most so long for company; Envoy's access log waits ten seconds.
FLUSH_SECONDS = 0.1


class Journal:
    """Records and counts; one for the process.

    Args:
        write: Takes the text of one or more whole lines.
        lines: Whether requests are written as lines at all; they are always counted.
    """

    def __init__(
        self,
        reactor: Reactor,
        metrics: RequestMetrics,
        *,
        write: Callable[[str], None] | None = None,
        lines: bool = True,
    ) -> None:
        self.metrics = metrics
        self.lines = lines
        self._reactor = reactor
        self._write = write or write_log
        self._pending: list[str] = []
        self._stamp = ""

    def now(self) -> datetime:
        """The time of day for a record."""
        return datetime.fromtimestamp(time.time(), UTC)

    def line(self, text: str) -> None:
        """Write one line about a request; its time is that of the first line it is written with."""
        if not self._pending:
            self._stamp = self.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self._reactor.call_later(FLUSH_SECONDS, self.flush)
        self._pending.append(f"{self._stamp}\tinfo\taccess\trequest complete\t{text}")

    def connection(self, record: AccessRecord) -> None:
        """Write the record of a connection that was carried without being read."""
        if not self._pending:
            self._reactor.call_later(FLUSH_SECONDS, self.flush)
        self._pending.append(format_text(record))

    def flush(self) -> None:
        """Write what was gathered; the daemon calls it once more at its end."""
        if self._pending:
            lines, self._pending = self._pending, []
            self._write("\n".join(lines) + "\n")


def quoted(text: bytes) -> str:
    """*text* as a field's value: in quotes, and unable to end them."""
    if b'"' in text or b"\\" in text or not text.isascii():
        return json.dumps(text.decode("latin-1"))
    return f'"{text.decode()}"'


def write_log(text: str) -> None:
    """Write whole lines to the log, all of them."""
    data = memoryview(text.encode())
    while data:
        data = data[os.write(LOG_FD, data) :]
