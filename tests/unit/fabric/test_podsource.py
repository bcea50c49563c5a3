"""What control says about a pod."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import RemoteProtocolError
from ambient.fabric.podsource import read_order
from ambient.model.podspec import EnvVar, Probe, ProbeKind


def order(**changes: Any) -> dict[str, Any]:
    container = {
        "name": "web",
        "command": ["nginx"],
        "env": [{"name": "A", "value": "1", "field_path": ""}],
        "ports": [{"number": 80, "name": "http"}],
        "readiness": {"kind": "http", "port": 80, "path": "/ok", "headers": [["X", "y"]], "command": []},
    }
    return {
        "uid": "u",
        "namespace": "shop",
        "name": "web-0",
        "node": "node-1",
        "addresses": ["10.244.1.2"],
        "mode": "none",
        "engine": "ambient",
        "role": "app",
        "spec": {"containers": [container], "labels": {"app": "web"}},
        **changes,
    }


def test_an_order_is_read_into_values() -> None:
    """Lists of the wire become tuples, kinds become kinds."""
    pod = read_order(order())
    container = pod.spec.containers[0]

    assert container.env == (EnvVar(name="A", value="1"),)
    assert container.readiness == Probe(kind=ProbeKind.HTTP, port=80, path="/ok", headers=(("X", "y"),))
    assert pod.full_name == "shop/web-0"


@pytest.mark.parametrize(
    "broken",
    [{"uid": None, "spec": {}}, {"spec": {"containers": [{}]}}, {"addresses": None}],
    ids=["no-containers", "nameless", "no-addresses"],
)
def test_a_broken_order_blames_control(broken: dict[str, Any]) -> None:
    """Not a KeyError somewhere in the supervisor."""
    with pytest.raises(RemoteProtocolError):
        read_order(order(**broken))
