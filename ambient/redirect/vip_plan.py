"""Virtual addresses on a node: which rules translate a service's address to one of its pods. Pure.

What kube-proxy does, and no more: a random endpoint per connection, a rewritten source where a pod
reaches itself through its own service (else its answer would come from an address it never asked),
and a refusal where nobody serves. Captured pods do not need any of it for TCP: their proxy knows the mesh.

    prerouting, output --(service networks)--> services --(address, port)--> svc/NS/NAME/PORT/v4 --> pod

TCP and UDP share a service's ports, because the mesh's ``ServicePort`` does not tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from ambient.model.addressing import NETNS
from ambient.model.mesh import Mesh
from ambient.model.service import Service
from ambient.wire.nft import (
    DSTNAT,
    FILTER,
    L4,
    SRCNAT,
    Accept,
    Address,
    Base,
    Chain,
    Chance,
    DestinationPort,
    End,
    Goto,
    Hook,
    Masquerade,
    Reject,
    Rule,
    Table,
    Translate,
    Translated,
    Transport,
)

TABLE = "ambient_services"

# Always there for a second reason: conntrack is on for as long as some rule speaks of it, and when it
# goes off, with the last endpoint of the last service, connections that were translated are cut.
_GO_ON: Rule = (Translated(), Accept())


def vip_plan(
    mesh: Mesh,
    node: str = "",
    networks: tuple[str, ...] = NETNS.service_networks,
    own: tuple[str, ...] = NETNS.dns,
) -> Table:
    """The rules of one node.

    Args:
        node: Its name: only pods of this node can reach themselves through it; "" means any.
        networks: Where virtual addresses are taken from; whatever there is not served is refused.
        own: Addresses in *networks* that the node itself answers for.
    """
    ports = tuple(_ports(mesh))
    to_services: tuple[Rule, ...] = tuple(
        (Address(End.DESTINATION, network), Goto("services")) for network in networks
    )
    refused = tuple(rule for network in networks for rule in _refusal(network))
    spared: tuple[Rule, ...] = tuple((Address(End.DESTINATION, address), Accept()) for address in own)
    return Table(
        TABLE,
        (
            *(chain for chain, _ in ports),
            Chain("services", tuple(rule for _, dispatch in ports for rule in dispatch)),
            Chain("prerouting", to_services, Base("nat", Hook.PREROUTING, DSTNAT)),
            Chain("output", to_services, Base("nat", Hook.OUTPUT, DSTNAT)),
            Chain("postrouting", tuple(_hairpins(mesh, node)), Base("nat", Hook.POSTROUTING, SRCNAT)),
            Chain("refuse_forwarded", (_GO_ON, *refused), Base("filter", Hook.FORWARD, FILTER)),
            Chain("refuse_own", (_GO_ON, *spared, *refused), Base("filter", Hook.OUTPUT, FILTER)),
        ),
    )


def _refusal(network: str) -> tuple[Rule, ...]:
    there = Address(End.DESTINATION, network)
    return (there, Transport(L4.TCP), Reject(reset=True)), (there, Reject())


def _ports(mesh: Mesh) -> Iterator[tuple[Chain, tuple[Rule, ...]]]:
    """For each virtual address and port that is served: the chain of its pods, and the rules to it."""
    for service in mesh.services():
        for port in sorted({each.port for each in service.ports}):
            for address in service.addresses:
                chain = Chain(_name(service, port, address), tuple(_choices(mesh, service, port, address)))
                if chain.rules:
                    yield chain, tuple(_dispatch(address, port, chain.name))


def _name(service: Service, port: int, address: str) -> str:
    family = "v6" if ":" in address else "v4"
    index = [each for each in service.addresses if (":" in each) == (":" in address)].index(address)
    return f"svc/{service.namespace}/{service.name}/{port}/{family}{f'.{index}' if index else ''}"


def _dispatch(address: str, port: int, chain: str) -> Iterator[Rule]:
    for protocol in L4:
        yield Address(End.DESTINATION, address), DestinationPort(protocol, port), Goto(chain)


def _choices(mesh: Mesh, service: Service, port: int, address: str) -> Iterator[Rule]:
    """One rule a pod: of n that are left, the first is taken with a chance of one in n."""
    targets = [
        (ip, target)
        for workload, target in mesh.targets(service.key, port)
        for ip in workload.addresses
        if (":" in ip) == (":" in address)
    ]
    for left, (ip, target) in zip(range(len(targets), 0, -1), targets, strict=True):
        yield (Chance(left), Translate(ip, target)) if left > 1 else (Translate(ip, target),)


def _hairpins(mesh: Mesh, node: str) -> Iterator[Rule]:
    for workload in mesh.workloads():
        if workload.services and not workload.host_network and node in ("", workload.node):
            for ip in workload.addresses:
                yield Address(End.SOURCE, ip), Address(End.DESTINATION, ip), Masquerade()
