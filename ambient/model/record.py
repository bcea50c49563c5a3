"""The access record: the one line about a finished connection.

Floor 0: a value and two pure forms of it; who writes it where is the daemon's business.

Source: the access log of Istio's ztunnel (``src/proxy/metrics.rs``): its names, its order, its
message texts, so that what people grep for in a cluster they find here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from ambient.model.identity import SpiffeId

# Ends whose fields are kept as text; a node talks to fewer. Picked, not measured.
REMEMBERED_PEERS = 4096


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
        opened: It is no record of the end but the word, on request, that one has begun.
        trace: The trace it belongs to, 32 hexadecimal digits, the same in the records of both its ends. Only
            in JSON: the text form is Istio's.
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
    trace: str = ""
    opened: bool = False

    @property
    def level(self) -> str:
        """``info`` for what ended well, ``error`` for what did not, ``warn`` for early refusals."""
        if self.opened:
            return "debug"
        if not self.error:
            return "info"
        return "warn" if self.early else "error"

    @property
    def message(self) -> str:
        """ztunnel's text for this kind of record."""
        if self.opened:
            return "connection opened"
        return "connection failed" if self.early else "connection complete"


def format_text(record: AccessRecord) -> str:
    """One line, tab-separated head, then ``name=value`` fields; absent fields are left out."""
    parts = [
        f"{format_time(record.ended)}\t{record.level}\taccess\t{record.message}"
        f"\tsrc.addr={record.source.address}{format_ends(record)}"
    ]
    if not record.early and not record.opened:
        parts.append(_carried(record.bytes_sent, record.bytes_received, record.duration))
    if record.error:
        parts.append(f" error={_quote(record.error)}")
    return "".join(parts)


def format_well_ended(time: str, source: str, ends: str, sent: int, received: int, seconds: float) -> str:
    """``format_text`` of a connection that ended well, of which nearly all is known beforehand.

    Args:
        time: ``format_time`` of its end.
        source: The address that ``src.addr`` names.
        ends: ``format_ends`` of any record of the same kind of connection.
    """
    carried = _carried(sent, received, seconds)
    return f"{time}\tinfo\taccess\tconnection complete\tsrc.addr={source}{ends}{carried}"


def format_ends(record: AccessRecord) -> str:
    """What a line says of both ends after the source's address, which differs between connections."""
    source, destination = record.source, record.destination
    parts = [
        _who("src", source.workload, source.namespace, source.identity, source.cluster),
        f" dst.addr={destination.address}",
    ]
    if record.hbone_address:
        parts.append(f" dst.hbone_addr={record.hbone_address}")
    if record.service:
        parts.append(f" dst.service={_quote(record.service)}")
    parts.append(
        _who("dst", destination.workload, destination.namespace, destination.identity, destination.cluster)
    )
    parts.append(f' direction="{record.direction.value}"')
    return "".join(parts)


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC, as records have it."""
    # Not strftime, which takes ten times as long. Records are in UTC, whose offset is cut off.
    return moment.isoformat(timespec="microseconds")[:26] + "Z"


def format_json(record: AccessRecord) -> str:
    """The same names as one JSON object."""
    head: dict[str, str | int] = {
        "level": record.level,
        "time": format_time(record.ended),
        "scope": "access",
        "message": record.message,
    }
    return json.dumps(head | dict(_fields(record)))


def _fields(record: AccessRecord) -> Iterator[tuple[str, str | int]]:
    """``(name, value)`` in ztunnel's order."""
    for name, value in _candidates(record):
        if value != "":
            yield name, value


def _candidates(record: AccessRecord) -> Iterator[tuple[str, str | int]]:
    source, destination = record.source, record.destination
    yield "src.addr", source.address
    yield from _peer("src", source)
    yield "dst.addr", destination.address
    yield "dst.hbone_addr", record.hbone_address
    yield "dst.service", record.service
    yield from _peer("dst", destination)
    yield "direction", record.direction.value
    if not record.early and not record.opened:
        yield "bytes_sent", record.bytes_sent
        yield "bytes_recv", record.bytes_received
        yield "duration", f"{int(record.duration * 1000)}ms"
    yield "error", record.error
    yield "trace_id", record.trace


def _peer(prefix: str, peer: Peer) -> Iterator[tuple[str, str]]:
    yield f"{prefix}.workload", peer.workload
    yield f"{prefix}.namespace", peer.namespace
    yield f"{prefix}.identity", str(peer.identity or "")
    yield f"{prefix}.cluster", peer.cluster


@functools.lru_cache(maxsize=REMEMBERED_PEERS)
def _who(prefix: str, workload: str, namespace: str, identity: SpiffeId | None, cluster: str) -> str:
    """The fields of one end that are the same for all its connections, each with a space before it."""
    peer = Peer(address="", workload=workload, namespace=namespace, identity=identity, cluster=cluster)
    return "".join(f" {name}={_quote(value)}" for name, value in _peer(prefix, peer) if value)


def _quote(value: str) -> str:
    # JSON's escapes: a peer that gets its text into an error can forge neither a field nor a line.
    return json.dumps(value)


def _carried(sent: int, received: int, seconds: float) -> str:
    return f' bytes_sent={sent} bytes_recv={received} duration="{int(seconds * 1000)}ms"'
