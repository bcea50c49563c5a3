"""istioctl's ``ztunnel-config`` tables: a config dump in, rows out.

Floor 6, pure. Reads what our ztunnel writes and what Istio's does: there, lists were maps once, and what
we do not have may be missing or null.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from ambient.errors import ConfigError

Object: TypeAlias = Mapping[str, Any]
Row: TypeAlias = tuple[object, ...]

WORKLOAD = ("NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL")
SERVICE = ("NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS")
POLICY = ("NAMESPACE", "POLICY NAME", "ACTION", "SCOPE")
CERTIFICATE = (
    "CERTIFICATE NAME",
    "TYPE",
    "STATUS",
    "VALID CERT",
    "SERIAL NUMBER",
    "NOT AFTER",
    "NOT BEFORE",
)
CONNECTION = ("WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL")

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What of a dump is wanted; "" for everything.

    Attributes:
        address: One of the addresses it must have.
        direction: ``"inbound"`` or ``"outbound"``.
    """

    namespace: str = ""
    address: str = ""
    node: str = ""
    direction: str = ""


def section(dump: Object, name: str) -> list[Object]:
    """The objects of one kind.

    Raises:
        ConfigError: the document is no config dump.
    """
    found = dump.get(name)
    if found is None:
        found = []
    if isinstance(found, Mapping):
        found = list(found.values())
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise ConfigError(f"not a config dump of ztunnel: {name!r} is no list of objects")
    return found


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key: ``node-2`` before ``node-10``."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in _DIGITS.split(text)]


def workloads(dump: Object, want: Filters) -> list[Object]:
    """The workloads that are wanted, by namespace and name."""
    found = (
        each
        for each in section(dump, "workloads")
        if want.namespace in ("", each.get("namespace"))
        and want.node in ("", each.get("node"))
        and (not want.address or want.address in addresses_of(each))
    )
    return sorted(found, key=lambda each: (_text(each, "namespace"), natural(_text(each, "name"))))


def workload_row(workload: Object) -> Row:
    """One line of ``workload``."""
    return (
        _text(workload, "namespace"),
        _text(workload, "name"),
        ",".join(addresses_of(workload)),
        _text(workload, "node"),
        waypoint_name(workload),
        _text(workload, "protocol"),
    )


def services(dump: Object, want: Filters) -> list[Object]:
    """The services that are wanted, by namespace and name."""
    found = (
        each
        for each in section(dump, "services")
        if want.namespace in ("", each.get("namespace"))
        and (not want.address or want.address in vips_of(each))
    )
    return sorted(found, key=lambda each: (_text(each, "namespace"), natural(_text(each, "name"))))


def service_row(service: Object) -> Row:
    """One line of ``service``."""
    endpoints = section(service, "endpoints")
    healthy = sum(each.get("status", "Healthy") == "Healthy" for each in endpoints)
    return (
        _text(service, "namespace"),
        _text(service, "name"),
        ",".join(vips_of(service)),
        waypoint_name(service),
        f"{healthy}/{len(endpoints)}",
    )


def policies(dump: Object, want: Filters) -> list[Object]:
    """The policies that are wanted, by namespace and name."""
    found = (each for each in section(dump, "policies") if want.namespace in ("", each.get("namespace")))
    return sorted(found, key=lambda each: (_text(each, "namespace"), natural(_text(each, "name"))))


def policy_row(policy: Object) -> Row:
    """One line of ``policy``."""
    return tuple(_text(policy, name) for name in ("namespace", "name", "action", "scope"))


def certificates(dump: Object, want: Filters) -> list[Object]:
    """The identities that are wanted, by name."""
    found = (
        each
        for each in section(dump, "certificates")
        if not want.namespace or f"/ns/{want.namespace}/" in _text(each, "identity")
    )
    return sorted(found, key=lambda each: _text(each, "identity"))


