"""What both pairs are about: two workloads on two nodes, and ten policies of which one matches."""

from __future__ import annotations

import os

from ambient.model.mesh import Change
from ambient.model.policy import Action, Match, MatchKind, Policy, Scope, StringMatch
from ambient.model.workload import Protocol, Workload

NAMESPACE = "bench"
POLICIES = 10
# A corner of loopback for each run, so that two may run at once.
_CORNER = 1 + os.getpid() % 200, os.getpid() // 200 % 200


def address(number: int) -> str:
    """The loopback address of pod *number* (below 10,000) of this run."""
    return f"127.{_CORNER[0]}.{_CORNER[1] + number // 200}.{1 + number % 200}"


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


def crowd(count: int) -> Change:
    """As many strangers as a large mesh has, and a tenth as many policies of their own namespace."""
    pods = tuple(
        Workload(
            uid=f"Kubernetes//Pod/crowd/stranger-{number}#1",
            name=f"stranger-{number}",
            namespace="crowd",
            service_account=f"account-{number % 100}",
            addresses=(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}",),
            node=f"node-{number % 40}",
            protocol=Protocol.HBONE,
            workload_name=f"deployment-{number % 500}",
            canonical_name=f"deployment-{number % 500}",
            canonical_revision="v1",
        )
        for number in range(count)
    )
    rules = (((Match(principals=(StringMatch(MatchKind.EXACT, principal("client")),)),),),)
    guards = tuple(
        Policy(
            key=f"crowd/policy-{number}",
            namespace="crowd",
            action=Action.ALLOW,
            scope=Scope.WORKLOAD,
            rules=rules,
        )
        for number in range(count // 10)
    )
    return Change(workloads=pods, policies=guards)


def gone(change: Change) -> Change:
    """What takes *change* back."""
    return Change(
        removed_workloads=tuple(each.uid for each in change.workloads),
        removed_policies=tuple(each.key for each in change.policies),
    )


def first_change(pods: tuple[Workload, ...]) -> Change:
    """The snapshot both nodes begin with."""
    return Change(workloads=pods, policies=policies(), snapshot=True)
