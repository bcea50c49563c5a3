"""Names, nodes, addresses, parameters: the small decisions."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ambient.control.address_book import AddressBook
from ambient.control.names_plan import MAX_NAME_CHARACTERS, replica_names, template_hash
from ambient.control.params import take, take_one_of
from ambient.control.schedule_plan import Placed, choose_node
from ambient.control.service import span_seconds
from ambient.errors import ConfigError
from ambient.model.addressing import LOOPBACK


def test_names_look_like_kubernetes_and_never_change() -> None:
    """Two runs of a benchmark speak of the same pods, and scaling keeps those that stay."""
    hashed = template_hash({"b": 1, "a": 2})
    three = replica_names("shop", "reviews-v1", hashed, 3)

    assert re.fullmatch(r"reviews-v1-[a-z0-9]{9}-[a-z0-9]{5}", three[0])
    assert len(set(three)) == 3
    assert replica_names("shop", "reviews-v1", template_hash({"a": 2, "b": 1}), 5)[:3] == three
    assert replica_names("other", "reviews-v1", hashed, 1) != three[:1]
    assert template_hash({"a": 2}) != hashed


def test_a_long_name_still_is_a_hostname() -> None:
    """A label of the DNS has 63 characters."""
    (name,) = replica_names("shop", "x" * 200, "h" * 9, 1)

    assert len(name) == MAX_NAME_CHARACTERS


NODES = ("node-1", "node-2", "node-3")


@pytest.mark.parametrize(
    ("placed", "wishes", "expected"),
    [
        ([], {}, "node-1"),
        ([Placed("node-1", "a")], {}, "node-2"),
        ([Placed("node-1", "x"), Placed("node-1", "x"), Placed("node-2", "a")], {}, "node-3"),
        ([Placed("node-1", "a"), Placed("node-2", "x"), Placed("node-3", "x")], {}, "node-2"),
        ([Placed("node-2", "a")] * 5, {"preferred": ("node-2",)}, "node-2"),
        ([], {"preferred": ("node-9", "node-3")}, "node-3"),
    ],
    ids=["first", "away-from-its-kind", "emptier", "kind-before-load", "wish", "unknown-wish"],
)
def test_where_a_pod_goes(placed: list[Placed], wishes: dict[str, Any], expected: str) -> None:
    """What it likes, then spreading."""
    assert choose_node(NODES, placed, owner="a", **wishes) == expected


def test_without_a_node_there_is_no_place() -> None:
    """All of them are full, or there are none yet."""
    with pytest.raises(ConfigError, match="no node has room"):
        choose_node((), [], owner="a")


def test_addresses_are_not_given_out_again_at_once() -> None:
    """A pooled connection to the last owner must not reach the next one."""
    book = AddressBook(nodes=("node-1", "node-2"))
    first, second = book.new_pod("node-1"), book.new_pod("node-1")
    book.free_pod(first)

    assert first == ("10.244.1.2", "fd00:10:244:1::2")
    assert second[0] == "10.244.1.3"
    assert book.new_pod("node-1")[0] == "10.244.1.4"
    assert book.new_pod("node-2")[0] == "10.244.2.2"


def test_a_full_node_says_so_and_a_freed_address_comes_round() -> None:
    """253 pods to a node."""
    book = AddressBook(nodes=("node-1",))
    all_of_them = [book.new_pod("node-1") for _ in range(253)]
    assert not book.has_room("node-1")
    with pytest.raises(ConfigError, match="in use"):
        book.new_pod("node-1")

    book.free_pod(all_of_them[7])
    book.free_pod(("192.0.2.1",))

    assert book.new_pod("node-1") == all_of_them[7]


def test_a_service_keeps_its_address() -> None:
    """Resolvers remember."""
    book = AddressBook(LOOPBACK, nodes=("node-1",))

    assert book.of_service("shop", "a") == ("127.96.0.11",)
    assert book.of_service("shop", "b") == ("127.96.0.12",)
    assert book.of_service("shop", "a") == ("127.96.0.11",)
    assert book.of_node("node-1") == ("127.64.1.2",)


def test_parameters_have_types() -> None:
    """A caller's mistake is named."""
    params = {"n": 3, "t": "x", "yes": True, "none": None, "f": 2}

    assert take(params, "n", int) == 3
    assert take(params, "none", str, "d") == "d"
    assert take(params, "f", float) == 2.0
    assert take_one_of(params, "t", ("x", "y")) == "x"
    for name, kind, reason in [
        ("t", int, "'t' must be int, not str"),
        ("yes", int, "must be int, not bool"),
        ("gone", str, "lacks 'gone'"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            take(params, name, kind)
    with pytest.raises(ConfigError, match="one of a, b, not 'x'"):
        take_one_of(params, "t", ("a", "b"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h", 86400.0), ("90s", 90.0), ("500ms", 0.5), ("1.5m", 90.0)], ids=str
)
def test_spans_of_time(text: str, seconds: float) -> None:
    """As Go writes them."""
    assert span_seconds(text) == seconds


def test_a_span_without_unit_is_refused() -> None:
    """Seconds or hours? Nobody knows."""
    with pytest.raises(ConfigError, match="such as 24h"):
        span_seconds("24")
