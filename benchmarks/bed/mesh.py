"""What both pairs are about: two workloads on two nodes, and ten policies of which one matches."""

from __future__ import annotations

import os

from ambient.model.mesh import Change
from ambient.model.policy import Action, Match, MatchKind, Policy, Scope, StringMatch
from ambient.model.workload import Protocol, Workload

NAMESPACE = "bench"
POLICIES = 10
# A corner of loopback for each run, so that two may run at once.
_PREFIX = f"127.{1 + os.getpid() % 200}.{os.getpid() // 200 % 250}"


def address(number: int) -> str:
    """The loopback address of pod *number* (0..200) of this run."""
    return f"{_PREFIX}.{1 + number}"


def workload(name: str, ip: str, node: str) -> Workload:
    """One pod."""
    return Workload(
        uid=f"Kubernetes//Pod/{NAMESPACE}/{name}#1",
        name=name,
        namespace=NAMESPACE,
        service_account=name,
        addresses=(ip,),
        node=node,
        protocol=Protocol.HBONE,
        workload_name=name,
        canonical_name=name,
        canonical_revision="v1",
    )


def principal(name: str) -> str:
    """As policies write it."""
    return f"cluster.local/ns/{NAMESPACE}/sa/{name}"


def principals() -> list[str]:
    """Whom each of the policies allows; only the last of them ever calls."""
    return [principal(f"caller-{number}") for number in range(POLICIES - 1)] + [principal("client")]


def policies() -> tuple[Policy, ...]:
    """Ten ALLOW policies of the namespace."""
    return tuple(
        Policy(
            key=f"{NAMESPACE}/policy-{number}",
            namespace=NAMESPACE,
            action=Action.ALLOW,
            scope=Scope.NAMESPACE,
            rules=(((Match(principals=(StringMatch(MatchKind.EXACT, name),)),),),),
        )
        for number, name in enumerate(principals())
    )


def first_change(pods: tuple[Workload, ...]) -> Change:
    """The snapshot both nodes begin with."""
    return Change(workloads=pods, policies=policies(), snapshot=True)
