"""One pod's namespace: opened once, read back, and left as it should be."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from ambient.errors import ConfigError
from ambient.redirect import backend
from ambient.redirect.backend import Standing
from ambient.redirect.keeper_plan import State
from ambient.redirect.plan import Capture, capture_plan, closed_plan, drain_plan
from ambient.redirect.pod_home import PodHome
from ambient.wire.nft import Table
from ambient.wire.xds import NodePod
from tests.lab import in_namespaces, make_netns

CAPTURE = Capture()


def pod_in(path: str, *addresses: str) -> NodePod:
    """A pod that is said to live at *path*."""
    return NodePod(
        uid="u", namespace="shop", name="web", service_account="default", addresses=addresses, netns=path
    )


def path_of(netns: int) -> str:
    return f"/proc/{os.getpid()}/fd/{netns}"


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (capture_plan(CAPTURE), (State.ENROLLED, True)),
        (drain_plan(), (State.DRAINING, False)),
        (closed_plan(CAPTURE), (State.LOST, False)),
        (None, (State.NONE, False)),
    ],
)
@in_namespaces
def test_where_a_pod_stands_is_read_from_its_namespace(
    table: Table | None, found: tuple[State, bool]
) -> None:
    netns = make_netns({})
    if table is not None:
        backend.put(netns, table)

    with closing(PodHome(backend)) as home:
        assert home.state(pod_in(path_of(netns))) == found
        assert home.opened == 1


@in_namespaces
def test_routing_without_rules_is_what_an_agent_left_that_died() -> None:
    netns = make_netns({})
    backend.add_routing(netns)

    with closing(PodHome(backend)) as home:
        assert home.state(pod_in(path_of(netns))) == (State.NONE, False)

    assert not backend.read(netns).routing_rules


@in_namespaces
async def test_a_lost_pod_is_closed_or_open_as_policy_says() -> None:
    netns = make_netns({})
    pod = pod_in(path_of(netns))
    with closing(PodHome(backend)) as home:
        home.open(pod)
        await home.capture(pod)
        assert home.is_captured(netns, CAPTURE)

        assert await home.shut_or_drain(CAPTURE, strict=True)
        assert backend.standing(netns) is Standing.CLOSED
        assert not await home.shut_or_drain(CAPTURE, strict=True)
        assert not await home.shut_or_drain(CAPTURE, strict=False)
        assert backend.standing(netns) is Standing.DRAINING

        await home.remove()
        assert backend.standing(netns) is Standing.NONE


@pytest.mark.parametrize(
    ("was", "standing"),
    [
        (State.LOST, Standing.CLOSED),
        (State.DRAINING, Standing.DRAINING),
        (State.NONE, Standing.NONE),
        (State.FAILED, Standing.NONE),
    ],
)
@in_namespaces
async def test_what_could_not_be_captured_stands_as_before(was: State, standing: Standing) -> None:
    netns = make_netns({})
    pod = pod_in(path_of(netns))
    with closing(PodHome(backend)) as home:
        home.open(pod)
        await home.install(CAPTURE)

        await home.restore(was, CAPTURE, strict=True)

        assert backend.standing(netns) is standing


@in_namespaces
async def test_who_is_not_captured_cannot_be_drained() -> None:
    netns = make_netns({})
    with closing(PodHome(backend)) as home:
        home.open(pod_in(path_of(netns)))
        with pytest.raises(ConfigError, match="not captured"):
            await home.drain()


@in_namespaces
def test_a_path_that_leads_elsewhere_by_now_is_not_the_pod_s() -> None:
    netns = make_netns({})
    pod = pod_in(path_of(netns), "10.244.1.9")
    with closing(PodHome(backend)) as home:
        first = home.open(pod)
        assert home.open_now(pod) == first

        another = make_netns({})
        os.dup2(another, netns)
        with pytest.raises(ConfigError, match="is not the pod's"):
            home.open_now(pod)
        assert home.fd is None


def test_no_namespace_is_said_in_one_line() -> None:
    with closing(PodHome(backend)) as home, pytest.raises(ConfigError, match="no network namespace"):
        home.open(pod_in("/nowhere"))
