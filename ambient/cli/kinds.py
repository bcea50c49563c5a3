"""Kinds by every name people type, and the columns of their tables.

Floor 6, pure: Kubernetes-shaped objects in, rows out. Columns follow kubectl, workloads istioctl.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from ambient.cli.output import age
from ambient.errors import ConfigError

Object: TypeAlias = Mapping[str, Any]
Cells: TypeAlias = tuple[object, ...]

ALIASES = {
    "Pod": ("pod", "pods", "po"),
    "Service": ("service", "services", "svc"),
    "Namespace": ("namespace", "namespaces", "ns"),
    "Deployment": ("deployment", "deployments", "deploy"),
    "ServiceAccount": ("serviceaccount", "serviceaccounts", "sa"),
    "AuthorizationPolicy": ("authorizationpolicy", "authorizationpolicies", "ap"),
    "PeerAuthentication": ("peerauthentication", "peerauthentications", "pa"),
    "Gateway": ("gateway", "gateways", "gtw"),
    "HTTPRoute": ("httproute", "httproutes"),
    "Node": ("node", "nodes", "no"),
    "Workload": ("workload", "workloads", "wl"),
}
_BY_NAME = {alias: kind for kind, aliases in ALIASES.items() for alias in aliases}
CLUSTER_SCOPED = frozenset({"Namespace", "Node"})


@dataclass(frozen=True, slots=True)
class Columns:
    """How one kind is listed.

    Attributes:
        extra: Headers that only ``-o wide`` shows; *cells* gives them last.
    """

    headers: tuple[str, ...]
    extra: tuple[str, ...]
    cells: Callable[[Object, float], Cells]


def kind_of(text: str) -> str:
    """Return the kind that *text* names.

    Raises:
        ConfigError: no such kind.
    """
    found = _BY_NAME.get(text.lower())
    if found is None:
        raise ConfigError(f"unknown kind {text!r}; one of: {', '.join(a[1] for a in ALIASES.values())}")
    return found


def parse_target(text: str, default_kind: str = "") -> tuple[str, str]:
    """Read ``KIND/NAME`` (or a bare name if there is a *default_kind*); return kind and name.

    Raises:
        ConfigError: neither.
    """
    kind, slash, name = text.partition("/")
    if not slash and default_kind:
        return default_kind, text
    if not slash or not name:
        raise ConfigError(f"not KIND/NAME such as namespace/bookinfo: {text!r}")
    return kind_of(kind), name


def pods_of(pods: Iterable[Object], kind: str, name: str) -> list[Object]:
    """The pods that *kind* and *name* mean: one of that name, or those of a Deployment, running ones first.

    Raises:
        ConfigError: *kind* has no pods.
    """
    if kind == "Pod":
        return [pod for pod in pods if name_of(pod) == name]
    if kind != "Deployment":
        raise ConfigError(f"{kind.lower()}/{name} is no pod; give a pod, or deploy/NAME")
    owner = {"kind": kind, "name": name}
    mine = [pod for pod in pods if owner in pod["metadata"].get("ownerReferences", ())]
    return sorted(mine, key=lambda pod: pod.get("status", {}).get("phase") != "Running")


def name_of(item: Object) -> str:
    """The object's name."""
    return str(item.get("metadata", {}).get("name", item.get("name", "")))


def namespace_of(item: Object) -> str:
    """The object's namespace, "" if it has none."""
    return str(item.get("metadata", {}).get("namespace", item.get("namespace", "")))


def born(item: Object, now: float) -> str:
    """The AGE column."""
    stamp = item.get("metadata", {}).get("creationTimestamp")
    if not stamp:
        return "<unknown>"
    then = datetime.fromisoformat(str(stamp).replace("Z", "+00:00"))
    return age(now - then.timestamp())


def mesh_state(item: Object) -> Mapping[str, Any]:
    """What the mesh says about a pod."""
    found: Mapping[str, Any] = item.get("status", {}).get("ambient", {}) or {}
    return found


def pod_mode(item: Object) -> str:
    """``ambient``, ``sidecar`` or ``none``; a pod on its way says so."""
    state = mesh_state(item)
    mode = str(state.get("mode", "none") or "none")
    if mode == "ambient" and not state.get("enrolled", False):
        return "ambient (not yet)"
    return mode


