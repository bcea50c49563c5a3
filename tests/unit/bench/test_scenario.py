"""Which pod drives what is in the manifest, and the examples are scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ambient.bench import scenario
from ambient.errors import ConfigError
from ambient.model.manifest import parse_manifests

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def pod(name: str, **annotations: str) -> dict[str, Any]:
    """A pod as control shows it."""
    return {"metadata": {"name": name, "namespace": "shop", "annotations": annotations}}


def test_the_client_is_the_pod_with_the_annotation() -> None:
    """Exactly one; everything else is load on guesses."""
    client = {"ambient.dev/load-target": "http://web/"}
    found = scenario.find("s", [pod("web"), {"metadata": {"name": "x"}}, pod("client", **client)])

    assert (found.namespace, found.pod, found.url) == ("shop", "client", "http://web/")
    for wrong in ([], [pod("a", **client), pod("b", **client)]):
        with pytest.raises(ConfigError, match="need exactly one"):
            scenario.find("s", wrong)


def test_a_scenario_is_a_name_or_a_file(tmp_path: Path) -> None:
    """bookinfo comes with the program."""
    assert scenario.manifest("bookinfo").name == "bookinfo.yaml"
    assert scenario.manifest("mine.yaml") == Path("mine.yaml")
    assert scenario.name_of("/a/mine.yaml") == "mine"
    with pytest.raises(ConfigError, match="no scenario 'nonsense'"):
        scenario.manifest("nonsense")


@pytest.mark.parametrize("name", ["bookinfo", "policies", "nginx-and-client"])
def test_the_examples_are_accepted(name: str) -> None:
    """With no more warnings than they announce."""
    path = EXAMPLES / f"{name}.yaml"
    parsed = parse_manifests([(path.name, path.read_text())])

    assert len(parsed.objects) >= 5
    assert all("image" in warning for warning in parsed.warnings)


def test_every_edge_of_bookinfo_crosses_nodes() -> None:
    """What stays on one node cannot be seen on the wire between them."""
    path = EXAMPLES / "bookinfo.yaml"
    parsed = parse_manifests([(path.name, path.read_text())])
    nodes, calls = {}, {}
    for one in parsed.objects:
        if one.kind in ("Pod", "Deployment"):
            template = one.body["spec"].get("template", one.body)
            affinity = template["spec"]["affinity"]["nodeAffinity"]
            (wish,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
            name = one.name.partition("-")[0]
            nodes.setdefault(name, set()).add(wish["preference"]["matchExpressions"][0]["values"][0])
            notes = template["metadata"]["annotations"]
            text = f"{notes.get('ambient.dev/calls', '')} {notes.get('ambient.dev/load-target', '')}"
            calls.setdefault(name, set()).update(url.split("/")[2].split(":")[0] for url in text.split())

    edges = [(a, b) for a, callees in calls.items() for b in callees]
    assert len(edges) == 4
    assert all(len(nodes[name]) == 1 for name in nodes)
    assert all(nodes[a] != nodes[b] for a, b in edges)
