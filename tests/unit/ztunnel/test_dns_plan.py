"""What a captured pod is told when it looks up a name: a table, and laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.model.mesh import Change, Mesh
from ambient.model.service import CLUSTER_DOMAIN, Service
from ambient.model.workload import Workload
from ambient.wire.dns import TYPE_A, TYPE_AAAA, Answer, Query, Rcode
from ztunnel.dns_plan import aliases, nameservers, resolve, search_domains, turned, wildcards

ME = Workload(uid="web", name="web", namespace="shop", addresses=("10.244.1.4",))


def service(name: str, namespace: str, *addresses: str, hostname: str = "") -> Service:
    host = hostname or f"{name}.{namespace}.svc.cluster.local"
    return Service(name=name, namespace=namespace, hostname=host, addresses=addresses)


API = service("api", "shop", "10.96.0.7", "fd00:10:96::7")
FOUR = service("four", "bank", "10.96.0.8")
DB = service("db", "shop")
MANY = service("many", "shop", "10.96.1.1", "10.96.1.2", "10.96.1.3")
OUTSIDE = service("outside", "shop", "10.96.0.9", hostname="www.example.com")
WILD = service("wild", "shop", "10.96.0.10", hostname="*.example.net")
WILDER = service("wilder", "shop", "10.96.0.11", hostname="*.a.example.net")
HEADLESS_OUTSIDE = service("headless", "shop", hostname="db.example.org")
POD = Workload(
    uid="db-0", name="db-0", namespace="shop", addresses=("10.244.1.5",), services={DB.key: {5432: 5432}}
)

MESH = Mesh()
MESH.apply(
    Change(
        workloads=(ME, POD),
        services=(API, FOUR, DB, MANY, OUTSIDE, WILD, WILDER, HEADLESS_OUTSIDE),
    )
)


def ask(name: str, kind: int = TYPE_A, me: Workload | None = ME, **fields: int) -> Answer | None:
    return resolve(MESH, me, Query(1, name, kind, b"", **fields), 0.0)


@pytest.mark.parametrize(
    ("name", "kind", "addresses", "alias_of"),
    [
        ("api.shop.svc.cluster.local", TYPE_A, ("10.96.0.7",), ""),
        ("api.shop.svc.cluster.local", TYPE_AAAA, ("fd00:10:96::7",), ""),
        ("four.bank.svc.cluster.local", TYPE_AAAA, (), ""),
        ("api", TYPE_A, ("10.96.0.7",), ""),
        ("four.bank", TYPE_A, ("10.96.0.8",), ""),
        ("four.bank.svc", TYPE_A, ("10.96.0.8",), ""),
        ("four.bank.svc.cluster", TYPE_A, ("10.96.0.8",), ""),
        ("four.bank.shop.svc.cluster.local", TYPE_A, ("10.96.0.8",), "four.bank.svc.cluster.local"),
        ("four.bank.svc.svc.cluster.local", TYPE_A, ("10.96.0.8",), "four.bank.svc.cluster.local"),
        (
            "four.bank.svc.cluster.local.shop.svc.cluster.local",
            TYPE_A,
            ("10.96.0.8",),
            "four.bank.svc.cluster.local",
        ),
        ("four.bank.shop.svc.cluster.local", TYPE_AAAA, (), ""),
        ("www.example.com", TYPE_A, ("10.96.0.9",), ""),
        ("www.example.com.shop.svc.cluster.local", TYPE_A, ("10.96.0.9",), "www.example.com"),
        ("www.example.com.cluster.local", TYPE_A, ("10.96.0.9",), "www.example.com"),
        ("x.example.net", TYPE_A, ("10.96.0.10",), ""),
        ("x.y.example.net", TYPE_A, ("10.96.0.10",), ""),
        ("x.a.example.net", TYPE_A, ("10.96.0.11",), ""),
        ("x.example.net.svc.cluster.local", TYPE_A, ("10.96.0.10",), ""),
        ("db.shop.svc.cluster.local", TYPE_A, ("10.244.1.5",), ""),
        ("db-0.db.shop.svc.cluster.local", TYPE_A, ("10.244.1.5",), ""),
        ("10-244-1-5.shop.pod.cluster.local", TYPE_A, ("10.244.1.5",), ""),
    ],
)
def test_what_the_mesh_knows_is_answered(
    name: str, kind: int, addresses: tuple[str, ...], alias_of: str
) -> None:
    """Full, short, completed by a search list, wildcard, headless, pod; the other family is empty."""
    assert ask(name, kind) == Answer(Rcode.NOERROR, addresses, alias_of)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("example.org", TYPE_A),
        ("gone.shop.svc.cluster.local", TYPE_A),
        ("db.example.org", TYPE_A),
        ("example.net", TYPE_A),
        ("four", TYPE_A),
        ("", TYPE_A),
        ("api.shop.svc.cluster.local", 33),
    ],
    ids=["outside", "unknown", "headless-outside", "wildcard's-parent", "other-namespace", "root", "srv"],
)
def test_the_rest_is_asked_upstream(name: str, kind: int) -> None:
    """Whoever knows says no."""
    assert ask(name, kind) is None


def test_only_questions_of_a_known_pod_in_the_internet_class() -> None:
    """An UPDATE is not implemented, a stranger is refused, another class is not ours."""
    assert ask("api.shop.svc.cluster.local", opcode=5) == Answer(Rcode.NOTIMP)
    assert ask("api.shop.svc.cluster.local", me=None) == Answer(Rcode.SERVFAIL)
    assert ask("api.shop.svc.cluster.local", kind_class=3) is None


def test_own_namespace_then_the_preferred_one_then_by_value() -> None:
    """Several namespaces may give one outside name an address."""
    mesh = Mesh()
    for number, namespace in enumerate(("a", "b", "shop"), 1):
        found = service("x", namespace, f"10.96.9.{number}", hostname="x.example")
        mesh.apply(Change(services=(found,)))

    def chosen(me: Workload, preferred: str) -> tuple[str, ...]:
        answer = resolve(mesh, me, Query(1, "x.example", TYPE_A, b""), 0.0, preferred)
        assert answer is not None
        return answer.addresses

    stranger = Workload(uid="z", name="z", namespace="z")
    assert chosen(ME, "b") == ("10.96.9.3",)
    assert chosen(stranger, "b") == ("10.96.9.2",)
    assert chosen(stranger, "") == ("10.96.9.1",)


names = st.sampled_from(
    ["api", "four.bank", "db", "many", "www.example.com", "x.example.net", "gone", "a.b.c"]
)


@given(names, st.sampled_from([TYPE_A, TYPE_AAAA]), st.floats(0, 1, exclude_max=True))
def test_completing_a_name_changes_nothing_but_the_alias(name: str, kind: int, chance: float) -> None:
    """Law: what a resolver with a search list asks first is worth what it would ask last."""
    plain = resolve(MESH, ME, Query(1, name, kind, b""), chance)
    for domain in search_domains(ME.namespace):
        completed = resolve(MESH, ME, Query(1, f"{name}.{domain}", kind, b""), chance)
        if plain is not None and completed is not None:
            assert completed.addresses == plain.addresses


@given(names, st.sampled_from([TYPE_A, TYPE_AAAA]), st.floats(0, 1, exclude_max=True))
def test_an_answer_holds_addresses_of_its_family_only(name: str, kind: int, chance: float) -> None:
    """Law: AAAA records of four bytes crash resolvers."""
    answer = resolve(MESH, ME, Query(1, name, kind, b""), chance)
    if answer is not None:
        assert all((":" in each) is (kind == TYPE_AAAA) for each in answer.addresses)


@given(st.lists(st.text(min_size=1), unique=True).map(tuple), st.floats(0, 1, exclude_max=True))
def test_turning_loses_nothing(addresses: tuple[str, ...], chance: float) -> None:
    """Law: a permutation, and every address gets its turn at the front."""
    assert sorted(turned(addresses, chance)) == sorted(addresses)
    fronts = {turned(addresses, (n + 0.5) / len(addresses))[0] for n in range(len(addresses))}
    assert fronts == set(addresses)


label = st.text("abcdefghij-", min_size=1, max_size=8)


@given(st.lists(label, min_size=1, max_size=30).map(".".join))
def test_one_question_is_few_lookups(name: str) -> None:
    """Law: a name of any length costs a bounded number of candidates, the name itself first."""
    candidates = list(aliases(name, "shop"))

    assert candidates[0].name == name
    assert len(candidates) <= 12
    assert all(len(list(wildcards(each.name))) <= name.count(".") + 4 for each in candidates)


def test_the_domain_is_the_one_that_names_are_completed_with() -> None:
    """kubelet's search list."""
    assert search_domains("shop") == ("shop.svc.cluster.local", "svc.cluster.local", CLUSTER_DOMAIN)


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("search a\nnameserver 10.96.0.10\noptions ndots:5\n", ("10.96.0.10",)),
        ("nameserver 1.1.1.1\nnameserver ::1\nnameserver 2\nnameserver 3\n", ("1.1.1.1", "::1", "2")),
        ("nameserver\n#nameserver 1.1.1.1\nnameserver fe80::1%eth0\n", ()),
        ("", ()),
    ],
)
def test_the_machines_own_servers(text: str, servers: tuple[str, ...]) -> None:
    """resolv.conf(5): three at most."""
    assert nameservers(text) == servers
