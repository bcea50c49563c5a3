"""Lines are gathered, and none is lost."""

from __future__ import annotations

import dataclasses
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ambient.engine.reactor import Reactor
from ambient.model.record import AccessRecord, Direction, Flag, Peer
from ztunnel import journal
from ztunnel.journal import Journal
from ztunnel.levels import Levels, parse_levels
from ztunnel.metrics import TcpMetrics, Traffic

RECORD = AccessRecord(
    ended=datetime(2026, 1, 1, tzinfo=UTC),
    direction=Direction.INBOUND,
    source=Peer(address="10.0.0.1:1"),
    destination=Peer(address="10.0.0.2:2"),
    flag=Flag.DENY,
    error="no",
)


def test_records_of_one_batch_are_one_write() -> None:
    """A write for each connection costs more than the record."""
    reactor, written = Reactor(), list[str]()
    log = Journal(reactor, TcpMetrics(), write=written.append)
    series = log.opened(Traffic(reporter="destination", source=None, destination=None))

    log.ended(RECORD, series)
    log.ended(RECORD, None)
    assert written == []
    reactor.run_once(0)
    log.flush()

    assert len(written) == 1
    assert written[0].count("\n") == 2
    assert 'response_flags="DENY"} 1' in log.metrics.exposition()
    reactor.close()


def test_json_on_request() -> None:
    """For machines."""
    reactor, written = Reactor(), list[str]()
    log = Journal(reactor, TcpMetrics(), write=written.append, json=True)
    log.ended(RECORD, None)
    log.flush()

    assert written[0].startswith('{"level": "error"')
    assert abs((datetime.now(UTC) - log.now()).total_seconds()) < 5
    reactor.close()


def test_a_line_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take less than it is given."""
    file = tmp_path / "log"
    with file.open("wb") as output:
        monkeypatch.setattr(journal, "LOG_FD", output.fileno())
        real = os.write
        monkeypatch.setattr("ztunnel.journal.os.write", lambda fd, data: real(fd, bytes(data[:7])))
        journal.write_log("a line that is longer than seven bytes\n")

    assert file.read_text() == "a line that is longer than seven bytes\n"


def test_levels_say_which_records_are_written() -> None:
    """All by default, whatever else is logged; fewer, or their beginnings too, for who asks by name."""
    reactor, written, levels = Reactor(), list[str](), Levels()
    log = Journal(reactor, TcpMetrics(), write=written.append, levels=levels)
    fine = dataclasses.replace(RECORD, error="", flag=Flag.NONE)

    def messages(level: str) -> list[str]:
        levels.access = parse_levels(f"access:{level}")["access"]
        for record in (fine, RECORD, dataclasses.replace(RECORD, early=True)):
            log.ended(record, None)
        log.flush()
        lines = "".join(written).splitlines()
        written.clear()
        return [line.split("\t")[1] for line in lines]

    assert messages("info") == ["info", "error", "warn"]
    assert messages("warn") == ["error", "warn"]
    assert messages("error") == ["error"]
    assert messages("off") == []

    log.began(dataclasses.replace(fine, opened=True))
    log.flush()
    assert "\tdebug\taccess\tconnection opened\tsrc.addr=10.0.0.1:1" in written[0]
    assert "bytes_sent" not in written[0]
    reactor.close()