def certificate_rows(identity: Object, now: datetime) -> Iterator[Row]:
    """One line of ``certificate`` for each certificate of an identity; one if it has none."""
    name, state = _text(identity, "identity"), _text(identity, "state")
    chain, roots = section(identity, "certChain"), section(identity, "rootCerts")
    if not chain and not roots:
        yield name, "Unknown", state, False, "", "", ""
    kinds = ("Leaf", *("Intermediate" for _ in chain[1:])) if chain else ()
    for kind, found in zip((*kinds, *("Root" for _ in roots)), (*chain, *roots), strict=True):
        begins, ends = _text(found, "validFrom"), _text(found, "expirationTime")
        yield name, kind, state, is_valid(begins, ends, now), _text(found, "serialNumber"), ends, begins


def is_valid(begins: str, ends: str, now: datetime) -> bool:
    """Whether *now* is between two times of a dump; what cannot be read is not."""
    try:
        first, last = (datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (begins, ends))
    except ValueError:
        return False
    first, last = (each if each.tzinfo else each.replace(tzinfo=UTC) for each in (first, last))
    return first <= now <= last


@dataclass(frozen=True, slots=True)
class Names:
    """What addresses are called, for people."""

    by_address: Mapping[str, str]

    @classmethod
    def of(cls, dump: Object) -> Names:
        """``pod.namespace`` for workloads, the host name for services."""
        found = {
            address: f"{_text(each, 'name')}.{_text(each, 'namespace')}"
            for each in section(dump, "workloads")
            if each.get("networkMode") != "HostNetwork"
            for address in addresses_of(each)
        }
        for each in section(dump, "services"):
            found |= dict.fromkeys(vips_of(each), _text(each, "hostname"))
        return cls(found)

    def name(self, hostport: str) -> str:
        """*hostport* with a name in the place of an address that has one."""
        host, _, port = hostport.rpartition(":")
        name = self.by_address.get(host.strip("[]"))
        return f"{name}:{port}" if name else hostport


def connections(dump: Object, want: Filters) -> Iterator[Object]:
    """Every open connection that is wanted, with its workload's name and namespace."""
    states = dump.get("workloadState") or {}
    if not isinstance(states, Mapping):
        raise ConfigError("not a config dump of ztunnel: 'workloadState' is no map")
    for uid in sorted(states):
        state = states[uid]
        info = state.get("info") or {}
        namespace = _text(info, "namespace")
        if want.namespace not in ("", namespace):
            continue
        for direction in ("inbound", "outbound"):
            if want.direction in ("", direction):
                for each in section(state.get("connections") or {}, direction):
                    yield {
                        "workload": _text(info, "name") or uid,
                        "namespace": namespace,
                        "direction": direction,
                        **each,
                    }


def connection_row(found: Object, names: Names | None) -> Row:
    """One line of ``connections``; *names* is None for bare addresses."""
    source, actual, original = (_text(found, name) for name in ("src", "actualDst", "originalDst"))
    inbound = found["direction"] == "inbound"
    # istioctl: what is local to the workload, what it talks to, and (outbound) what it asked for.
    ends = (original or actual, source, "") if inbound else (source, actual, original)
    if names is not None:
        ends = (names.name(ends[0]), names.name(ends[1]), names.name(ends[2]))
    workload = f"{found['workload']}.{found['namespace']}"
    direction = "Inbound" if inbound else "Outbound"
    return workload, direction, *(end or "-" for end in ends), _text(found, "protocol") or "HBONE"


def addresses_of(workload: Object) -> Sequence[str]:
    """A workload's addresses."""
    return _texts(workload.get("workloadIps"))


def vips_of(service: Object) -> Sequence[str]:
    """A service's addresses, without the names of their networks."""
    return [each.rpartition("/")[2] for each in _texts(service.get("vips"))]


def waypoint_name(found: Object) -> str:
    """The waypoint's short name, ``None`` as istioctl says it where there is none."""
    waypoint = found.get("waypoint")
    destination = waypoint.get("destination", "") if isinstance(waypoint, Mapping) else ""
    if not isinstance(destination, str) or not destination:
        return "None"
    name = destination.rpartition("/")[2]
    # Of "namespace/hostname" the first label; "network/address" has no shorter name.
    return name if re.fullmatch(r"[\d.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", name) else name.partition(".")[0]


def _text(found: Object, name: str) -> str:
    value = found.get(name)
    return "" if value is None else str(value)


def _texts(values: object) -> list[str]:
    if not isinstance(values, Iterable) or isinstance(values, str | Mapping):
        return []
    return [str(each) for each in values]
