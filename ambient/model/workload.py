"""Workloads: one running application instance with an identity and addresses.

Floor 0. Field names follow Istio's ``workload.proto``; addresses are canonical text
(``ipaddress.ip_address(x).compressed``), because they are dictionary keys on the data path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId, identity_of

HBONE_PORT = 15008


class Protocol(Enum):
    """How the workload is to be reached by a peer inside the mesh."""

    TCP = "TCP"
    HBONE = "HBONE"
    ISTIO_MTLS = "ISTIO_MTLS"  # by its sidecar: mutual TLS on the application's own port


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One pod, as every proxy of the mesh sees it.

    Attributes:
        uid: ``"Kubernetes//Pod/bookinfo/details-v1-0#3"``; a restarted pod has a new uid, so that a
            reused address never meets an old pooled connection.
        node: Name of the node, for example ``"node-1"``.
        services: service key (``Service.key``) -> {service port: target port}.
        authorization_policies: Keys (``namespace/name``) of the selector policies bound to it.
        waypoint: Key of the waypoint's service for workload-addressed traffic, or "".
        waypoint_for: Not empty if this workload is itself a waypoint: its ``Gateway``'s service key.
    """

    uid: str
    name: str
    namespace: str
    service_account: str = "default"
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    addresses: tuple[str, ...] = ()
    node: str = ""
    protocol: Protocol = Protocol.TCP
    services: Mapping[str, Mapping[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    authorization_policies: tuple[str, ...] = ()
    waypoint: str = ""
    waypoint_for: str = ""
    workload_name: str = ""  # the Deployment's name
    canonical_name: str = ""  # label app
    canonical_revision: str = ""  # label version
    healthy: bool = True
    host_network: bool = False

    @property
    def identity(self) -> SpiffeId:
        """The SPIFFE ID its certificate carries."""
        return identity_of(self.trust_domain, self.namespace, self.service_account)
