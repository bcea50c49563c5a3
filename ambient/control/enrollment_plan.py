"""What one ``enroll`` call means: which labels are written, which pods move, which must restart. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ambient.control.params import take, take_one_of
from ambient.control.pods import Pod, Role
from ambient.control.store_plan import Store
from ambient.engine.rpc import FAILED, RpcError
from ambient.errors import ConfigError
from ambient.model.enrollment import DATAPLANE_MODE, NAMESPACE_INJECTION, POD_INJECTION, Mode, desired_mode

# Istio's mark of a pod that somebody else injected; such a pod is never captured.
FOREIGN_SIDECAR = "sidecar.istio.io/status"

# Nothing comes of a pod that has ended.
_OVER = ("Failed", "Succeeded")


@dataclass(frozen=True, slots=True)
class Target:
    """One namespace (*name* is empty) or one pod."""

    namespace: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The parameters of ``enroll``, read.

    Attributes:
        existing: ``"keep"`` or ``"reset"``: established connections.
        timeout: Seconds to wait for all of it.
    """

    targets: tuple[Target, ...]
    mode: Mode = Mode.AMBIENT
    engine: str = "ambient"
    existing: str = "keep"
    dry_run: bool = False
    wait: bool = True
    timeout: float = 60.0

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> Request:
        """Read a call.

        Raises:
            ConfigError: a parameter is missing or of the wrong form.
        """
        return cls(
            targets=tuple(map(_target, take(params, "targets", list))),
            mode=Mode(take_one_of(params, "mode", ("ambient", "sidecar", "none"), "ambient")),
            engine=take_one_of(params, "engine", ("ambient", "envoy"), "ambient"),
            existing=take_one_of(params, "existing", ("keep", "reset"), "keep"),
            dry_run=take(params, "dry_run", bool, False),
            wait=take(params, "wait", bool, True),
            timeout=take(params, "timeout", float, 60.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        namespace_labels: Namespace -> labels to write (None removes one).
        pod_labels: (namespace, name) -> labels to write.
        moves: Pods that the call is about, with the mode that their labels will ask for.
        restarts: Uids of those that must be started again for it.
        skipped: Pods of a namespace that cannot be moved -> why.
    """

    namespace_labels: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    pod_labels: Mapping[tuple[str, str], Mapping[str, str | None]] = field(default_factory=dict)
    moves: tuple[tuple[Pod, Mode], ...] = ()
    restarts: frozenset[str] = frozenset()
    skipped: Mapping[str, str] = field(default_factory=dict)


def plan_enrollment(request: Request, store: Store, pods: Iterable[Pod]) -> Plan:
    """Work out what *request* means.

    Raises:
        RpcError: it cannot be done; nothing was changed.
    """
    everybody = tuple(pods)
    spaces = {each.namespace: _for_namespace(request.mode) for each in request.targets if not each.name}
    for namespace in {each.namespace for each in request.targets}:
        if store.get("Namespace", "", namespace) is None:
            raise _refusal(f"namespace {namespace!r} does not exist; see: ambient get namespaces")
    chosen = {_chosen(each, everybody, request.mode).key for each in request.targets if each.name}
    store = _labelled(store, spaces)
    mine = {key: _for_pod(request.mode, store.labels_of_namespace(key[0])) for key in chosen}
    return _plan(request, store, everybody, spaces, mine)


def _plan(
    request: Request,
    store: Store,
    pods: tuple[Pod, ...],
    spaces: Mapping[str, Mapping[str, str | None]],
    mine: Mapping[tuple[str, str], Mapping[str, str | None]],
) -> Plan:
    """The part that refuses nothing any more."""
    moves: list[tuple[Pod, Mode]] = []
    skipped: dict[str, str] = {}
    for pod in pods:
        if pod.key not in mine and (pod.namespace not in spaces or pod.role is Role.WAYPOINT):
            continue
        if (reason := immovable(pod, request.mode)) and request.mode is not Mode.NONE:
            skipped[pod.uid] = reason
            continue
        labels = _merged(pod.labels, mine.get(pod.key, {}))
        moves.append((pod, desired_mode(store.labels_of_namespace(pod.namespace), labels)))
    restarts = frozenset(pod.uid for pod, mode in moves if must_restart(pod, mode, request.engine))
    return Plan(
        namespace_labels=spaces, pod_labels=mine, moves=tuple(moves), restarts=restarts, skipped=skipped
    )


def must_restart(pod: Pod, mode: Mode, engine: str) -> bool:
    """Whether a sidecar must be placed, taken away or exchanged: that only happens at a pod's start."""
    if mode is Mode.SIDECAR:
        return pod.mode is not Mode.SIDECAR or pod.engine != engine
    return pod.mode is Mode.SIDECAR


def is_settled(pod: Pod | None, mode: Mode) -> bool:
    """Whether *pod* is where *mode* wants it (or has failed to get there)."""
    if pod is None or pod.ending or not pod.capture.resting:
        return False
    match mode:
        case Mode.SIDECAR:
            return pod.mode is Mode.SIDECAR and pod.ready
        case Mode.AMBIENT:
            failed = bool(pod.capture.reason)
            return pod.mode is Mode.NONE and (pod.capture.advertised or failed)
        case Mode.NONE:
            return pod.mode is Mode.NONE and not pod.capture.advertised


def has_failed(pod: Pod) -> bool:
    """Whether its agent could not do what was asked."""
    return bool(pod.capture.reason) and not pod.capture.advertised


def _target(value: object) -> Target:
    match value:
        case {"kind": "namespace", "name": str(name)} | {"kind": "namespace", "namespace": str(name)}:
            return Target(name)
        case {"kind": "pod", "namespace": str(namespace), "name": str(name)}:
            return Target(namespace, name)
        case _:
            raise ConfigError(f"not a target: {value!r}; give namespace/NAME or pod/NAME")


def _for_namespace(mode: Mode) -> dict[str, str | None]:
    match mode:
        case Mode.AMBIENT:
            return {DATAPLANE_MODE: "ambient", NAMESPACE_INJECTION: None}
        case Mode.SIDECAR:
            return {DATAPLANE_MODE: None, NAMESPACE_INJECTION: "enabled"}
        case Mode.NONE:
            return {DATAPLANE_MODE: None, NAMESPACE_INJECTION: None}


def _for_pod(mode: Mode, above: Mapping[str, str]) -> dict[str, str | None]:
    """What a pod's own labels must say, given its namespace's: no more than needed."""
    out = "false" if above.get(NAMESPACE_INJECTION) == "enabled" else None
    match mode:
        case Mode.AMBIENT:
            return {DATAPLANE_MODE: "ambient", POD_INJECTION: out}
        case Mode.SIDECAR:
            return {DATAPLANE_MODE: None, POD_INJECTION: "true"}
        case Mode.NONE:
            opted = "none" if above.get(DATAPLANE_MODE) == "ambient" else None
            return {DATAPLANE_MODE: opted, POD_INJECTION: out}


def _chosen(target: Target, pods: Iterable[Pod], mode: Mode) -> Pod:
    pod = next((each for each in pods if each.key == (target.namespace, target.name)), None)
    if pod is None:
        where = f"in namespace {target.namespace!r}"
        raise _refusal(
            f"pod {target.name!r} does not exist {where}; see: ambient get pods -n {target.namespace}"
        )
    if mode is not Mode.NONE and (reason := immovable(pod, mode)):
        raise _refusal(f"pod {target.name!r} cannot be enrolled: {reason}")
    return pod


def immovable(pod: Pod, mode: Mode) -> str:
    """Why *mode* is not possible for *pod*; "" if it is."""
    if pod.guest and mode is Mode.SIDECAR:
        return "somebody else runs it: a sidecar needs a restart, and that is not ours to do"
    if pod.role is Role.WAYPOINT:
        return "the pod is a waypoint: it speaks HBONE itself"
    if pod.spec.host_network:
        return "the pod uses the host's network: its traffic is the node's"
    if any(address.startswith("127.") for address in pod.addresses):
        return "fabric loopback has no redirection; see: ambient check"
    if FOREIGN_SIDECAR in pod.spec.annotations:
        return f"sidecar present (annotation {FOREIGN_SIDECAR}); restart the pod without it first"
    if pod.status.phase in _OVER:
        return f"the pod is not running ({pod.status.phase})"
    return ""


def _labelled(store: Store, spaces: Mapping[str, Mapping[str, str | None]]) -> Store:
    for name, labels in spaces.items():
        store = store.label(("Namespace", "", name), labels)
    return store


def _merged(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**labels, **changes}.items() if value is not None}


def _refusal(reason: str) -> RpcError:
    return RpcError(FAILED, reason)
