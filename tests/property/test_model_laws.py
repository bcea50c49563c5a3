"""Laws of the ground floor: they hold for every mesh, policy and text."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from ambient.errors import ConfigError
from ambient.model.address import canonical, format_hostport, parse_hostport
from ambient.model.identity import SpiffeId
from ambient.model.manifest import parse_manifests
from ambient.model.mesh import Change, Mesh
from ambient.model.network import canonical_network, contains
from ambient.model.policy import Action, Connection, Match, Policy, Scope, StringMatch, decide
from ambient.model.route import Admitted, Pass, Refuse, Tunnel, admit, route, route_request
from ambient.model.service import Service
from ambient.model.workload import Protocol, Workload
from tests.meshes import service, workload

# No deadline: a busy machine is no failure. Few examples, as each law asks a mesh for everything it holds.
LAW = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])

WAYPOINT = service("waypoint", "10.96.0.100", port=15008)
ADDRESSES = [f"10.0.0.{index}" for index in range(6)] + ["fd00::1", "9.9.9.9"]
VIPS = [f"10.96.0.{index}" for index in range(3)]
KEYS = [f"shop/svc{index}.shop.svc.cluster.local" for index in range(3)] + [WAYPOINT.key]
NAMES = ["shop/a", "shop/b", "other/c"]
PORTS = [80, 81, 15008]

labels = st.sampled_from(["web", "api", "db"])
identities = st.builds(SpiffeId, st.just("cluster.local"), labels, labels)
texts = st.sampled_from(["*", "web", "we*", "*b", "cluster.local/ns/web/sa/api"]).map(StringMatch.parse)
blocks = st.sampled_from(["10.0.0.0/8", "10.0.0.1/32", "fd00::/8", "0.0.0.0/0"])


def few(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(values, max_size=2).map(tuple)


matches = st.builds(
    Match,
    namespaces=few(texts),
    not_namespaces=few(texts),
    principals=few(texts),
    not_principals=few(texts),
    source_ips=few(blocks),
    not_source_ips=few(blocks),
    destination_ips=few(blocks),
    destination_ports=few(st.sampled_from(PORTS)),
    not_destination_ports=few(st.sampled_from(PORTS)),
)
policies = st.builds(
    Policy,
    key=st.sampled_from(NAMES),
    namespace=st.sampled_from(["shop", "other"]),
    action=st.sampled_from(Action),
    scope=st.sampled_from(Scope),
    rules=few(few(few(matches))),
)
connections = st.builds(
    Connection,
    st.none() | identities,
    st.sampled_from(ADDRESSES),
    st.sampled_from(ADDRESSES),
    st.sampled_from(PORTS),
)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    number = draw(st.integers(0, 5))
    made = workload(
        f"w{number}",
        *draw(st.lists(st.sampled_from(ADDRESSES[:-1]), max_size=2, unique=True)),
        protocol=draw(st.sampled_from(Protocol)),
        waypoint=draw(st.sampled_from(["", WAYPOINT.key])),
        waypoint_for=draw(st.sampled_from(["", "", WAYPOINT.key])),
        policies=tuple(draw(st.lists(st.sampled_from(NAMES), max_size=2))),
        healthy=draw(st.booleans()),
        host_network=draw(st.booleans()),
    )
    chosen = draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True))
    return replace(made, services={key: {80: 8080} for key in chosen})


@st.composite
def services(draw: st.DrawFn) -> Service:
    vips = draw(st.lists(st.sampled_from(VIPS), max_size=2, unique=True))
    waypoint = draw(st.sampled_from(["", WAYPOINT.key]))
    return service(f"svc{draw(st.integers(0, 2))}", *vips, waypoint=waypoint)


def unique_by(values: st.SearchStrategy[object], name: str) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(values, max_size=6, unique_by=lambda each: getattr(each, name)).map(tuple)


snapshots = st.builds(
    Change,
    workloads=unique_by(workloads(), "uid"),
    services=unique_by(services(), "key"),
    policies=unique_by(policies, "key"),
    snapshot=st.just(True),
)
# Always with the waypoint that others name, or most of their routes would be refusals.
WAYPOINT_POD = workload("waypoint", "10.0.0.100", serves=WAYPOINT.key, port=15008, waypoint_for=WAYPOINT.key)
meshes = snapshots.map(lambda change: mesh_from(change, Change(workloads=(WAYPOINT_POD,))))


def mesh_from(*changes: Change) -> Mesh:
    mesh = Mesh()
    for change in changes:
        mesh.apply(change)
    return mesh


def delta(before: Mesh, after: Mesh) -> Change:
    """What makes *before* into *after*, without being a snapshot."""
    new, old = after.snapshot(), before.snapshot()
    return Change(
        workloads=tuple(each for each in new.workloads if each not in old.workloads),
        services=tuple(each for each in new.services if each not in old.services),
        policies=tuple(each for each in new.policies if each not in old.policies),
        removed_workloads=tuple({each.uid for each in old.workloads} - {each.uid for each in new.workloads}),
        removed_services=tuple({each.key for each in old.services} - {each.key for each in new.services}),
        removed_policies=tuple({each.key for each in old.policies} - {each.key for each in new.policies}),
    )


def answers(mesh: Mesh) -> list[object]:
    """Everything that can be asked of a mesh."""
    return [
        mesh.snapshot(),
        [mesh.workload_by_address(ip) for ip in ADDRESSES],
        [mesh.service_by_address(ip, "shop") for ip in VIPS],
        [mesh.service_by_hostname(f"svc{index}", "shop") for index in range(3)],
        [mesh.endpoints(key) for key in KEYS],
        [mesh.targets(key, port) for key in KEYS for port in PORTS],
        [mesh.policies_for(each) for each in mesh.workloads()],
    ]


several = st.lists(policies, max_size=4)


@LAW
@given(several.flatmap(lambda each: st.tuples(st.just(each), st.permutations(each))), connections)
def test_the_order_of_policies_never_changes_the_verdict(
    orders: tuple[list[Policy], list[Policy]], connection: Connection
) -> None:
    """They arrive in any order."""
    one, other = orders

    assert decide(one, connection) == decide(other, connection)


@LAW
@given(several, policies, connections)
def test_a_deny_policy_never_opens_a_door(
    before: list[Policy], extra: Policy, connection: Connection
) -> None:
    """Adding DENY can only turn allowed into denied."""
    deny = replace(extra, action=Action.DENY)

    after = decide([*before, deny], connection)

    assert not (after.allowed and deny.matches(connection))
    assert decide(before, connection).allowed or not after.allowed


@LAW
@given(snapshots, snapshots)
def test_a_delta_leads_to_the_same_mesh_as_the_snapshot(before: Change, after: Change) -> None:
    """A proxy that was told bit by bit answers like one that has just connected."""
    wanted = mesh_from(after)
    step_by_step = mesh_from(before)
    # Asked before the change, so that a remembered answer would show.
    answers(step_by_step)

    step_by_step.apply(delta(mesh_from(before), wanted))

    assert answers(step_by_step) == answers(wanted) == answers(mesh_from(before, after))


@LAW
@given(snapshots, snapshots, st.booleans(), st.sampled_from([0, 1_000]))
def test_a_mesh_that_is_changing_answers_by_the_old_or_by_the_new(
    before: Change, after: Change, as_delta: bool, in_place: int
) -> None:
    """Never by half of a change, whatever is asked between two of its steps."""
    changing = mesh_from(before)
    old, new = answers(changing), answers(mesh_from(after))
    change = delta(changing, mesh_from(after)) if as_delta else after
    seen = [old]
    with pytest.MonkeyPatch.context() as small:
        small.setattr("ambient.model.mesh.STEP_RESOURCES", 1)
        small.setattr("ambient.model.mesh_table.STEP_ENTRIES", 1)
        small.setattr("ambient.model.mesh_table.IN_PLACE_ENTRIES", in_place)
        for _ in changing.applying(change):
            seen.append(answers(changing))
    seen.append(answers(changing))

    switched = seen.index(new)
    assert all(each == old for each in seen[:switched])
    assert all(each == new for each in seen[switched:])


chances = st.floats(0, 1, exclude_max=True)
# A law asks about every target of a mesh: one drawn at random would mostly be a stranger's.
TARGETS = [(ip, port) for ip in [*ADDRESSES, *VIPS] for port in PORTS]
HOSTS = ["", "svc0", "svc1:80", "svc2.shop", "example.com", "10.0.0.1"]


@LAW
@given(meshes, workloads(), chances)
def test_route_never_sends_plaintext_to_hbone(mesh: Mesh, source: Workload, chance: float) -> None:
    """Nor leaves a waypoint out, nor sends a waypoint to itself, nor accepts an identity not the peer's."""
    for ip, port in TARGETS:
        found = route(mesh, source, ip, port, chance)

        _check_hop(mesh, found)
        owner = mesh.service_by_address(ip, source.namespace) or mesh.workload_by_address(ip)
        wanted = owner is not None and owner.waypoint not in ("", source.waypoint_for)
        assert isinstance(found, Refuse) or (isinstance(found, Tunnel) and found.through_waypoint) is wanted


