"""Every command against a fake mesh: what it asks, what it prints, how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ambient.cli.main import run
from ambient.errors import ConfigError, Denied, Unavailable
from ambient.wire.admin import CallFailed
from tests.unit.cli.fake_mesh import FakeMesh, Stream, fake_mesh

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "client",
        "namespace": "shop",
        "labels": {"app": "client"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"kind": "Deployment", "name": "clients"}],
    },
    "spec": {"nodeName": "node-1", "containers": [{"name": "main"}]},
    "status": {
        "phase": "Running",
        "podIP": "10.244.1.2",
        "containerStatuses": [{"name": "main", "ready": True, "restartCount": 2}],
        "ambient": {"mode": "ambient", "enrolled": True, "pid": 4242},
    },
}
OTHER = {"metadata": {"name": "bare", "namespace": "other"}, "status": {}, "spec": {}}
NAMESPACE = {"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}
SERVICE = {
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
}
WORKLOAD = {
    "name": "client", "namespace": "shop", "addresses": ["10.244.1.2"], "node": "node-1",
    "waypoint": "shop/waypoint.shop.svc.cluster.local", "protocol": "HBONE",
}  # fmt: skip
ENROLLED = {
    "mode": "ambient", "restarts": 0, "failed": 0,
    "pods": [{
        "namespace": "shop", "name": "client", "node": "node-1", "enrolled": True, "restarts": 0,
        "established_connections_kept": 3, "duration_ms": 41.2, "reason": "",
    }],
}  # fmt: skip


def get(params: Any) -> Any:
    """What control would answer."""
    found = {"Pod": [POD, OTHER], "Namespace": [NAMESPACE], "Service": [SERVICE]}.get(params["kind"], [])
    space = params["namespace"]
    return [
        one for one in found if not space or one["metadata"].get("namespace") == space or one is NAMESPACE
    ]


ANSWERS = {
    "get": get,
    "dump": {"workloads": [WORKLOAD]},
    "apply": {"objects": [{"kind": "Namespace", "name": "shop", "namespace": "", "result": "created"}]},
    "delete": {"objects": [{"kind": "Pod", "name": "client", "namespace": "shop", "result": "deleted"}]},
    "enroll": Stream([{"namespace": "shop", "pod": "client", "state": "enrolled"}, ENROLLED]),
    "authz_check": {"allowed": True, "verdict": "ALLOW", "reason": "no ALLOW policy", "path": ["a", "b"]},
    "waypoint_apply": {"namespace": "shop", "name": "waypoint", "programmed": True},
    "waypoint_delete": {"namespace": "shop", "name": "waypoint", "result": "deleted"},
    "waypoint_list": {"items": [{"namespace": "shop", "name": "waypoint", "programmed": True}]},
    "status": {
        "fabric": "netns", "rootless": True, "nodes": [{"name": "node-1"}],
        "certificates": [{"identity": "spiffe://x", "node": "node-1", "not_after": "2026-01-02T00:00:00Z"}],
        "processes": [
            {"name": "control", "role": "control", "pid": 1, "started": 1.0, "log": ""},
            {"name": "app/shop/client/main", "role": "app", "pod": "shop/client", "container": "main"},
        ],
    },
}  # fmt: skip


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    """A fake mesh where the commands look for one."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    with fake_mesh(tmp_path / "run", dict(ANSWERS)) as made:
        yield made


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to stdout."""
    return capsys.readouterr().out


def test_get_pods_looks_like_kubectl(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """People know these columns by heart."""
    assert run(["get", "pods", "-n", "shop"]) == 0

    head, row = said(capsys).splitlines()
    assert head.split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "MODE"]
    assert row.split()[:4] == ["client", "1/1", "Running", "2"]
    assert row.split()[-1] == "ambient"


def test_get_wide_shows_address_node_and_pid(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """PIDs are host PIDs: what ps shows."""
    assert run(["-n", "shop", "get", "po", "-o", "wide"]) == 0

    assert said(capsys).splitlines()[1].split()[-3:] == ["10.244.1.2", "node-1", "4242"]


def test_get_everywhere_leads_with_the_namespace(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """-A lists all, as with kubectl."""
    assert run(["get", "pods", "-A"]) == 0

    lines = said(capsys).splitlines()
    assert lines[0].startswith("NAMESPACE   NAME")
    assert [line.split()[0] for line in lines[1:]] == ["shop", "other"]
    assert mesh.asked("get")["namespace"] is None


def test_get_json_is_one_versioned_document(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts parse this."""
    assert run(["get", "pods", "-n", "shop", "-o", "json"]) == 0

    document = json.loads(said(capsys))
    assert (document["apiVersion"], document["kind"]) == ("ambient/v1", "List")
    assert document["items"] == [POD]


