"""The mesh as one proxy or the control plane sees it: an index over workloads, services and policies.

Floor 0: mutable, but pure: what it holds is a function of the changes applied, not of their order or
slicing. Every lookup of the data path is one or two dictionary accesses; whatever must be sorted or
chosen is chosen when a change arrives.

Source: Istio's ztunnel ``src/state.rs`` for what wins among duplicates. Two differences: a policy that
a workload names and nobody knows refuses everything (ztunnel skips it), and choices are by value, never
by order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ambient.model.policy import Policy, Scope, deny_all
from ambient.model.service import CLUSTER_DOMAIN, Service
from ambient.model.workload import Protocol, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is new and what is gone.

    Attributes:
        snapshot: Whatever is not named here is gone; the ``removed`` fields are then not needed.
    """

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()
    removed_workloads: tuple[str, ...] = ()
    removed_services: tuple[str, ...] = ()
    removed_policies: tuple[str, ...] = ()
    snapshot: bool = False


class Mesh:
    """All workloads, services and policies, and the ways to find them.

    Attributes:
        version: Grows with every change; compare it to know whether a decision may be out of date.
    """

    def __init__(self) -> None:
        self.version = 0
        self._workloads: dict[str, Workload] = {}
        self._services: dict[str, Service] = {}
        self._policies: dict[str, Policy] = {}
        # Each maps a way of naming to the keys that it names: nearly always one.
        self._uids_by_address: dict[str, set[str]] = {}
        self._uids_by_service: dict[str, set[str]] = {}
        self._keys_by_address: dict[str, set[str]] = {}
        self._keys_by_hostname: dict[str, set[str]] = {}
        # Answers worked out since the last change.
        self._at_address: dict[tuple[str, str], Workload | None] = {}
        self._endpoints: dict[str, tuple[Workload, ...]] = {}
        self._targets: dict[tuple[str, int], tuple[tuple[Workload, int], ...]] = {}
        self._broad_policies: dict[str, tuple[Policy, ...]] = {}

    def __repr__(self) -> str:
        counts = f"{len(self._workloads)} workloads, {len(self._services)} services"
        return f"<Mesh {counts}, {len(self._policies)} policies, version {self.version}>"

    def apply(self, change: Change) -> None:
        """Take *change* in; afterwards every lookup answers by it. Removals come first."""
        if change.snapshot:
            self._clear()
        for uid in change.removed_workloads:
            self._forget_workload(uid)
        for key in change.removed_services:
            self._forget_service(key)
        for key in change.removed_policies:
            self._policies.pop(key, None)
        for service in change.services:
            self._learn_service(service)
        for workload in change.workloads:
            self._learn_workload(workload)
        self._policies.update((policy.key, policy) for policy in change.policies)
        self._forget_answers()
        self.version += 1

    def snapshot(self) -> Change:
        """Everything there is, in a stable order; applied to any mesh it gives this one."""
        return Change(
            workloads=self.workloads(), services=self.services(), policies=self.policies(), snapshot=True
        )

    def workloads(self) -> tuple[Workload, ...]:
        """Every workload, by uid."""
        return tuple(self._workloads[uid] for uid in sorted(self._workloads))

    def services(self) -> tuple[Service, ...]:
        """Every service, by key."""
        return tuple(self._services[key] for key in sorted(self._services))

    def policies(self) -> tuple[Policy, ...]:
        """Every policy, by key."""
        return tuple(self._policies[key] for key in sorted(self._policies))

    def workload(self, uid: str) -> Workload | None:
        """The workload with this uid."""
        return self._workloads.get(uid)

    def workload_by_address(self, ip: str, node: str = "") -> Workload | None:
        """The workload that owns *ip* alone; pods on the host's network share theirs and are not found.

        Two nodes may give their pods the same address, which then means the one of the *node* that asks.
        While a restarted pod's old record lingers, the one that is healthy, then enrolled, then newer wins.
        """
        if ip not in self._uids_by_address:
            return None
        if (ip, node) not in self._at_address:
            owners = self._owners(ip)
            self._at_address[ip, node] = max(owners, key=lambda each: (each.node == node, *_preference(each)))
        return self._at_address[ip, node]

    def service(self, key: str) -> Service | None:
        """The service with this ``namespace/hostname``."""
        return self._services.get(key)

    def service_by_address(self, ip: str, namespace: str = "") -> Service | None:
        """The service with this virtual address; that of *namespace* wins among several."""
        return self._choose(self._keys_by_address.get(ip), namespace)

    def services_named(self, hostname: str) -> tuple[Service, ...]:
        """Every service with exactly this hostname (lower case), by key."""
        return tuple(self._services[key] for key in sorted(self._keys_by_hostname.get(hostname, ())))

    def service_by_hostname(self, hostname: str, namespace: str = "") -> Service | None:
        """The service of this name as a client in *namespace* writes it.

        Understands the full hostname and the short forms that a pod's resolver completes:
        ``reviews``, ``reviews.bookinfo``, ``reviews.bookinfo.svc``.
        """
        for name in _spellings(hostname.lower().removesuffix("."), namespace):
            if keys := self._keys_by_hostname.get(name):
                return self._choose(keys, namespace)
        return None

    def endpoints(self, service_key: str) -> tuple[Workload, ...]:
        """The healthy workloads behind a service, by uid."""
        if service_key not in self._uids_by_service:
            return ()
        if service_key not in self._endpoints:
            members = (self._workloads[uid] for uid in sorted(self._uids_by_service[service_key]))
            self._endpoints[service_key] = tuple(each for each in members if each.healthy)
        return self._endpoints[service_key]

    def targets(self, service_key: str, port: int) -> tuple[tuple[Workload, int], ...]:
        """The endpoints that serve *port* of a service, each with the port it listens on."""
        found = self._targets.get((service_key, port))
        if found is not None:
            return found
        made = tuple(
            (each, target)
            for each in self.endpoints(service_key)
            if (target := each.services[service_key].get(port, 0)) and each.addresses
        )
        # Only hits are remembered: there are few, while a client may ask for 65535 ports.
        if made:
            self._targets[service_key, port] = made
        return made

    def policies_for(self, workload: Workload) -> tuple[Policy, ...]:
        """Every policy that guards *workload*: mesh-wide ones, its namespace's, and those bound to it.

        None guards a waypoint: it serves other workloads, whose policies are theirs. A policy that is
        named but not known yet refuses everything.
        """
        if workload.waypoint_for:
            return ()
        named = (self._policies.get(key) or deny_all(key) for key in workload.authorization_policies)
        return (*self._broad(workload.namespace), *named)

    def _broad(self, namespace: str) -> tuple[Policy, ...]:
        if namespace not in self._broad_policies:
            self._broad_policies[namespace] = tuple(
                policy
                for policy in self.policies()
                if policy.scope is Scope.GLOBAL
                or (policy.scope is Scope.NAMESPACE and policy.namespace == namespace)
            )
        return self._broad_policies[namespace]

    def _choose(self, keys: set[str] | None, namespace: str) -> Service | None:
        if not keys:
            return None
        return self._services[min(keys, key=lambda key: (not key.startswith(f"{namespace}/"), key))]

    def _owners(self, ip: str) -> Iterable[Workload]:
        return (self._workloads[uid] for uid in self._uids_by_address[ip])

    def _learn_workload(self, workload: Workload) -> None:
        self._forget_workload(workload.uid)
        self._workloads[workload.uid] = workload
        for ip in () if workload.host_network else workload.addresses:
            self._uids_by_address.setdefault(ip, set()).add(workload.uid)
        for key in workload.services:
            self._uids_by_service.setdefault(key, set()).add(workload.uid)

    def _forget_workload(self, uid: str) -> None:
        old = self._workloads.pop(uid, None)
        if old is None:
            return
        for ip in old.addresses:
            _discard(self._uids_by_address, ip, uid)
        for key in old.services:
            _discard(self._uids_by_service, key, uid)

    def _learn_service(self, service: Service) -> None:
        self._forget_service(service.key)
        self._services[service.key] = service
        for ip in service.addresses:
            self._keys_by_address.setdefault(ip, set()).add(service.key)
        self._keys_by_hostname.setdefault(service.hostname, set()).add(service.key)

    def _forget_service(self, key: str) -> None:
        old = self._services.pop(key, None)
        if old is None:
            return
        for ip in old.addresses:
            _discard(self._keys_by_address, ip, key)
        _discard(self._keys_by_hostname, old.hostname, key)

    def _clear(self) -> None:
        for index in (self._workloads, self._services, self._policies):
            index.clear()
        for keys in (self._uids_by_address, self._uids_by_service):
            keys.clear()
        for keys in (self._keys_by_address, self._keys_by_hostname):
            keys.clear()

    def _forget_answers(self) -> None:
        self._at_address.clear()
        self._endpoints.clear()
        self._targets.clear()
        self._broad_policies.clear()


def _discard(index: dict[str, set[str]], name: str, key: str) -> None:
    keys = index.get(name)
    if keys is None:
        return
    keys.discard(key)
    if not keys:
        del index[name]


def _preference(workload: Workload) -> tuple[bool, bool, int, str]:
    # Longer first: "#10" is newer than "#9".
    return workload.healthy, workload.protocol is Protocol.HBONE, len(workload.uid), workload.uid


def _spellings(name: str, namespace: str) -> Iterable[str]:
    yield name
    match name.split("."):
        case [_]:
            yield f"{name}.{namespace}.svc.{CLUSTER_DOMAIN}"
        case [_, _]:
            yield f"{name}.svc.{CLUSTER_DOMAIN}"
        case [_, _, "svc"]:
            yield f"{name}.{CLUSTER_DOMAIN}"
