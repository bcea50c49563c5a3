"""The headers beside an HBONE CONNECT: ``baggage``, ``forwarded`` and ``traceparent``.

Floor 1: text and values. They describe, they prove nothing: no decision may rest on what a peer says
about itself here; identity comes from its certificate and its address from the socket.

Sources: Istio's ztunnel (``src/baggage.rs``, ``src/proxy/h2/client.rs``) for keys and order, W3C Baggage 3.2
and W3C Trace Context 2.2 for the forms, RFC 7239 section 4 for ``forwarded``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

from ambient.model.workload import Workload

# Far above seven Kubernetes names; a longer header is somebody else's and is not read.
MAX_BAGGAGE_BYTES = 4096

_SPAN = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_FORWARDED = re.compile(
    r'for="(\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|[0-9.]+:[0-9]{1,5})"(?:;host=([A-Za-z0-9._-]+))?'
)
# Label values and names; everything else is percent-encoded, so that no value can end its member.
_SAFE = "._-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baggage:
    """What a proxy says about the workload it speaks for; "" is "not said"."""

    cluster: str = ""
    namespace: str = ""
    workload_name: str = ""
    workload_type: str = "deployment"
    service_name: str = ""
    revision: str = ""
    region: str = ""
    zone: str = ""


# Istio's keys for the workload's name, by its type.
_WORKLOAD_TYPES = ("deployment", "pod", "job", "cronjob")
_FIELDS = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "namespace",
    "service.name": "service_name",
    "service.version": "revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}


def baggage_of(workload: Workload, cluster: str) -> Baggage:
    """What we say about *workload*: by its Deployment if it has one, else by its own name."""
    return Baggage(
        cluster=cluster,
        namespace=workload.namespace,
        workload_name=workload.workload_name or workload.name,
        workload_type="deployment" if workload.workload_name else "pod",
        service_name=workload.canonical_name,
        revision=workload.canonical_revision,
    )


def format_baggage(baggage: Baggage) -> str:
    """The header's value; members without a value are left out."""
    return ",".join(f"{key}={quote(value, safe=_SAFE)}" for key, value in _members(baggage) if value)


def parse_baggage(text: str) -> Baggage:
    """Read a ``baggage`` header; what is unknown or malformed in it is skipped."""
    found: dict[str, str] = {}
    if len(text) <= MAX_BAGGAGE_BYTES:
        for member in text.split(","):
            # Properties after ";" are allowed by W3C and mean nothing to us.
            key, equals, value = member.partition(";")[0].partition("=")
            found |= _read_member(key.strip(), unquote(value.strip())) if equals else {}
    return Baggage(**found)


def _members(baggage: Baggage) -> Iterator[tuple[str, str]]:
    """ztunnel's order."""
    yield "k8s.cluster.name", baggage.cluster
    yield "k8s.namespace.name", baggage.namespace
    yield f"k8s.{baggage.workload_type}.name", baggage.workload_name
    yield "service.name", baggage.service_name
    yield "service.version", baggage.revision
    yield "cloud.region", baggage.region
    yield "cloud.availability_zone", baggage.zone


def _read_member(key: str, value: str) -> dict[str, str]:
    if key in _FIELDS:
        return {_FIELDS[key]: value}
    match key.split("."):
        case ["k8s", kind, "name"] if kind in _WORKLOAD_TYPES:
            return {"workload_type": kind, "workload_name": value}
        case _:
            return {}


def format_forwarded(source: str, host: str = "") -> str:
    """``for="IP:PORT"``, and the service's host name where one was addressed."""
    return f'for="{source}"' + (f";host={host}" if host else "")


def parse_forwarded(text: str) -> tuple[str, str] | None:
    """Return ``(source address, host or "")``, or None if it is not of our form."""
    found = _FORWARDED.fullmatch(text)
    return (found[1], found[2] or "") if found else None


def format_traceparent(trace: int, span: int) -> str:
    """A version-00 ``traceparent``, not sampled; only the lowest 128 and 64 bits count."""
    return f"00-{trace % 2**128:032x}-{span % 2**64:016x}-00"


def traceparent_of(chance: int) -> str:
    """``format_traceparent`` of a new trace, of 192 bits left to chance."""
    text = f"{chance:048x}"
    return f"00-{text[:32]}-{text[32:]}-00"


def next_traceparent(text: str, span: int) -> str:
    """The ``traceparent`` of our own part of the trace that *text* belongs to: same trace, same flags.

    Args:
        text: One for which ``is_traceparent`` holds.
    """
    version, trace, _theirs, flags = text.split("-")
    return f"{version}-{trace}-{span % 2**64:016x}-{flags}"


def traceparent_in(headers: Iterable[tuple[str, str]]) -> str:
    """The one ``traceparent`` among *headers*; "" if there is none, more than one, or an odd one."""
    found = [value for name, value in headers if name == "traceparent"]
    return found[0] if len(found) == 1 and is_traceparent(found[0]) else ""


def is_traceparent(text: str) -> bool:
    """Whether *text* is a ``traceparent`` we may pass on."""
    return _SPAN.fullmatch(text) is not None
