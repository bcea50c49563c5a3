"""What a namespace that somebody else made counts as."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import ConfigError
from ambient.fabric.guests_plan import MAX_NAME, check_name, default_name, reachable, refuse_known


@pytest.mark.parametrize(
    ("program", "pid", "path", "name"),
    [
        ("nginx", 71, "", "nginx-71"),
        ("Web Content", 71, "", "web-content-71"),
        ("", 0, "/run/netns/cni-8F2a", "cni-8f2a"),
        ("", 0, "/run/netns/__", "guest"),
    ],
    ids=["process", "not-a-label", "path", "nothing-left"],
)
def test_default_names(program: str, pid: int, path: str, name: str) -> None:
    """A guest is found again by the name that its process or its path suggests."""
    assert default_name(program, pid, path) == name


@given(st.text(max_size=100), st.integers(0, 2**22), st.text(max_size=100))
def test_a_default_name_is_always_a_name(program: str, pid: int, path: str) -> None:
    """Whatever a stranger called its process."""
    name = default_name(program, pid, path)

    assert check_name(name) == name
    assert len(name) <= MAX_NAME


@pytest.mark.parametrize("name", ["", "Web", "-web", "web-", "a/b", "x" * 64])
def test_no_name_for_a_pod(name: str) -> None:
    """What Kubernetes would refuse, we refuse."""
    with pytest.raises(ConfigError, match="not a name for a pod"):
        check_name(name)


def test_reachable_addresses_are_those_that_others_can_send_to() -> None:
    """Each once, IPv4 first, as a pod's addresses are; an address on two links is one address."""
    found = [
        "127.0.0.1/8",
        "::1/128",
        "fe80::1/64",
        "fd00::2/64",
        "10.1.2.3/24",
        "169.254.1.1/16",
        "10.1.2.3/32",
    ]

    assert reachable(found) == ("10.1.2.3", "fd00::2")


def test_a_namespace_without_an_address_is_refused() -> None:
    """Nobody could be told where it is."""
    with pytest.raises(ConfigError, match="no address but loopback"):
        reachable(["127.0.0.1/8", "fe80::1/64"])


def test_the_machine_and_the_mesh_are_no_guests() -> None:
    """To capture the machine's own network would cut off whoever asks."""
    refuse_known((1, 5), {(1, 2): "node-1"}, (1, 3))
    with pytest.raises(ConfigError, match="machine's own"):
        refuse_known((1, 3), {}, (1, 3))
    with pytest.raises(ConfigError, match=re.escape("that is pod shop/web of this mesh")):
        refuse_known((1, 2), {(1, 2): "pod shop/web"}, (1, 3))
