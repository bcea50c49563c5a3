"""Where the end of every connection is written: the access log and the metrics.

Lines are gathered during one batch of the reactor and written once at its end, because a write for
each connection costs more than the record itself.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ambient.engine.reactor import Reactor
from ambient.model.record import (
    AccessRecord,
    Flag,
    format_json,
    format_text,
    format_time,
    format_well_ended,
)
from ztunnel.levels import LEVELS, Levels
from ztunnel.metrics import Series, TcpMetrics, Traffic, closed

LOG_FD = 2


class Journal:
    """Records and counts; one for the process.

    Args:
        write: Takes the text of one or more whole lines.
        json: Write records as JSON.
        levels: Below which level records are counted but not written; INFO, which is all, by default.

    Attributes:
        terse: ``ended_well`` will do for what ended well, where records of level INFO are written.
    """

    def __init__(
        self,
        reactor: Reactor,
        metrics: TcpMetrics,
        *,
        write: Callable[[str], None] | None = None,
        json: bool = False,
        levels: Levels | None = None,
    ) -> None:
        self.metrics = metrics
        self.json = json
        self.terse = not json
        self.levels = levels or Levels()
        self._reactor = reactor
        self._write = write or write_log
        self._format = format_json if json else format_text
        self._lines: list[str] = []
        self._second = 0
        self._until_second = ""  # "2026-11-27T22:59:01." for it.
        self._time = ""  # Of the first of them that ended well.

    def now(self) -> datetime:
        """The time of day for a record."""
        return datetime.fromtimestamp(time.time(), UTC)

    def opened(self, traffic: Traffic) -> Series:
        """Count a connection whose ends are known; give the result to ``ended``."""
        return self.metrics.opened(traffic)

    def began(self, record: AccessRecord) -> None:
        """Say that a connection has begun, if access records are asked for in such detail (DEBUG)."""
        if not self._lines:
            self._reactor.call_soon(self.flush)
        self._lines.append(self._format(record))

    def failed(self, reporter: str, traffic: Traffic | None, flag: Flag) -> None:
        """Count a connection that was never established; ``ended`` is called for it too."""
        self.metrics.failed(reporter, traffic, flag)

    def ended(self, record: AccessRecord, series: Series | None) -> None:
        """Write the one record of a connection, and count its end if its beginning was counted."""
        if series is not None:
            closed(series, record.flag)
        if self.levels.access > logging.INFO and LEVELS[record.level] < self.levels.access:
            return
        if not self._lines:
            self._reactor.call_soon(self.flush)
        self._lines.append(self._format(record))

    def ended_well(
        self, series: Series, source: str, ends: str, sent: int, received: int, seconds: float
    ) -> None:
        """``ended`` where nothing but these is new; see ``format_well_ended``.

        Connections that end in one batch are said to have ended at the same moment.
        """
        series.closed_well += 1
        lines = self._lines
        if not lines:
            self._reactor.call_soon(self.flush)
        if not self._time:
            self._time = self._format_now()
        lines.append(format_well_ended(self._time, source, ends, sent, received, seconds))

    def _format_now(self) -> str:
        """``format_time(self.now())``, whose date and time of day change once a second."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._until_second = format_time(datetime.fromtimestamp(second, UTC))[:20]
        return f"{self._until_second}{int((now - second) * 1_000_000):06d}Z"

    def flush(self) -> None:
        """Write what was gathered; the daemon calls it once more at its end."""
        self._time = ""
        if self._lines:
            lines, self._lines = self._lines, []
            self._write("\n".join(lines) + "\n")


def write_log(text: str) -> None:
    """Write whole lines to the log, all of them."""
    data = memoryview(text.encode())
    while data:
        data = data[os.write(LOG_FD, data) :]