@LAW
@given(meshes, workloads(), chances)
def test_a_waypoint_sends_requests_only_to_what_it_serves(mesh: Mesh, me: Workload, chance: float) -> None:
    """A Host header is the client's word."""
    for (ip, port), host in itertools.product(TARGETS, HOSTS):
        found = route_request(mesh, me, ip, port, host, chance)

        _check_hop(mesh, found)
        if me.waypoint_for and not isinstance(found, Refuse):
            chosen = mesh.service(found.service) or mesh.workload(found.workload_uid)
            assert chosen is not None
            assert chosen.waypoint == me.waypoint_for


def _check_hop(mesh: Mesh, found: Pass | Tunnel | Refuse) -> None:
    if isinstance(found, Refuse):
        return
    peer = mesh.workload(found.workload_uid)
    if isinstance(found, Pass):
        owner = mesh.workload_by_address(found.ip) if not found.service else peer
        assert owner is None or owner.protocol is not Protocol.HBONE
    else:
        assert peer is not None
        assert found.identities == {peer.identity}
        assert found.ip in peer.addresses


authorities = st.builds(
    format_hostport, st.sampled_from([*ADDRESSES, *VIPS, "svc0", "nobody"]), st.integers(1, 65535)
)


@LAW
@given(meshes, workloads(), st.sampled_from(ADDRESSES), authorities | st.text(max_size=20))
def test_admit_gives_only_targets_of_ones_own(mesh: Mesh, me: Workload, ip: str, authority: str) -> None:
    """Whatever the peer writes, an ordinary pod dials its own address or nothing."""
    found = admit(mesh, me, ip, authority, SpiffeId("cluster.local", "a", "b"))

    if isinstance(found, Admitted):
        assert found.ip == ip or me.waypoint_for
    else:
        assert found.status in (400, 404, 503)


