"""A whole comparison against a fake mesh: the document, its gates, its text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ambient.bench import report, text
from ambient.bench import run as bench_run
from ambient.bench.agreement import agreements
from ambient.bench.plan import Options
from tests.unit.bench.fake_port import PLAIN, SECRET, FakePort

OPTIONS = Options(rate=100, duration=20, rounds=5)
SUBJECT = bench_run.Subject("bookinfo", "netns", 1024)


def compare(port: FakePort, options: Options = OPTIONS) -> dict[str, Any]:
    """Run and return the document, as it reads back from JSON."""
    found = bench_run.run(port, SUBJECT, options, lambda _line: None)
    document: dict[str, Any] = json.loads(json.dumps(report.document(found)))
    return document


def mode(document: dict[str, Any], name: str) -> dict[str, Any]:
    """One entry of ``modes``."""
    return next(one for one in document["modes"] if one["mode"] == name)


def test_the_document_has_the_shape_that_others_parse() -> None:
    """Names of the interfaces page; fields may be added, none renamed."""
    document = compare(FakePort())

    assert (document["apiVersion"], document["kind"]) == ("ambient/v1", "BenchRun")
    assert document["load"] == {
        "offered_rps": 100, "duration_seconds": 20, "connections": 16, "payload_bytes": 1024, "rounds": 5,
    }  # fmt: skip
    ambient = mode(document, "ambient")
    assert {
        "mode",
        "engine",
        "valid",
        "invalid_because",
        "requests",
        "latency_us",
        "proxies",
        "totals",
        "cost",
    } <= set(ambient)
    assert {"sent", "ok", "failed", "achieved_rps", "schedule_lag_p99_us"} <= set(ambient["requests"])
    assert set(ambient["latency_us"]) == {"p50", "p90", "p99", "p999", "max", "p99_ci95"}
    assert {
        "name",
        "role",
        "node",
        "pod",
        "cpu_seconds",
        "cpu_us_per_request",
        "pss_bytes",
        "rss_bytes",
        "threads",
    } <= set(ambient["proxies"][0])
    assert {
        "proxies", "cpu_us_per_request", "cpu_cores", "pss_bytes", "handshakes", "bytes_on_wire",
        "pod_restarts", "enroll_seconds",
    } <= set(ambient["totals"])  # fmt: skip
    assert set(document["ratios"]["ambient/sidecar"]) == {
        "cpu_us_per_request", "pss_bytes", "latency_p50", "latency_p99",
    }  # fmt: skip
    assert {"rps_within_3_percent", "no_errors", "traffic_proven_encrypted", "client_not_saturated"} <= set(
        document["gates"]
    )


def test_each_mode_is_charged_for_its_own_proxies() -> None:
    """An idle ztunnel beside sidecars would not be there in a cluster."""
    document = compare(FakePort())

    roles = {one["mode"]: [each["role"] for each in one["proxies"]] for one in document["modes"]}
    assert roles == {
        "none": [], "sidecar": ["sidecar"], "ambient": ["ztunnel"],
        "ambient+waypoint": ["waypoint", "ztunnel"],
    }  # fmt: skip


def test_totals_are_over_all_rounds() -> None:
    """5 rounds of 400 requests, 3 handshakes (each seen on two links) and 500 bytes a round."""
    sidecar = mode(compare(FakePort()), "sidecar")

    assert sidecar["valid"]
    assert sidecar["requests"]["sent"] == 2000
    assert sidecar["totals"]["handshakes"] == 15
    assert sidecar["totals"]["bytes_on_wire"] == 2500
    assert sidecar["totals"]["pod_restarts"] == 7
    assert sidecar["totals"]["enroll_seconds"] == 0.5
    assert sidecar["latency_us"]["p50"] == 1199
    assert sidecar["totals"]["cpu_us_per_request"] > 0


def test_equal_latency_is_a_resolved_ratio_of_one() -> None:
    """Every round the same: no width at all."""
    ratio = compare(FakePort())["ratios"]["ambient/sidecar"]["latency_p50"]

    assert ratio == {"value": 1.0, "ci95": [1.0, 1.0], "resolved": True}


def test_modes_are_interleaved_and_everything_is_closed() -> None:
    """Five rounds, each with four modes; captures stopped, generators started by a word."""
    port = FakePort()
    compare(port)

    assert len(port.turns) == 20
    assert all(len({turn.mode for turn in port.turns[i : i + 4]}) == 4 for i in range(0, 20, 4))
    assert all(script.closed for script in port.scripts)
    assert sorted(word for script in port.scripts for word in script.heard) == ["go"] * 20 + ["stop"] * 20


def test_the_same_round_has_the_same_arrivals_in_every_mode() -> None:
    """And another round others; the marker changes with the round."""
    port = FakePort()
    compare(port)

    def option(arguments: Any, name: str) -> str:
        return str(arguments[list(arguments).index(name) + 1])

    for name in ("--seed", "--marker"):
        values = [option(arguments, name) for arguments in port.arguments]
        assert [len(set(values[i : i + 4])) for i in range(0, 20, 4)] == [1] * 5
        assert len(set(values)) == 5


def test_plaintext_in_an_encrypted_mode_makes_it_invalid_and_no_ratio() -> None:
    """The number is never compared; the reason stands in its place."""
    port = FakePort()
    assert port.wire is not None
    port.wire["ambient"] = PLAIN
    document = compare(port)

    assert mode(document, "ambient")["invalid_because"] == ["plaintext on the wire between the nodes"]
    ratio = document["ratios"]["ambient/sidecar"]["cpu_us_per_request"]
    assert (ratio["value"], ratio["ci95"], ratio["resolved"]) == (None, None, False)
    assert "plaintext" in ratio["unresolved_because"]
    assert document["gates"]["traffic_proven_encrypted"] is False
    assert "ambient (ambient) is invalid: plaintext" in text.summary(document)


@pytest.mark.parametrize("modes", [("sidecar", "ambient"), ("none", "ambient")], ids=["no-none", "blind"])
def test_without_the_counter_proof_nothing_is_proven(modes: tuple[str, ...]) -> None:
    """Absence of the marker counts only if the same capture can see it."""
    port = FakePort()
    assert port.wire is not None
    port.wire["none"] = SECRET
    document = compare(port, Options(rate=100, duration=20, rounds=5, modes=modes))

    assert not mode(document, "ambient")["valid"]
    assert document["gates"]["traffic_proven_encrypted"] is False


def test_a_fabric_without_a_wire_proves_nothing() -> None:
    """Loopback has no nodes to capture between."""
    document = compare(FakePort(wire=None))

    assert not any(one["valid"] for one in document["modes"])
    assert mode(document, "ambient")["totals"]["handshakes"] == 0


def test_failures_and_flapping_proxies_are_invalid() -> None:
    """Errors, missing throughput and a restarted proxy each have their reason."""
    document = compare(FakePort(failed=40, flapping=True))

    reasons = " ".join(mode(document, "ambient")["invalid_because"])
    assert "200 of 2000 requests failed" in reasons
    assert "achieved 90.0% of the offered" in reasons
    assert "a proxy started or ended" in reasons
    assert document["gates"]["no_errors"] is False


def test_a_proxy_that_died_costs_nothing_but_validity() -> None:
    """Its clock cannot be read any more."""
    document = compare(FakePort(pid=2**22 + 1))

    assert not any(one["proxies"] for one in document["modes"])


def test_envoy_beside_our_sidecar_is_a_gate() -> None:
    """The same process in both roles here: about 1.0."""
    options = Options(rate=100, duration=20, rounds=5, judge=True)
    document = compare(FakePort(), options)

    assert [one["engine"] for one in document["modes"]] == ["ambient"] * 4 + ["envoy"]
    assert document["gates"]["sidecar_within_1_5x_envoy"] in (True, False)
    assert document["gates"]["sidecar_to_envoy_cpu"] > 0
    assert "sidecar/sidecar+envoy" in document["ratios"]


def test_a_straw_sidecar_takes_its_ratios_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """ambient/sidecar is a lie then; ambient+waypoint/ambient is not."""
    monkeypatch.setattr(report, "ours_to_envoy", lambda _run: 1.8)
    document = compare(FakePort(), Options(rate=100, duration=20, rounds=5, judge=True))

    assert document["ratios"]["ambient/sidecar"]["latency_p50"]["value"] is None
    assert document["ratios"]["ambient+waypoint/ambient"]["latency_p50"]["value"] == 1.0
    assert document["gates"]["sidecar_within_1_5x_envoy"] is False
    assert "1.80x Envoy's CPU" in text.summary(document)


def test_few_requests_are_unresolved_and_say_so() -> None:
    """The value is kept for the curious, the table does not show it."""
    document = compare(FakePort(sent=100), Options(rate=25, duration=20, rounds=5))

    ratio = document["ratios"]["ambient/sidecar"]["latency_p50"]
    assert ratio["resolved"] is False
    assert "2000 are needed" in ratio["unresolved_because"]
    summary = text.summary(document)
    assert "unresolved" in summary
    assert "was not compared with Envoy" in summary


def test_the_text_is_a_table_of_modes() -> None:
    """Mode, latency, cost: one row each."""
    document = compare(FakePort(), Options(rate=100, duration=20, rounds=5, judge=True))
    lines = text.summary(document).splitlines()

    assert lines[0].startswith("bookinfo: 100 requests/s over 16 connections")
    rows = [line.split("   ")[0] for line in lines[3:8]]
    assert rows == ["none", "sidecar", "ambient", "ambient+waypoint", "sidecar (envoy)"]
    assert text.markdown(("A", "B"), [("1", "2")]) == "| A | B |\n| --- | --- |\n| 1 | 2 |\n"


def test_two_runs_agree_where_their_intervals_meet() -> None:
    """And are not asked where one of them is not resolved."""
    one, other, open_ = (
        {"ratios": {"a/b": {"cpu": {"value": value, "ci95": ends, "resolved": resolved}}}}
        for value, ends, resolved in ((1, [0.9, 1.1], True), (1.3, [1.2, 1.4], True), (1, None, False))
    )

    assert [found["agrees"] for found in agreements(one, one)] == [True]
    assert [found["agrees"] for found in agreements(one, other)] == [False]
    assert [found["agrees"] for found in agreements(other, one)] == [False]
    assert [found["agrees"] for found in agreements(one, open_)] == [None]
    assert agreements(one, {"ratios": {}}) == []


def test_an_interrupted_run_reports_no_number() -> None:
    """A mode without a round is invalid, not zero."""
    entry = report.mode_document(OPTIONS.turns[0], [], ["no round was completed"])

    assert not entry["valid"]
    assert entry["cost"]["watts"] == {"low": 0.0, "mid": 0.0, "high": 0.0}