def _pod(item: Object, now: float) -> Cells:
    status = item.get("status", {})
    containers = status.get("containerStatuses") or []
    ready = sum(1 for one in containers if one.get("ready"))
    total = len(containers) or len(item.get("spec", {}).get("containers", []))
    restarts = sum(int(one.get("restartCount", 0)) for one in containers)
    shown = (name_of(item), f"{ready}/{total}", status.get("phase", "Unknown"), restarts, born(item, now))
    wide = (
        status.get("podIP", ""),
        item.get("spec", {}).get("nodeName", ""),
        mesh_state(item).get("pid", ""),
    )
    return (*shown, pod_mode(item), *wide)


def _service(item: Object, now: float) -> Cells:
    spec = item.get("spec", {})
    ports = ",".join(f"{one.get('port')}/{one.get('protocol', 'TCP')}" for one in spec.get("ports") or [])
    shown = (name_of(item), spec.get("type", "ClusterIP"), spec.get("clusterIP", "None"), "", ports)
    picks = ",".join(f"{key}={value}" for key, value in (spec.get("selector") or {}).items())
    return (*shown, born(item, now), picks)


def _namespace(item: Object, now: float) -> Cells:
    labels = item.get("metadata", {}).get("labels") or {}
    phase = item.get("status", {}).get("phase", "Active")
    return (name_of(item), phase, born(item, now), labels.get("istio.io/dataplane-mode", ""))


def _deployment(item: Object, now: float) -> Cells:
    wanted = item.get("spec", {}).get("replicas", 1)
    ready = item.get("status", {}).get("readyReplicas", 0)
    return (name_of(item), f"{ready}/{wanted}", born(item, now))


def _workload(item: Object, now: float) -> Cells:
    addresses = item.get("addresses") or [""]
    waypoint = str(item.get("waypoint", "") or "").rpartition("/")[2].partition(".")[0]
    return (name_of(item), addresses[0], item.get("node", ""), waypoint or "None", item.get("protocol", ""))


def _policy(item: Object, now: float) -> Cells:
    return (name_of(item), item.get("spec", {}).get("action", "ALLOW"), born(item, now))


def _any(item: Object, now: float) -> Cells:
    return (name_of(item), born(item, now))


COLUMNS = {
    "Pod": Columns(("NAME", "READY", "STATUS", "RESTARTS", "AGE", "MODE"), ("IP", "NODE", "PID"), _pod),
    "Service": Columns(
        ("NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"), ("SELECTOR",), _service
    ),
    "Namespace": Columns(("NAME", "STATUS", "AGE", "DATAPLANE-MODE"), (), _namespace),
    "Deployment": Columns(("NAME", "READY", "AGE"), (), _deployment),
    "Workload": Columns(("POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"), (), _workload),
    "AuthorizationPolicy": Columns(("NAME", "ACTION", "AGE"), (), _policy),
}
_PLAIN = Columns(("NAME", "AGE"), (), _any)


def rows(
    kind: str, items: Iterable[Object], now: float, *, wide: bool, namespaces: bool
) -> tuple[list[str], list[Cells]]:
    """Return headers and rows for *items* of *kind*."""
    columns = COLUMNS.get(kind, _PLAIN)
    # istioctl always shows a workload's namespace.
    lead = (namespaces or kind == "Workload") and kind not in CLUSTER_SCOPED
    headers = [*(["NAMESPACE"] if lead else []), *columns.headers, *(columns.extra if wide else ())]
    body = [((namespace_of(item),) if lead else ()) + columns.cells(item, now) for item in items]
    return headers, [cells[: len(headers)] for cells in body]


# Kubernetes: an optional prefix of DNS labels, and a name.
_LABEL_KEY = re.compile(r"(?:[a-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether *labels* fit a selector such as ``app=web,tier!=db,new,!old``.

    Raises:
        ConfigError: a part of the selector has no key that could be one (sets, "k in (a,b)", included).
    """
    return all(_part_selects(part.strip(), labels) for part in selector.split(",") if part.strip())


def _part_selects(part: str, labels: Mapping[str, str]) -> bool:
    key, sign, value = part.partition("!=") if "!=" in part else part.replace("==", "=").partition("=")
    if not _LABEL_KEY.fullmatch(key.removeprefix("!") if not sign else key):
        raise ConfigError(f"not a label selector: {part!r}")
    if sign == "!=":
        return labels.get(key) != value
    if sign:
        return labels.get(key) == value
    return key[1:] not in labels if key.startswith("!") else key in labels
