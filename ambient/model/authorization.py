"""AuthorizationPolicy and PeerAuthentication objects turned into policies that layer 4 can enforce.

Floor 0. Source: istiod's ``pilot/pkg/serviceregistry/ambient/authorization.go``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ambient.model.objects import Object
from ambient.model.policy import Policy

# Istio's default for the namespace whose policies hold for the whole mesh.
ROOT_NAMESPACE = "istio-system"
STATIC_STRICT = f"{ROOT_NAMESPACE}/istio_converted_static_strict"


@dataclass(frozen=True, slots=True)
class Binding:
    """A policy that is bound to workloads by their labels."""

    key: str
    namespace: str
    match_labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Security:
    """What the security objects of a mesh mean.

    Attributes:
        policies: To be distributed.
        warnings: Rules that lose a part at layer 4, one sentence each.
    """

    policies: tuple[Policy, ...]
    warnings: tuple[str, ...]

    def bound_to(self, namespace: str, labels: Mapping[str, str]) -> tuple[str, ...]:
        """The keys for ``Workload.authorization_policies`` of a pod (not of a waypoint)."""
        raise NotImplementedError


def convert(objects: Iterable[Object], root_namespace: str = ROOT_NAMESPACE) -> Security:
    """Convert every AuthorizationPolicy and PeerAuthentication of *objects*; others are passed over.

    Raises:
        ConfigError: ``file:line: reason``: what cannot be enforced is refused.
    """
    raise NotImplementedError
