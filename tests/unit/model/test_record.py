"""The access record reads like ztunnel's own."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from ambient.model.identity import SpiffeId
from ambient.model.record import (
    AccessRecord,
    Direction,
    Flag,
    Peer,
    format_ends,
    format_json,
    format_text,
    format_time,
    format_well_ended,
)

WEB = SpiffeId("cluster.local", "shop", "web")
API = SpiffeId("cluster.local", "shop", "api")
RECORD = AccessRecord(
    ended=datetime(2026, 5, 4, 9, 59, 5, 28709, tzinfo=UTC),
    direction=Direction.OUTBOUND,
    source=Peer(
        address="10.244.1.2:46508", workload="web-1", namespace="shop", identity=WEB, cluster="Kubernetes"
    ),
    destination=Peer(
        address="10.244.2.3:15008", workload="api-1", namespace="shop", identity=API, cluster="Kubernetes"
    ),
    hbone_address="10.244.2.3:8080",
    service="api.shop.svc.cluster.local",
    bytes_sent=81,
    bytes_received=1862,
    duration=0.0089,
)


def test_a_full_record_is_ztunnels_line() -> None:
    """People grep for these names, and scripts split at these tabs."""
    assert format_text(RECORD) == (
        "2026-05-04T09:59:05.028709Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.244.1.2:46508 src.workload="web-1" src.namespace="shop" '
        'src.identity="spiffe://cluster.local/ns/shop/sa/web" src.cluster="Kubernetes" '
        'dst.addr=10.244.2.3:15008 dst.hbone_addr=10.244.2.3:8080 dst.service="api.shop.svc.cluster.local" '
        'dst.workload="api-1" dst.namespace="shop" dst.identity="spiffe://cluster.local/ns/shop/sa/api" '
        'dst.cluster="Kubernetes" direction="outbound" bytes_sent=81 bytes_recv=1862 duration="8ms"'
    )


def test_what_ended_well_can_be_said_in_pieces() -> None:
    """Connections of one kind differ in little, and there are thousands of them a second."""
    other = dataclasses.replace(
        RECORD, source=dataclasses.replace(RECORD.source, address="10.244.1.2:1"), bytes_sent=1, duration=3
    )

    pieces = format_well_ended(format_time(other.ended), "10.244.1.2:1", format_ends(RECORD), 1, 1862, 3)

    assert pieces == format_text(other)


def test_what_is_not_known_is_left_out() -> None:
    """An empty field would look like a workload without a name."""
    record = AccessRecord(
        ended=RECORD.ended,
        direction=Direction.INBOUND,
        source=Peer(address="10.0.0.9:5"),
        destination=Peer(address="[fd00::1]:80"),
    )

    assert format_text(record).endswith(
        "src.addr=10.0.0.9:5 dst.addr=[fd00::1]:80 "
        'direction="inbound" bytes_sent=0 bytes_recv=0 duration="0ms"'
    )


@pytest.mark.parametrize(
    ("early", "level", "message", "tail"),
    [
        (False, "error", "connection complete", 'duration="8ms" error="denied by shop/no"'),
        (True, "warn", "connection failed", 'direction="outbound" error="denied by shop/no"'),
    ],
    ids=["after-attribution", "early"],
)
def test_a_failure_says_so(early: bool, level: str, message: str, tail: str) -> None:
    """Level and message are what an alert is built on."""
    failed = dataclasses.replace(RECORD, error="denied by shop/no", flag=Flag.DENY, early=early)

    line = format_text(failed)

    assert line.split("\t")[1] == level
    assert line.split("\t")[3] == message
    assert line.endswith(tail)


def test_a_peers_text_cannot_forge_a_line() -> None:
    """An error may carry bytes that a stranger chose."""
    forged = dataclasses.replace(RECORD, error='x" bytes_sent=0\n2026\tinfo')

    line = format_text(forged)

    assert "\n" not in line
    assert line.count("\t") == 4
    assert line.endswith(r'error="x\" bytes_sent=0\n2026\tinfo"')


def test_json_has_the_same_names() -> None:
    """One vocabulary, two forms."""
    document = json.loads(format_json(RECORD))

    assert document["level"] == "info"
    assert document["scope"] == "access"
    assert document["message"] == "connection complete"
    assert document["src.identity"] == str(WEB)
    assert document["bytes_recv"] == 1862
    assert "error" not in document


def test_each_end_has_its_reporter() -> None:
    """The metric label follows from the direction alone."""
    assert Direction.OUTBOUND.reporter == "source"
    assert Direction.INBOUND.reporter == "destination"
