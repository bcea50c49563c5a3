"""What this ztunnel knows and carries, in the form of Istio's ``/config_dump``, so that istioctl reads it.

Pure: built from public values only, field by field. No key, token or environment can get in.

Source: Istio's ztunnel ``src/admin.rs`` and istioctl's ``ztunnel-config``. What is ours alone and has no
field there is left out; where we have none (locality, capacity), so is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime

from ambient.model.mesh import Mesh
from ambient.model.policy import Match, Policy, Scope, StringMatch
from ambient.model.service import Service
from ambient.model.workload import HBONE_PORT, Workload
from ambient.pki.certificate import read_certificate

_SCOPES = {Scope.GLOBAL: "Global", Scope.NAMESPACE: "Namespace", Scope.WORKLOAD: "WorkloadSelector"}


def sections(mesh: Mesh) -> Mapping[str, Iterator[Callable[[], object]]]:
    """The long lists, each as steps: who writes a large dump lets others go on between two of them."""
    return {
        "workloads": (_step(workload_dump, each) for each in mesh.workloads()),
        "services": (_step(service_dump, mesh, each) for each in mesh.services()),
        "policies": (_step(policy_dump, each) for each in mesh.policies()),
    }


def _step(make: Callable[..., object], *values: object) -> Callable[[], object]:
    return lambda: make(*values)


def workload_dump(workload: Workload) -> dict[str, object]:
    """One workload."""
    return {
        "workloadIps": list(workload.addresses),
        **_waypoint(workload.waypoint),
        "protocol": workload.protocol.value,
        "uid": workload.uid,
        "name": workload.name,
        "namespace": workload.namespace,
        "serviceAccount": workload.service_account,
        "trustDomain": workload.trust_domain,
        "workloadName": workload.workload_name or workload.name,
        "workloadType": "deployment" if workload.workload_name else "pod",
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "node": workload.node,
        "networkMode": "HostNetwork" if workload.host_network else "Standard",
        "status": "Healthy" if workload.healthy else "Unhealthy",
        "services": sorted(workload.services),
        "authorizationPolicies": list(workload.authorization_policies),
    }


def service_dump(mesh: Mesh, service: Service) -> dict[str, object]:
    """One service with its endpoints."""
    return {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        # "NETWORK/ADDRESS"; there is one network, without a name.
        "vips": [f"/{address}" for address in service.addresses],
        "ports": {str(port.port): port.target_port for port in service.ports},
        "endpoints": {
            each.uid: {
                "workloadUid": each.uid,
                "port": {str(port): target for port, target in each.services[service.key].items()},
                "status": "Healthy" if each.healthy else "Unhealthy",
            }
            for each in mesh.endpoints(service.key)
        },
        **_waypoint(service.waypoint),
    }


def policy_dump(policy: Policy) -> dict[str, object]:
    """One policy."""
    return {
        "name": policy.key.rpartition("/")[2],
        "namespace": policy.namespace,
        "scope": _SCOPES[policy.scope],
        "action": policy.action.value.capitalize(),
        "rules": [[[_match_dump(match) for match in clause] for clause in rule] for rule in policy.rules],
    }


def certificate_dump(
    identity: str, chain: tuple[bytes, ...], roots: tuple[bytes, ...], error: str
) -> dict[str, object]:
    """One identity's certificates: whose number they have and when they are good, not what they are."""
    return {
        "identity": identity,
        "state": "Available" if chain else "Unavailable" if error else "Initializing",
        "certChain": [_certificate(each) for each in chain],
        "rootCerts": [_certificate(each) for each in roots],
        **({"error": error} if error else {}),
    }


def _certificate(der: bytes) -> dict[str, object]:
    found = read_certificate(der)
    return {
        # As ``openssl x509 -serial`` and istioctl print it, in lower case.
        "serialNumber": f"{found.serial:x}",
        "validFrom": _moment(found.not_before),
        "expirationTime": _moment(found.not_after),
    }


def _waypoint(key: str) -> dict[str, object]:
    return {"waypoint": {"destination": key, "hboneMtlsPort": HBONE_PORT}} if key else {}


def _match_dump(match: Match) -> dict[str, object]:
    """The conditions that are there, under camelCase names."""
    found: dict[str, object] = {}
    for name in (each.name for each in fields(match)):
        if values := getattr(match, name):
            first, *rest = name.split("_")
            found[first + "".join(map(str.capitalize, rest))] = [_value(each) for each in values]
    return found


def _value(value: StringMatch | str | int) -> object:
    return {value.kind.value.capitalize(): value.value} if isinstance(value, StringMatch) else value


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
