"""Laws of distribution: deltas add up to snapshots, and bytes may come in any pieces."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ambient.control.registry_plan import Registry, change_between, is_empty
from ambient.errors import RemoteProtocolError
from ambient.model.mesh import Mesh
from ambient.model.policy import Action, Match, Policy, Scope
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Protocol, Workload
from ambient.wire import xds
from ambient.wire.frames import encode

few = st.integers(0, 4)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    number = draw(few)
    return Workload(
        uid=f"uid-{number}",
        name=f"web-{number}",
        namespace="shop",
        addresses=(f"10.244.1.{draw(st.integers(2, 4))}",),
        protocol=draw(st.sampled_from(Protocol)),
        services=draw(st.dictionaries(st.sampled_from(["shop/a", "shop/b"]), st.just({80: 8080}))),
        healthy=draw(st.booleans()),
    )


@st.composite
def services(draw: st.DrawFn) -> Service:
    name = draw(st.sampled_from("ab"))
    port = ServicePort(port=draw(st.sampled_from([80, 81])), target_port=8080)
    return Service(name=name, namespace="shop", hostname=name, addresses=("10.96.0.9",), ports=(port,))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    name = draw(st.sampled_from("pq"))
    match = Match(destination_ports=(draw(st.integers(1, 3)),))
    scope = draw(st.sampled_from(Scope))
    return Policy(key=f"shop/{name}", namespace="shop", action=Action.DENY, scope=scope, rules=(((match,),),))


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    return Registry(
        workloads={each.uid: each for each in draw(st.lists(workloads(), max_size=5))},
        services={each.key: each for each in draw(st.lists(services(), max_size=3))},
        policies={each.key: each for each in draw(st.lists(policies(), max_size=3))},
    )


def content(mesh: Mesh) -> tuple[object, ...]:
    return mesh.workloads(), mesh.services(), mesh.policies()


@given(st.lists(registries(), min_size=1, max_size=5))
def test_deltas_add_up_to_the_snapshot(history: list[Registry]) -> None:
    """A daemon that was there all the time knows what one that comes now is told."""
    followed, late = Mesh(), Mesh()
    followed.apply(change_between(None, history[0]))
    for before, after in pairwise(history):
        followed.apply(change_between(before, after))

    late.apply(change_between(None, history[-1]))

    assert content(followed) == content(late)


@given(registries(), registries())
def test_a_change_is_empty_exactly_if_nothing_changed(before: Registry, after: Registry) -> None:
    """Nothing is sent for nothing, and never nothing for something."""
    assert is_empty(change_between(before, after)) == before.same_as(after)
    assert is_empty(change_between(after, replace(after, version=7)))
    assert not is_empty(change_between(None, Registry()))


def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    edges = [0, *cuts, len(data)]
    # An empty piece would be the end of file.
    return [data[a:b] for a, b in pairwise(edges) if a != b]


@st.composite
def split_updates(draw: st.DrawFn) -> tuple[list[Registry], int, list[bytes]]:
    history = draw(st.lists(registries(), min_size=1, max_size=3))
    size = draw(st.integers(1, 4))
    control = xds.ControlEnd()
    control.receive_data(xds.DaemonEnd().hello())
    stream, told = b"", None
    for registry in history:
        stream += control.update(change_between(told, registry), slice_resources=size)[1]
        told = registry
    return history, size, pieces(draw, stream)


@given(split_updates())
def test_a_daemon_knows_the_last_registry_however_the_bytes_come(
    made: tuple[list[Registry], int, list[bytes]],
) -> None:
    """TCP keeps order, not edges; slices are of any size."""
    history, _, stream = made
    daemon, mesh, direct = xds.DaemonEnd(), Mesh(), Mesh()
    daemon.hello()

    events = [event for piece in stream for event in daemon.receive_data(piece)]
    for event in events:
        assert isinstance(event, xds.Updated)
        mesh.apply(event.change)

    direct.apply(change_between(None, history[-1]))
    assert content(mesh) == content(direct)
    assert len(events) == len(history)


plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
kinds = st.sampled_from(["hello", "ack", "csr", "report", "update", "pods", "certificate", "drain"])
fields = st.sampled_from(
    [
        "nonce",
        "error",
        "id",
        "identity",
        "csr",
        "pod",
        "state",
        "pods",
        "workloads",
        "more",
        "snapshot",
        "version",
    ]
)


@given(st.lists(st.tuples(kinds, st.dictionaries(fields, plain, max_size=6)), max_size=5), st.booleans())
def test_whatever_the_peer_says_the_worst_is_a_close(
    frames: list[tuple[str, dict[str, Any]]], at_control: bool
) -> None:
    """No other exception comes out of a wire, and none of it is believed half."""
    end: xds.ControlEnd | xds.DaemonEnd
    if at_control:
        end = xds.ControlEnd()
    else:
        end = xds.DaemonEnd()
        end.hello()

    with suppress(RemoteProtocolError):
        for kind, values in frames:
            end.receive_data(encode({"kind": kind, **values}))
