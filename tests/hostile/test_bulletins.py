"""Bulletins of the field that map onto our surfaces, each with the test that would have found it here.

Source: reference/threats.md 1.2. What is about tokens, WASM or PROXY protocol has no surface here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import msgpack
import pytest

import ambient
import waypoint
import ztunnel
from ambient.errors import ConfigError, RemoteProtocolError
from ambient.model.address import canonical
from ambient.model.identity import SpiffeId
from ambient.model.manifest import parse_manifests
from ambient.model.policy import Action, Connection, Match, MatchKind, Policy, Scope, StringMatch, decide
from ambient.wire.frames import decode_map
from tests.hostile import test_http2, test_tls

# Bulletin -> rows of the list of hostile inputs, which are played against a real :15008.
ROWS = {
    "CVE-2023-44487 rapid reset": "H20",
    "CVE-2024-27919 CONTINUATION flood": "H19",
    "CVE-2024-30255 CONTINUATION flood": "H19",
    "CVE-2025-8671 MadeYouReset": "H21",
    "CVE-2025-64763 early data after CONNECT": "H31",
    "CVE-2025-66220 NUL in a name": "T14",
    "CVE-2026-47778 NUL in a name": "T14",
    "CVE-2026-47774 cookies and decoded bytes": "H17",
    "CVE-2026-26310 scoped IPv6": "H5",
    "SPIFFE X509-SVID 2: several URI names": "T12",
}


def test_each_bulletin_has_its_rows() -> None:
    """The rows are tests, by their numbers."""
    numbers = {case.number for case in (*test_http2.CASES, *test_tls.CASES)}
    assert set(ROWS.values()) <= numbers


def test_2026_006_no_pattern_comes_from_a_user() -> None:
    """A regular expression is a program: none here is written by somebody else."""
    calls = {"compile", "match", "fullmatch", "search", "sub", "split", "findall", "finditer"}
    found = []
    for package in (ambient, ztunnel, waypoint):
        for file in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                match node:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id="re"), attr=name), args=[pattern, *_]
                    ) if name in calls and not _is_ours(pattern):
                        found.append(f"{file}:{node.lineno}")
    assert found == []


def _is_ours(pattern: ast.expr) -> bool:
    """A literal, or one put together of module constants."""
    names = [node.id for node in ast.walk(pattern) if isinstance(node, ast.Name)]
    return all(name.isupper() for name in names) and not any(
        isinstance(node, ast.Call | ast.Attribute) for node in ast.walk(pattern)
    )


@pytest.mark.parametrize(
    ("written", "shown", "matches"),
    [("web.prod", "web.prod", True), ("web.prod", "webxprod", False), ("web.prod", "web-prod", False)],
)
def test_cve_2026_39350_a_dot_in_an_account_is_a_dot(written: str, shown: str, matches: bool) -> None:
    """Principals are compared as text; nothing in them is a pattern."""
    principal = StringMatch(MatchKind.EXACT, f"cluster.local/ns/shop/sa/{written}")
    rule = ((Match(principals=(principal,)),),)
    policy = Policy(key="shop/p", namespace="shop", action=Action.ALLOW, scope=Scope.NAMESPACE, rules=(rule,))
    peer = Connection(SpiffeId("cluster.local", "shop", shown), "10.0.0.1", "10.0.0.2", 80)
    assert decide([policy], peer).allowed is matches


def test_cve_2026_26310_an_address_names_no_interface() -> None:
    """Python's own parser takes it."""
    with pytest.raises(ConfigError, match="scope id"):
        canonical("fe80::1%eth0")


@pytest.mark.parametrize("depth", [65, 1_000, 50_000])
def test_cve_2026_48042_nesting_is_bounded(depth: int) -> None:
    """Refused in one line, wherever it comes in, and never by an overflow."""
    with pytest.raises(ConfigError):
        parse_manifests([("deep.yaml", "a: " + "[" * depth + "]" * depth)])
    with pytest.raises(RemoteProtocolError):
        decode_map(b"\x91" * depth + b"\x90")
    assert decode_map(msgpack.packb({"kind": "x"})) == {"kind": "x"}