@LAW
@given(st.ip_addresses().map(str).filter(lambda text: "%" not in text), st.integers(1, 65535))
def test_an_authority_survives_being_written(address: str, port: int) -> None:
    """parse(format(x)) == x, and canonical text stays as it is."""
    host = canonical(address)

    assert canonical(host) == host
    assert parse_hostport(format_hostport(host, port)) == (host, port)
    assert contains(canonical_network(host), host)


@LAW
@given(identities)
def test_an_identity_survives_being_written(identity: SpiffeId) -> None:
    """One principal has one spelling."""
    assert SpiffeId.parse(str(identity)) == identity


@LAW
@given(st.text(alphabet="abc*-./", min_size=1, max_size=6))
def test_a_text_condition_survives_being_written(text: str) -> None:
    """What is shown to people is what was meant."""
    with contextlib.suppress(ConfigError):
        match = StringMatch.parse(text)
        assert str(match) == text
        assert StringMatch.parse(str(match)) == match


PIECES = (
    "apiVersion: v1\n|kind: Pod\n|kind: List\n|metadata:\n|  name: a\n|spec:\n|  containers:\n|  - name: b\n|"
    "items:\n|- |&a |*a|{|}|[|]|'|---\n|? |: |<<|!!int |\t"
)
pieces = st.sampled_from(PIECES.split("|"))


@LAW
@given(st.lists(pieces, max_size=20).map("".join) | st.text(max_size=40))
def test_any_text_gives_objects_or_one_line(text: str) -> None:
    """A file from anywhere ends in objects or in ``file:line: reason``, never in a traceback."""
    try:
        parse_manifests([("m.yaml", text)])
        message = "m.yaml:1: fine"
    except ConfigError as exc:
        message = str(exc)

    place, line, _ = message.split(":", 2)
    assert place == "m.yaml"
    assert int(line) >= 1
    assert "\n" not in message
