"""What CNI plugins are told, and how their answers are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ambient.errors import AmbientError, ConfigError
from ambient.fabric import cni, cni_plan
from ambient.fabric.wiring_plan import NodePlan

PLAN = NodePlan(2)


def chain(kind: str, socket: str = "", *, ipv6: bool = True) -> tuple[cni_plan.Config, ...]:
    return cni_plan.chain(kind, PLAN, data_dir="/run/x/cni", socket=socket, ipv6=ipv6)


@pytest.mark.parametrize("kind", cni_plan.KINDS)
def test_every_kind_gives_the_addresses_that_control_chose(kind: str) -> None:
    """Both families, out of the node's own networks, by the plugin that keeps the book."""
    (config,) = chain(kind)

    body = json.loads(
        cni_plan.request(config, "ambient-node-2", addresses=("10.244.2.7", "fd00:10:244:2::7"))
    )

    assert (body["cniVersion"], body["name"], body["type"]) == ("1.0.0", "ambient-node-2", kind)
    assert body["args"] == {"cni": {"ips": ["10.244.2.7", "fd00:10:244:2::7"]}}
    assert body["ipam"]["type"] == "host-local"
    assert [each[0]["subnet"] for each in body["ipam"]["ranges"]] == ["10.244.2.0/24", "fd00:10:244:2::/64"]
    assert [each["dst"] for each in body["ipam"]["routes"]] == ["0.0.0.0/0", "::/0"]
    assert "prevResult" not in body


def test_without_ipv6_there_is_one_range() -> None:
    """A kernel without IPv6 refuses the other."""
    (config,) = chain("bridge", ipv6=False)

    assert len(config["ipam"]["ranges"]) == len(config["ipam"]["routes"]) == 1


def test_ambient_cni_is_chained_last_and_told_where_the_agent_is() -> None:
    """It passes on the result of the plugin before it."""
    _first, ours = chain("ptp", "/run/x/cni.sock")

    body = json.loads(
        cni_plan.request(ours, "ambient-node-2", addresses=("10.244.2.7",), previous={"ips": []})
    )

    assert body == {
        "cniVersion": "1.0.0",
        "name": "ambient-node-2",
        "type": "ambient-cni",
        "socket": "/run/x/cni.sock",
        "prevResult": {"ips": []},
    }


def test_the_environment_of_a_call() -> None:
    """As the specification names it."""
    made = cni_plan.environment(
        "ADD",
        container="c1",
        netns="/proc/7/ns/net",
        arguments={"K8S_POD_NAME": "web"},
        path=("/a", "/b"),
    )

    assert made == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/proc/7/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web",
        "CNI_PATH": "/a:/b",
    }


def test_a_container_id_is_made_of_what_plugins_take() -> None:
    """A uid has slashes and a number sign."""
    assert cni_plan.container_id("Kubernetes//Pod/shop/web-1#2") == "Kubernetes__Pod_shop_web-1_2"


@pytest.mark.parametrize(
    ("output", "errors", "reason"),
    [
        (b'{"code": 7, "msg": "bad subnet", "details": "in range 0"}', b"", "bad subnet in range 0"),
        (b"", b"warning\npanic: no memory\n", "panic: no memory"),
        (b"not json", b"", "not json"),
        (b"[]", b"", "[]"),
        (b"", b"", "it ended with 3"),
    ],
    ids=["its-own-words", "stderr", "no-json", "no-object", "silence"],
)
def test_why_a_plugin_failed(output: bytes, errors: bytes, reason: str) -> None:
    """Whatever it printed, one line comes of it."""
    assert cni_plan.read_error(3, output, errors) == reason


def test_an_answer_that_is_no_object_is_an_error() -> None:
    """The next plugin could not read it either."""
    assert cni_plan.read_result(b" \n") == {}
    for output in (b"[]", b"{"):
        with pytest.raises(ConfigError, match="no JSON"):
            cni_plan.read_result(output)


def test_a_missing_plugin_is_named_with_the_mend(tmp_path: Path) -> None:
    """Before anything is started."""
    plugin = tmp_path / "ptp"
    plugin.write_text("")
    plugin.chmod(0o755)

    with pytest.raises(AmbientError, match=r"--cni ptp needs the CNI plugin host-local, not found in .*apt "):
        cni.require("ptp", (str(tmp_path),))
    with pytest.raises(AmbientError, match="bridge and host-local"):
        cni.require("bridge", (str(tmp_path),))
    cni.require("builtin", (str(tmp_path),))
