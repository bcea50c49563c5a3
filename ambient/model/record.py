"""The access record: the one line about a finished connection.

Floor 0: a value and two pure forms of it; who writes it where is the daemon's business.

Source: the access log of Istio's ztunnel (``src/proxy/metrics.rs``): its names, its order, its
message texts, so that what people grep for in a cluster they find here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from ambient.model.identity import SpiffeId


class Direction(Enum):
    """Which way the connection crossed the workload that the writer serves."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"

    @property
    def reporter(self) -> str:
        """Which end of the connection writes this record."""
        return "source" if self is Direction.OUTBOUND else "destination"


class Flag(Enum):
    """Istio's ``response_flags``: why a connection did not end well."""

    NONE = "-"
    DENY = "DENY"
    CONNECT = "CONNECT"
    TLS_FAILURE = "TLS_FAILURE"
    H2_HANDSHAKE_FAILURE = "H2_HANDSHAKE_FAILURE"
    NETWORK_POLICY = "NETWORK_POLICY"
    IDENTITY_ERROR = "IDENTITY_ERROR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One end of a connection, as far as it is known.

    Attributes:
        address: ``ip:port`` text, v6 bracketed.
        identity: Proven by a certificate, never guessed from the address.
        cluster: Named only for ends that are known workloads.
    """

    address: str
    workload: str = ""
    namespace: str = ""
    identity: SpiffeId | None = None
    cluster: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRecord:
    """A connection at its end.

    Attributes:
        ended: When it ended, in UTC.
        hbone_address: The target inside the tunnel; ``destination.address`` is then the tunnel's.
        service: Host name of the service that was addressed, or "".
        bytes_sent: By the source at the source, by the destination at the destination.
        duration: Seconds.
        error: Empty if all went well.
        early: The connection was refused before it could be attributed ("connection failed").
    """

    ended: datetime
    direction: Direction
    source: Peer
    destination: Peer
    hbone_address: str = ""
    service: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    duration: float = 0.0
    error: str = ""
    flag: Flag = Flag.NONE
    early: bool = False

    @property
    def level(self) -> str:
        """``info`` for what ended well, ``error`` for what did not, ``warn`` for early refusals."""
        if not self.error:
            return "info"
        return "warn" if self.early else "error"

    @property
    def message(self) -> str:
        """ztunnel's text for this kind of record."""
        return "connection failed" if self.early else "connection complete"


def format_text(record: AccessRecord) -> str:
    """One line, tab-separated head, then ``name=value`` fields; absent fields are left out."""
    fields = " ".join(
        f"{name}={_quote(value) if quoted else value}" for name, value, quoted in _fields(record)
    )
    return f"{_time(record.ended)}\t{record.level}\taccess\t{record.message}\t{fields}"


def format_json(record: AccessRecord) -> str:
    """The same names as one JSON object."""
    head: dict[str, str | int] = {
        "level": record.level,
        "time": _time(record.ended),
        "scope": "access",
        "message": record.message,
    }
    return json.dumps(head | {name: value for name, value, _quoted in _fields(record)})


def _fields(record: AccessRecord) -> Iterator[tuple[str, str | int, bool]]:
    """``(name, value, quoted)`` in ztunnel's order."""
    for name, value, quoted in _candidates(record):
        if value != "":
            yield name, value, quoted


def _candidates(record: AccessRecord) -> Iterator[tuple[str, str | int, bool]]:
    yield from _peer("src", record.source)
    address, *rest = _peer("dst", record.destination)
    yield address
    yield "dst.hbone_addr", record.hbone_address, False
    yield "dst.service", record.service, True
    yield from rest
    yield "direction", record.direction.value, True
    if not record.early:
        yield "bytes_sent", record.bytes_sent, False
        yield "bytes_recv", record.bytes_received, False
        yield "duration", f"{int(record.duration * 1000)}ms", True
    yield "error", record.error, True


def _peer(prefix: str, peer: Peer) -> Iterator[tuple[str, str, bool]]:
    yield f"{prefix}.addr", peer.address, False
    yield f"{prefix}.workload", peer.workload, True
    yield f"{prefix}.namespace", peer.namespace, True
    yield f"{prefix}.identity", str(peer.identity or ""), True
    yield f"{prefix}.cluster", peer.cluster, True


def _quote(value: str | int) -> str:
    # JSON's escapes: a peer that gets its text into an error can forge neither a field nor a line.
    return json.dumps(value)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
