"""The generator sends what the schedule says and counts what came of it; counts, never timing."""

from __future__ import annotations

import io
import json
import socket
import sys

import pytest

from ambient.bench import generator, load
from ambient.errors import ConfigError
from tests.unit.bench.server import OK, serving


def run(port: int, *, rate: float = 400, duration: float = 0.25, connections: int = 4) -> dict[str, object]:
    wanted = load.Load(
        url=f"http://127.0.0.1:{port}/page", rate=rate, duration=duration, connections=connections, seed=7
    )
    return load.drive(wanted, 0.0, lambda: None)


def test_arrivals_are_the_same_for_a_seed_and_exactly_as_many_as_promised() -> None:
    """Every mode of a comparison must get the same load."""
    first, again, other = (load.arrivals(100, 2, seed) for seed in (7, 7, 8))

    assert first == again != other
    assert len(first) == 200
    assert first == sorted(first)
    assert 0 <= first[0] <= first[-1] <= 2


def test_every_request_is_sent_once_and_counted() -> None:
    """Nothing is sent twice, nothing is forgotten."""
    with serving() as served:
        result = run(served.port)

    assert (result["sent"], result["ok"], result["failed"]) == (100, 100, 0)
    assert len(served.requests) == 100
    assert served.connections == 4
    assert result["body_bytes"] == [5]
    assert result["errors"] == {}
    assert len(result["latencies_us"]) == len(result["lags_us"]) == 100  # type: ignore[arg-type]


def test_the_marker_travels_in_every_request() -> None:
    """It is what the capture looks for."""
    with serving() as served:
        wanted = load.Load(
            url=f"http://127.0.0.1:{served.port}/a?b=c",
            rate=100,
            duration=0.1,
            connections=1,
            seed=1,
            marker="m4rk",
        )
        load.drive(wanted, 0.1, lambda: None)

    assert len(served.requests) == 20
    assert all(b"X-Ambient-Marker: m4rk" in head for head in served.requests)
    assert served.requests[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")


def test_a_bad_status_is_a_failure_with_its_name() -> None:
    """503 answered quickly must not look like a fast mesh."""
    bad = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
    with serving(lambda number: bad if number % 2 else OK) as served:
        result = run(served.port)

    assert (result["ok"], result["failed"]) == (50, 50)
    assert result["errors"] == {"status 503": 50}


def test_a_closed_connection_fails_its_request_and_is_replaced() -> None:
    """One reset is one failure, not the end of the run."""
    with serving(lambda number: None if number == 10 else OK) as served:
        result = run(served.port)

    assert (result["ok"], result["failed"], result["reconnects"]) == (99, 1, 1)
    assert served.connections == 5


def test_a_polite_close_costs_no_request() -> None:
    """``Connection: close`` is an answer, then a new connection."""
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with serving(lambda number: last if number == 10 else OK) as served:
        result = run(served.port)

    assert (result["ok"], result["failed"], result["reconnects"]) == (100, 0, 1)
    assert result["body_bytes"] == [0, 5]


def test_garbage_is_a_failure() -> None:
    """A length is validated, and so is the grammar."""
    with serving(lambda number: b"\x15\x03\x01 no http" if number == 3 else OK) as served:
        result = run(served.port)

    assert result["failed"] == 1
    assert "not an HTTP/1.1 response" in next(iter(result["errors"]))  # type: ignore[call-overload]


def test_an_answer_nobody_asked_for_is_not_counted_twice() -> None:
    """Two answers to one request mean a broken proxy, not two good requests."""
    with serving(lambda number: OK + OK if number == 5 else OK) as served:
        result = run(served.port, connections=1)

    assert result["ok"] == 99
    assert result["failed"] == 1


def test_what_is_never_answered_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends although the server does not answer; requests behind it were due, and failed too."""
    monkeypatch.setattr(generator, "GRACE_SECONDS", 0.2)
    with serving(lambda number: b"" if number == 3 else OK) as served:
        result = run(served.port, rate=100, duration=0.1, connections=1)

    assert (result["sent"], result["ok"], result["failed"]) == (10, 2, 8)
    assert result["errors"] == {"not answered in time": 1, "not sent in time": 7}


def test_a_server_that_goes_away_ends_the_run_with_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection left: everything still due fails, and the reason is kept."""
    monkeypatch.setattr(generator, "GRACE_SECONDS", 0.2)
    open_once = generator.Connection._open
    opened: list[int] = []

    def refuse_later(connection: generator.Connection) -> socket.socket:
        opened.append(1)
        if len(opened) > 1:
            raise ConnectionRefusedError(111, "refused")
        return open_once(connection)

    monkeypatch.setattr(generator.Connection, "_open", refuse_later)
    with serving(lambda number: None if number == 5 else OK) as served:
        result = run(served.port, rate=100, duration=0.1, connections=1)

    assert (result["ok"], result["failed"]) == (4, 6)
    assert "reconnect: refused" in result["errors"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("url", "message"),
    [("https://x/", "not an http"), ("x:80", "not an http"), ("http:///x", "not an http")],
    ids=["tls", "no-scheme", "no-host"],
)
def test_a_url_that_cannot_be_driven_is_refused(url: str, message: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError, match=message):
        load.request_bytes(url, "")


@pytest.mark.parametrize(
    "changed", [{"rate": 0}, {"duration": 0}, {"connections": 0}], ids=["rate", "span", "c"]
)
def test_a_load_of_nothing_is_refused(changed: dict[str, float]) -> None:
    """Zero requests would divide by zero later, and mean nothing now."""
    fields = {"url": "http://x/", "rate": 1.0, "duration": 1.0, "connections": 1, "seed": 1, **changed}
    with pytest.raises(ConfigError, match="above zero"):
        load.Load(**fields)  # type: ignore[arg-type]


def test_the_command_speaks_the_harness_protocol(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ready, go, result: the harness reads the proxies' clocks in between."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    with serving() as served:
        target = f"http://127.0.0.1:{served.port}/"
        code = load.main(["--target", target, "--rate", "100", "--duration", "0.1", "--json", "--wait-go"])

    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0
    assert [event["event"] for event in events] == ["ready", "result"]
    assert events[1]["ok"] == 10


def test_the_command_ends_when_the_harness_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A generator without a harness must not go on loading the mesh."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with serving() as served:
        code = load.main(["--target", f"http://127.0.0.1:{served.port}/", "--wait-go"])

    assert code == 1
    assert "the harness went away" in capsys.readouterr().err
    assert served.requests == []


def test_the_command_prints_a_summary_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """It is useful by hand, too."""
    with serving() as served:
        code = load.main(
            ["--target", f"http://127.0.0.1:{served.port}/", "--rate", "100", "--duration", "0.1"]
        )

    out = capsys.readouterr().out
    assert code == 0
    assert "10 of 10 ok" in out
    assert "errors: none" in out


def test_nobody_at_the_target_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong port or name is a message, not a traceback."""
    assert load.main(["--target", "http://127.0.0.1:1/"]) == 1
    assert load.main(["--target", "http://no.such.name.invalid/"]) == 1

    assert len(capsys.readouterr().err.splitlines()) == 2
