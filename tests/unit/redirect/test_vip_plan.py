"""Virtual addresses: which pod a connection may get, and what is refused."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ambient.model.mesh import Change, Mesh
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Workload
from ambient.redirect import text
from ambient.redirect.vip_plan import vip_plan
from ambient.wire.nft import Chain, Chance, Table, Translate

WEB = Service(
    name="web",
    namespace="shop",
    hostname="web.shop.svc.cluster.local",
    addresses=("10.96.0.20", "fd00:10:96::14"),
    ports=(ServicePort(port=80, target_port=8080), ServicePort(port=443)),
)


def pod(number: int, *, node: str = "node-1", healthy: bool = True, service: Service = WEB) -> Workload:
    return Workload(
        uid=f"pod-{number:03}",
        name=f"pod-{number}",
        namespace="shop",
        addresses=(f"10.244.1.{number}", f"fd00:10:244:1::{number}"),
        node=node,
        healthy=healthy,
        services={service.key: {80: 8080}},
    )


def mesh_of(*pods: Workload, services: tuple[Service, ...] = (WEB,)) -> Mesh:
    mesh = Mesh()
    mesh.apply(Change(services=services, workloads=pods, snapshot=True))
    return mesh


def rules(table: Table, name: str) -> list[str]:
    return [text.format_rule(rule) for chain in table.chains if chain.name == name for rule in chain.rules]


def shares(chain: Chain) -> dict[str, Fraction]:
    """The exact chance of each pod."""
    found, left = {}, Fraction(1)
    for rule in chain.rules:
        match rule:
            case (Chance(of), Translate(ip, _)):
                found[ip] = left / of
                left -= found[ip]
            case (Translate(ip, _),):
                found[ip] = left
    return found


@given(st.integers(1, 60))
def test_every_pod_has_the_same_chance(count: int) -> None:
    """Exactly one in n, and together one."""
    table = vip_plan(mesh_of(*(pod(number) for number in range(2, 2 + count))))

    chain = next(chain for chain in table.chains if chain.name == "svc/shop/web/80/v4")

    assert set(shares(chain).values()) == {Fraction(1, count)}
    assert len(shares(chain)) == count


def test_a_port_goes_to_its_target_by_family_and_protocol() -> None:
    """A v6 address never leads to a v4 pod."""
    table = vip_plan(mesh_of(pod(2)))

    assert rules(table, "services") == [
        "ip daddr 10.96.0.20 tcp dport 80 goto svc/shop/web/80/v4",
        "ip daddr 10.96.0.20 udp dport 80 goto svc/shop/web/80/v4",
        "ip6 daddr fd00:10:96::14 tcp dport 80 goto svc/shop/web/80/v6",
        "ip6 daddr fd00:10:96::14 udp dport 80 goto svc/shop/web/80/v6",
    ]
    assert rules(table, "svc/shop/web/80/v6")[0].endswith("dnat ip6 to [fd00:10:244:1::2]:8080")


def test_what_nobody_serves_has_no_chain_and_is_refused() -> None:
    """No endpoint, an unhealthy one, or a port without one."""
    table = vip_plan(mesh_of(pod(2, healthy=False)))

    assert rules(table, "services") == []
    assert rules(table, "refuse_forwarded") == [
        "ct status dnat accept",
        "ip daddr 10.96.0.0/16 meta l4proto tcp reject with tcp reset",
        "ip daddr 10.96.0.0/16 reject with icmpx type port-unreachable",
        "ip6 daddr fd00:10:96::/112 meta l4proto tcp reject with tcp reset",
        "ip6 daddr fd00:10:96::/112 reject with icmpx type port-unreachable",
    ]
    assert rules(table, "refuse_own")[1] == "ip daddr 10.96.0.10 accept"


def test_only_pods_of_this_node_can_reach_themselves_through_it() -> None:
    """The rule is one a pod and family; a thousand nodes need not each have all."""
    table = vip_plan(mesh_of(pod(2), pod(3, node="node-2")), "node-1")

    assert rules(table, "postrouting") == [
        "ip saddr 10.244.1.2 ip daddr 10.244.1.2 masquerade",
        "ip6 saddr fd00:10:244:1::2 ip6 daddr fd00:10:244:1::2 masquerade",
    ]


def test_two_addresses_of_one_family_have_chains_of_their_own() -> None:
    """A name is a chain's only identity."""
    service = Service(
        name="web",
        namespace="shop",
        hostname=WEB.hostname,
        addresses=("10.96.0.20", "10.96.0.21"),
        ports=(ServicePort(port=80),),
    )
    table = vip_plan(mesh_of(pod(2), services=(service,)))

    names = [chain.name for chain in table.chains]
    assert len(names) == len(set(names))
    assert {"svc/shop/web/80/v4", "svc/shop/web/80/v4.1"} <= set(names)


@given(st.permutations([pod(2), pod(3), pod(4)]))
def test_the_order_of_arrival_changes_nothing(pods: list[Workload]) -> None:
    """Equal meshes, equal rules: or transactions would be made for nothing."""
    assert vip_plan(mesh_of(*pods)) == vip_plan(mesh_of(pod(2), pod(3), pod(4)))
