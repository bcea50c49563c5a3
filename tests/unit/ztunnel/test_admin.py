"""What ztunnel shows of itself, and what it may be told."""

from __future__ import annotations

import inspect
import json
import threading

import trio

from ambient.engine.pages import Answer, Routes
from ambient.model.policy import Action, Policy, Scope
from tests.flow.loopback import LoopbackMesh, application, echo, in_mesh
from ztunnel.admin import Inside, admin_routes, ready_routes
from ztunnel.levels import Levels
from ztunnel.settings import Settings


def inside(mesh: LoopbackMesh, **fields: object) -> Inside:
    given = {
        "settings": Settings(node="n1"),
        "mesh": mesh.mesh,
        "proxies": mesh.proxies,
        "certificates": dict,
        "reactor": mesh.reactor,
        "levels": Levels(),
        "stop": lambda: None,
    }
    return Inside(**(given | fields))  # type: ignore[arg-type]


async def call(routes: Routes, path: str, method: str = "GET", **query: str) -> Answer:
    found = routes[path][method](query)
    return await found if inspect.isawaitable(found) else found


@in_mesh
async def test_a_dump_says_what_is_served_and_decided(mesh: LoopbackMesh) -> None:
    """The one page that explains a surprise."""
    web, api = mesh.workload("web"), mesh.workload("api")
    mesh.service("api", 80)
    mesh.policies(Policy(key="shop/p", namespace="other", action=Action.DENY, scope=Scope.NAMESPACE))
    await mesh.enroll(web)
    await mesh.enroll(api)
    refused = {"spiffe://a/ns/b/sa/c": ((), (), "not of this node")}
    routes = admin_routes(inside(mesh, certificates=lambda: refused))

    async with application(api, 8080, echo):
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        body = (await call(routes, "/config_dump")).body
        open_ = json.loads((await call(routes, "/debug/connections")).body)
        await stream.aclose()
        await mesh.records(2)

    document = json.loads(body)
    assert [each["name"] for each in document["workloads"]] == ["api", "web"]
    assert [each["name"] for each in document["services"]] == ["api"]
    assert [each["name"] for each in document["policies"]] == ["p"]
    state = document["workloadState"][web.uid]
    assert state["state"] == "Up"
    assert state["info"] == {
        "name": "web",
        "namespace": "shop",
        "trustDomain": "cluster.local",
        "serviceAccount": "web",
    }
    (outbound,) = state["connections"]["outbound"]
    assert outbound["protocol"] == "HBONE"
    assert outbound["src"].startswith(web.addresses[0])
    assert outbound["originalDst"] == f"{api.addresses[0]}:8080"
    assert outbound["actualDst"] == f"{api.addresses[0]}:15008"
    (inbound,) = document["workloadState"][api.uid]["connections"]["inbound"]
    assert inbound["originalDst"] == f"{api.addresses[0]}:8080"
    assert {each["direction"] for each in open_[web.uid]} == {"outbound"}
    assert document["config"]["node"] == "n1"
    assert document["certificates"][0]["state"] == "Unavailable"
    assert document["version"]
    assert b"GET /config_dump" in str((await call(routes, "/")).body).encode()


@in_mesh
async def test_a_dump_of_many_lets_others_go_on(mesh: LoopbackMesh) -> None:
    """The thread that writes it moves everybody's bytes: it looks up between any two steps."""
    for number in range(301):
        mesh.workload(f"w{number}")
    routes, turns = admin_routes(inside(mesh)), 0

    async with trio.open_nursery() as nursery:

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(others)
        document = json.loads((await call(routes, "/config_dump")).body)
        nursery.cancel_scope.cancel()

    assert len(document["workloads"]) == 301
    assert turns >= 6


@in_mesh
async def test_levels_are_shown_and_set(mesh: LoopbackMesh) -> None:
    """And nonsense changes nothing."""
    levels = Levels()
    routes = admin_routes(inside(mesh, levels=levels))

    assert (await call(routes, "/logging")).body == "current log level is info\n"
    changed = await call(routes, "/logging", "POST", level="access:error,info")
    assert (changed.status, changed.body) == (200, "current log level is access=error,info\n")
    assert (await call(routes, "/logging", "POST", level="loud")).status == 400
    assert (await call(routes, "/logging", "POST", volume="loud")).status == 400
    assert str(levels) == "access=error,info"
    assert (await call(routes, "/logging", "POST", reset="true")).body == "current log level is info\n"


@in_mesh
async def test_quitquitquit_begins_the_drain(mesh: LoopbackMesh) -> None:
    """By POST only: a link must not stop a node."""
    stop = trio.Event()
    routes = admin_routes(inside(mesh, stop=stop.set))

    assert set(routes["/quitquitquit"]) == {"POST"}
    assert (await call(routes, "/quitquitquit", "POST")).status == 200
    assert stop.is_set()


@in_mesh
async def test_a_profile_shows_what_the_loop_did_and_lets_it_go_on(mesh: LoopbackMesh) -> None:
    """One at a time, and abandoned when the asker leaves."""
    routes = admin_routes(inside(mesh))
    answers: list[Answer] = []

    async def one() -> None:
        answers.append(await call(routes, "/debug/pprof/profile", seconds="1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        await trio.sleep(0.05)
        second = await call(routes, "/debug/pprof/profile", seconds="1")
        assert second.status == 409
        assert not answers

    assert answers[0].status == 200
    lines = str(answers[0].body).splitlines()
    assert lines
    assert all(line.rpartition(" ")[2].isdecimal() for line in lines)
    assert "ambient.engine.reactor.Reactor.run_once" in str(answers[0].body)

    threads = threading.active_count()
    with trio.move_on_after(0.1):
        await call(routes, "/debug/pprof/profile", seconds="300")
    with trio.fail_after(5):
        while threading.active_count() > threads:  # noqa: ASYNC110 - a thread has no event here.
            await trio.sleep(0.01)
    assert (await call(routes, "/debug/pprof/profile", seconds="0")).status == 400


@in_mesh
async def test_the_loop_counts(mesh: LoopbackMesh) -> None:
    """And of a failure only its kind: its text may be a peer's."""
    mesh.reactor.record_failure(ValueError("secret of a peer"))
    body = (await call(admin_routes(inside(mesh)), "/debug/reactor")).body
    mesh.reactor.failures.clear()

    found = json.loads(body)
    assert found["recent_failures"] == ["ValueError"]
    assert found["callback_failures"] == 1
    assert found["batches"] > 0


def test_readiness_names_what_it_waits_for() -> None:
    """Whoever looks at a node that does not come up."""
    waiting = ["state manager", "workload proxy manager"]
    ready = ready_routes(lambda: waiting)["/healthz/ready"]["GET"]

    first = ready({})
    assert isinstance(first, Answer)
    assert first.status == 500
    assert first.body == "not ready, pending: state manager, workload proxy manager\n"
    waiting.clear()
    assert ready({}) == Answer(200, "ready\n")