def test_get_one_keeps_its_own_version(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """So that it can be edited and applied."""
    assert run(["get", "pod/client", "-n", "shop", "-o", "yaml"]) == 0

    assert yaml.safe_load(said(capsys)) == POD


def test_get_name_is_for_loops(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """``for p in $(ambient get pods -o name)``."""
    assert run(["get", "pods", "-n", "shop", "-o", "name"]) == 0

    assert said(capsys) == "pod/client\n"


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=client", ["client"]),
        ("app!=client", ["bare"]),
        ("app", ["client"]),
        ("!app", ["bare"]),
        ("app==x", []),
    ],
)
def test_get_obeys_a_selector(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], selector: str, names: list[str]
) -> None:
    """kubectl's grammar for labels."""
    assert run(["get", "pods", "-A", "-l", selector, "-o", "json"]) == 0

    assert [one["metadata"]["name"] for one in json.loads(said(capsys))["items"]] == names


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ns", ["shop", "Active", "<unknown>", "ambient"]),
        ("svc", ["web", "ClusterIP", "10.96.0.7", "<none>", "80/TCP"]),
        ("workloads", ["shop", "client", "10.244.1.2", "node-1", "waypoint", "HBONE"]),
    ],
)
def test_get_other_kinds(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], kind: str, words: list[str]
) -> None:
    """Each kind has the columns of the tool people know it from."""
    assert run(["get", kind, "-n", "shop"]) == 0

    assert said(capsys).splitlines()[1].split()[: len(words)] == words


def test_get_nothing_is_not_an_error(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list is an answer; the sentence is not data."""
    assert run(["get", "deployments", "-n", "shop"]) == 0

    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "No resources found in shop namespace.\n")


def test_get_a_missing_one_is_an_error_with_a_next_step(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that does not exist is a mistake, unlike an empty list."""
    assert run(["get", "pod", "nobody", "-n", "shop"]) == 1

    assert capsys.readouterr().err == "Error: no pod 'nobody' in shop; see: ambient get pods -A\n"


def test_enroll_prints_what_changed_per_pod(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """The promise is per pod: enrolled, no restart, connections kept."""
    assert run(["enroll", "namespace/shop", "--wait", "-v"]) == 0

    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[1].split() == ["shop", "client", "node-1", "true", "0", "3", "41", "<none>"]
    assert lines[2] == "√ namespace/shop enrolled (ambient): 1 pod, 0 restarts"
    assert "state=enrolled" in captured.err
    asked = mesh.asked("enroll")
    assert asked["targets"] == [{"kind": "namespace", "namespace": "shop", "name": "shop"}]
    assert (asked["mode"], asked["wait"], asked["existing"], asked["dry_run"]) == (
        "ambient",
        True,
        "keep",
        False,
    )


def test_unenroll_is_mode_none(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """The same call, the other way; a pod's namespace is the -n one."""
    assert run(["unenroll", "pod/client", "-n", "shop", "-o", "json"]) == 0

    assert json.loads(said(capsys))["kind"] == "Enrollment"
    assert mesh.asked("enroll")["mode"] == "none"
    assert mesh.asked("enroll")["targets"] == [{"kind": "pod", "namespace": "shop", "name": "client"}]


def test_a_failed_pod_is_exit_1(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """A script must not go on as if it were enrolled."""
    mesh.answers["enroll"] = {**ENROLLED, "failed": 1}

    assert run(["enroll", "ns/shop"]) == 1
    assert "× ns/shop" in said(capsys)


def test_a_large_namespace_says_how_far_it_is(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Long work shows progress, on stderr, and not a line for every pod."""
    states = [("enrolling", n) for n in range(60)] + [("enrolled", n) for n in range(60)]
    events = [{"namespace": "shop", "pod": f"web-{n}", "state": state} for state, n in states]
    mesh.answers["enroll"] = Stream([*events, ENROLLED])

    assert run(["enroll", "ns/shop"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.endswith("done ...")]
    assert lines == ["25 pods are done ...", "50 pods are done ..."]


def test_a_sidecar_switch_says_how_many_restarts(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """As it would in a cluster."""
    mesh.answers["enroll"] = {**ENROLLED, "restarts": 7}

    assert run(["enroll", "ns/shop", "--mode", "sidecar", "--engine", "envoy", "-o", "name"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "pod/client\n"
    assert "7 pods were restarted" in captured.err


def test_a_dry_run_restarts_nobody(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how many it would."""
    mesh.answers["enroll"] = {**ENROLLED, "restarts": 7, "dry_run": True}

    assert run(["enroll", "ns/shop", "--mode", "sidecar", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "7 restarts" in captured.out
    assert captured.err == "Dry run: nothing was changed.\n"


@pytest.mark.parametrize("target", ["shop", "svc/web", "tree/shop", "namespace/"])
def test_enroll_what_cannot_be_enrolled_is_a_usage_error(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """Said before anything is asked of the mesh."""
    assert run(["enroll", target]) == 2

    assert len(capsys.readouterr().err.splitlines()) == 1
    assert mesh.calls == []


def test_apply_reports_like_kubectl(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And the objects carry where they came from."""
    file = tmp_path / "ns.yaml"
    file.write_text("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n")

    assert run(["apply", "-f", str(file)]) == 0
    assert said(capsys) == "namespace/shop created\n"
    (sent,) = mesh.asked("apply")["objects"]
    assert sent["origin"] == f"{file}:1"
    assert sent["metadata"]["name"] == "shop"


def test_apply_of_a_folder_takes_every_manifest_in_it(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As kubectl apply -f DIR; an object without a namespace gets that of -n."""
    for name in ("a", "b"):
        text = f"apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "notes.txt").write_text("not a manifest")

    assert run(["apply", "-f", str(tmp_path), "-n", "shop"]) == 0
    sent = mesh.asked("apply")["objects"]
    assert [(one["metadata"]["name"], one["metadata"]["namespace"]) for one in sent] == [
        ("a", "shop"),
        ("b", "shop"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [", "not valid YAML"),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: 7}\n", "name"),
        ("apiVersion: v1\nkind: Nonsense\nmetadata: {name: x}\n", "Nonsense"),
    ],
    ids=["yaml", "type", "kind"],
)
def test_a_bad_manifest_is_65_and_nothing_is_applied(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str
) -> None:
    """One line with the place, and the mesh is not even asked."""
    file = tmp_path / "bad.yaml"
    file.write_text(text)

    assert run(["apply", "-f", str(file)]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Error: {file}:")
    assert message in line
    assert mesh.calls == []


@pytest.mark.parametrize(
    "name", ["gone.yaml", "binary.yaml", "empty"], ids=["missing", "not-text", "empty-folder"]
)
def test_a_file_that_cannot_be_read_is_65(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """The file is the bad input."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").mkdir()

    assert run(["apply", "-f", str(tmp_path / name)]) == 65
    assert name in capsys.readouterr().err


def test_delete_by_name(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """``delete pod/a`` and ``delete pod a b``."""
    assert run(["delete", "pod/client", "-n", "shop"]) == 0

    assert said(capsys) == "pod/client deleted\n"
    assert mesh.asked("delete")["objects"] == [
        {"kind": "Pod", "metadata": {"name": "client", "namespace": "shop"}}
    ]
    assert run(["delete", "ns", "a", "b"]) == 0
    assert [one["metadata"] for one in mesh.asked("delete")["objects"]] == [{"name": "a"}, {"name": "b"}]


@pytest.mark.parametrize(
    "argv", [["apply"], ["delete"], ["delete", "pod"], ["delete", "pod", "x", "-f", "y"]]
)
def test_nothing_named_is_a_usage_error(mesh: FakeMesh, argv: list[str]) -> None:
    """Guessing would delete the wrong thing."""
    assert run(argv) == 2


def test_authz_check_allows_and_denies_by_exit_code(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI asks: may A reach B."""
    assert run(["authz", "check", "client", "svc/web.other", "--port", "80", "-n", "shop"]) == 0
    assert "ALLOW" in said(capsys)
    asked = mesh.asked("authz_check")
    assert asked["source"] == {"kind": "pod", "namespace": "shop", "name": "client"}
    assert asked["destination"] == {"kind": "service", "namespace": "other", "name": "web"}

    mesh.answers["authz_check"] = {"allowed": False, "reason": "denied by shop/no", "policy": "shop/no"}
    assert run(["authz", "check", "client", "pod/web", "-o", "json"]) == 1
    assert json.loads(said(capsys))["policy"] == "shop/no"


def test_waypoints(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """istioctl's words."""
    assert run(["waypoint", "apply", "-n", "shop", "--enroll-namespace", "--wait"]) == 0
    assert said(capsys).splitlines() == [
        "√ waypoint shop/waypoint applied",
        '√ namespace shop labeled with "istio.io/use-waypoint: waypoint"',
    ]
    assert mesh.asked("waypoint_apply")["enroll_namespace"] is True
    assert run(["waypoint", "list"]) == 0
    assert said(capsys).splitlines()[1].split() == ["shop", "waypoint", "default", "service", "True"]
    assert run(["waypoint", "status", "-n", "shop"]) == 0
    assert "Resource programmed" in said(capsys)
    assert run(["waypoint", "delete", "--all", "-n", "shop"]) == 0
    assert said(capsys) == "√ waypoint shop/waypoint deleted\n"


def test_no_waypoints(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list is fine; a status of nothing is not."""
    mesh.answers["waypoint_list"] = {"items": []}

    assert run(["waypoint", "list"]) == 0
    assert run(["waypoint", "status"]) == 1
    assert run(["waypoint", "delete"]) == 0
    assert mesh.asked("waypoint_delete")["name"] == "waypoint"


def test_a_waypoint_that_is_not_there_yet_is_exit_1(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """For ``until ambient waypoint status; do``."""
    mesh.answers["waypoint_list"] = {
        "items": [{"namespace": "shop", "name": "waypoint", "programmed": False}]
    }

    assert run(["waypoint", "status"]) == 1
    assert "False" in said(capsys)


def test_waypoint_generate_needs_no_mesh(capsys: pytest.CaptureFixture[str]) -> None:
    """It only prints the object."""
    assert run(["waypoint", "generate", "-n", "shop", "--for", "all"]) == 0

    found = yaml.safe_load(said(capsys))
    assert found["metadata"]["labels"] == {"istio.io/waypoint-for": "all"}
    assert run(["waypoint", "generate", "-o", "json"]) == 0
    assert json.loads(said(capsys))["kind"] == "Gateway"


def test_status_shows_components_and_counts(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Who runs, who is enrolled, until when certificates hold."""
    assert run(["status"]) == 0
    text = said(capsys)
    assert text.startswith("Mesh: netns (rootless), 1 nodes")
    assert "spiffe://x" in text

    assert run(["status", "-o", "json"]) == 0
    document = json.loads(said(capsys))
    assert document["kind"] == "Status"
    shop = document["enrolled"][1]
    assert (shop["namespace"], shop["pods"], shop["ambient"], shop["sidecar"]) == ("shop", 1, 1, 0)
    assert not document["troubled"]


def test_status_names_who_could_not_be_enrolled(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Never outside in silence: 2 of 3 says neither who nor why."""
    state = {"mode": "ambient", "enrolled": False, "state": "failed", "reason": "port 15001 is taken by nc"}
    failed = {**POD, "status": {**POD["status"], "ambient": state}}
    mesh.answers["get"] = [failed, OTHER]

    assert run(["status"]) == 0
    (row,) = [line for line in said(capsys).splitlines() if line.startswith("shop/client")]
    assert row.split(maxsplit=4) == ["shop/client", "failed", "<none>", "<none>", state["reason"]]


def test_status_names_guests_that_have_vanished(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """They are no pods any more, and somebody thinks that they are in the mesh."""
    gone = {"namespace": "shop", "name": "web", "path": "/run/netns/web", "reason": "it has vanished"}
    mesh.answers["status"] = {**ANSWERS["status"], "departed": [gone]}

    assert run(["status"]) == 0
    (row,) = [line for line in said(capsys).splitlines() if line.startswith("shop/web")]
    assert row.split(maxsplit=2) == ["shop/web", "/run/netns/web", "it has vanished"]


def test_status_shows_what_runs_without_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The proxies go on; whoever is told that there is no mesh would start a second one, in vain."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    with fake_mesh(tmp_path / "run", dict(ANSWERS)):
        (tmp_path / "run" / "control.sock").rename(tmp_path / "away")
        assert run(["status"]) == 69
        captured = capsys.readouterr()
        assert run(["get", "pods"]) == 69
        again = capsys.readouterr().err
        (tmp_path / "away").rename(tmp_path / "run" / "control.sock")

    assert captured.out.startswith("Mesh: netns")
    assert captured.err == again
    assert "the control plane is gone" in again
    assert "ambient down" in again


def test_logs_finds_the_file(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """By the name of a component, of a pod, or of a Deployment."""
    folder = mesh.run_dir / "logs"
    folder.mkdir()
    (folder / "control.log").write_text("one\ntwo\nthree\n")
    (folder / "app_shop_client_main.log").write_text("hello\n")

    assert run(["logs", "control", "--tail", "2"]) == 0
    assert said(capsys) == "two\nthree\n"
    assert run(["logs", "client", "-n", "shop", "-c", "main"]) == 0
    assert said(capsys) == "hello\n"
    for named in ("pod/client", "deploy/clients"):
        assert run(["logs", named, "-n", "shop"]) == 0
        assert said(capsys) == "hello\n"
    for wrong in (
        ["client", "-n", "other"],
        ["client", "-c", "other"],
        ["nobody"],
        ["deploy/x", "-n", "shop"],
    ):
        assert run(["logs", *wrong]) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Unavailable("not ready"), 69),
        (ConfigError("f.yaml:3: no"), 65),
        (Denied("no"), 1),
        (CallFailed(124, "took too long"), 124),
        (None, 69),
    ],
    ids=["away", "input", "denied", "timeout", "hangs-up"],
)
def test_what_the_mesh_says_is_the_exit_code(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], answer: Exception | None, code: int
) -> None:
    """One line, and a code that scripts can tell apart."""
    mesh.answers["status"] = answer

    assert run(["status"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


def test_a_slow_mesh_is_124(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """--timeout bounds every wait."""
    mesh.answers["enroll"] = Stream([*[{}] * 3, ENROLLED])
    mesh.answers["get"] = lambda _params: __import__("time").sleep(0.2)

    assert run(["get", "pods", "--timeout", "50ms"]) == 124
    assert "no answer within the timeout" in capsys.readouterr().err
