"""``ambient ztunnel …`` over a dump in a file and over sockets that answer like ztunnel's."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from ambient.cli import ztunnel_columns as columns
from ambient.cli import ztunnels
from ambient.cli.main import run

DUMP: dict[str, Any] = {
    "workloads": [
        {
            "uid": "Kubernetes//Pod/shop/web-10",
            "name": "web-10",
            "namespace": "shop",
            "workloadIps": ["10.244.1.5", "fd00::5"],
            "node": "node-1",
            "protocol": "HBONE",
        },
        {
            "uid": "Kubernetes//Pod/shop/web-2",
            "name": "web-2",
            "namespace": "shop",
            "workloadIps": ["10.244.2.6"],
            "node": "node-2",
            "protocol": "TCP",
            "waypoint": {"destination": "shop/waypoint.shop.svc.cluster.local", "hboneMtlsPort": 15008},
        },
        {"uid": "x", "name": "x", "namespace": "bank", "workloadIps": [], "node": None, "protocol": "TCP"},
    ],
    "services": [
        {
            "name": "web",
            "namespace": "shop",
            "hostname": "web.shop.svc.cluster.local",
            "vips": ["/10.96.0.7", "net/fd00:96::7"],
            "endpoints": {
                "a": {"workloadUid": "a", "status": "Healthy"},
                "b": {"workloadUid": "b", "status": "Unhealthy"},
            },
            "waypoint": {"destination": "/10.96.0.99"},
        }
    ],
    "policies": [{"name": "only-web", "namespace": "shop", "action": "Allow", "scope": "Namespace"}],
    "certificates": [
        {
            "identity": "spiffe://cluster.local/ns/shop/sa/web",
            "state": "Available",
            "certChain": [
                {
                    "serialNumber": "ab",
                    "validFrom": "2020-01-01T00:00:00Z",
                    "expirationTime": "2099-01-01T00:00:00Z",
                },
                {
                    "serialNumber": "cd",
                    "validFrom": "2020-01-01T00:00:00Z",
                    "expirationTime": "2021-01-01T00:00:00Z",
                },
            ],
            "rootCerts": [
                {
                    "serialNumber": "ef",
                    "validFrom": "2020-01-01T00:00:00Z",
                    "expirationTime": "2099-01-01T00:00:00Z",
                }
            ],
        },
        {"identity": "spiffe://cluster.local/ns/bank/sa/x", "state": "Initializing", "certChain": []},
    ],
    "workloadState": {
        "Kubernetes//Pod/shop/web-10": {
            "state": "Up",
            "info": {"name": "web-10", "namespace": "shop"},
            "connections": {
                "inbound": [
                    {
                        "protocol": "HBONE",
                        "src": "10.244.2.6:40000",
                        "originalDst": "10.244.1.5:80",
                        "actualDst": "10.244.1.5:15008",
                    }
                ],
                "outbound": [
                    {
                        "protocol": "TCP",
                        "src": "[fd00::5]:40001",
                        "originalDst": "10.96.0.7:80",
                        "actualDst": "192.0.2.1:8080",
                    }
                ],
            },
        }
    },
    "config": {},
    "version": "1",
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A dump on disk."""
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(DUMP))
    return str(path)


def text(capsys: pytest.CaptureFixture[str], *args: str) -> list[list[str]]:
    """What a command prints, as rows of cells."""
    assert run(["ztunnel", *args]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [[part.strip() for part in line.split("   ") if part.strip()] for line in lines]


def test_workloads(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """istioctl's columns, numbers in names in their order."""
    assert text(capsys, "workload", "-f", file) == [
        ["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"],
        ["bank", "x", "<none>", "<none>", "None", "TCP"],
        ["shop", "web-2", "10.244.2.6", "node-2", "waypoint", "TCP"],
        ["shop", "web-10", "10.244.1.5,fd00::5", "node-1", "None", "HBONE"],
    ]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["--workload-namespace", "bank"], ["x"]),
        (["-n", "bank"], ["x"]),
        (["--node", "node-2"], ["web-2"]),
        (["--address", "fd00::5"], ["web-10"]),
        (["--address", "10.244.1.9"], []),
    ],
)
def test_workloads_that_are_wanted(
    file: str, filters: list[str], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """istioctl's filters, and kubectl's -n."""
    assert [row[1] for row in text(capsys, "workload", "-f", file, *filters)[1:]] == names


def test_services_policies_and_certificates(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One table each."""
    assert text(capsys, "service", "-f", file) == [
        ["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"],
        ["shop", "web", "10.96.0.7,fd00:96::7", "10.96.0.99", "1/2"],
    ]
    assert text(capsys, "svc", "-f", file, "--address", "10.96.0.8")[1:] == []
    assert text(capsys, "policy", "-f", file) == [
        ["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"],
        ["shop", "only-web", "Allow", "Namespace"],
    ]
    rows = text(capsys, "certificate", "-f", file)
    name = "spiffe://cluster.local/ns/shop/sa/web"
    assert rows[0] == list(columns.CERTIFICATE)
    assert [row[:5] for row in rows[1:]] == [
        ["spiffe://cluster.local/ns/bank/sa/x", "Unknown", "Initializing", "false", "<none>"],
        [name, "Leaf", "Available", "true", "ab"],
        [name, "Intermediate", "Available", "false", "cd"],
        [name, "Root", "Available", "true", "ef"],
    ]


def test_connections_by_name_raw_and_one_way(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is local, what is remote, and what was asked for."""
    assert text(capsys, "connections", "-f", file) == [
        ["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"],
        ["web-10.shop", "Inbound", "web-10.shop:80", "web-2.shop:40000", "-", "HBONE"],
        [
            "web-10.shop",
            "Outbound",
            "web-10.shop:40001",
            "192.0.2.1:8080",
            "web.shop.svc.cluster.local:80",
            "TCP",
        ],
    ]
    raw = text(capsys, "connections", "-f", file, "--raw", "--direction", "inbound")
    assert raw[1:] == [["web-10.shop", "Inbound", "10.244.1.5:80", "10.244.2.6:40000", "-", "HBONE"]]
    assert text(capsys, "connections", "-f", file, "--workload-namespace", "bank")[1:] == []


def test_documents(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One document each; that of ``all`` is a dump again."""
    assert run(["ztunnel", "workload", "-f", file, "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["apiVersion"], document["kind"]) == ("ambient/v1", "ZtunnelWorkloads")
    assert [each["name"] for each in document["items"]] == ["x", "web-2", "web-10"]
    assert run(["ztunnel", "policy", "-f", file, "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["items"] == DUMP["policies"]

    assert run(["ztunnel", "all", "-f", file, "-o", "json"]) == 0
    again = Path(file).with_name("again.json")
    again.write_text(capsys.readouterr().out)
    assert text(capsys, "all", "-f", str(again)) == text(capsys, "all", "-f", file)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"a": 1}', '{"workloads": 7}', '{"workloads": [1]}', "\xff"]
)
def test_what_is_no_dump_is_one_line_and_65(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it is guessed."""
    path = tmp_path / "dump"
    path.write_bytes(content.encode("latin-1"))

    assert run(["ztunnel", "workload", "-f", str(path)]) == 65
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["ztunnel", "workload", "-f", str(path) + ".not"]) == 65


def test_maps_of_older_dumps_are_read() -> None:
    """Istio's lists were maps once."""
    dump = {"workloads": {"/10.0.0.1": DUMP["workloads"][0]}}

    assert columns.workloads(dump, columns.Filters()) == [DUMP["workloads"][0]]


def test_times_that_cannot_be_read_are_not_valid() -> None:
    """A certificate is never called good by accident."""
    now = datetime(2026, 1, 1, tzinfo=UTC)

    assert columns.is_valid("2025-01-01T00:00:00Z", "2027-01-01T00:00:00", now)
    assert not columns.is_valid("", "2027-01-01T00:00:00Z", now)
    assert not columns.is_valid("2026-06-01T00:00:00Z", "2027-01-01T00:00:00Z", now)


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _Ztunnel(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = "current log level is info\n"
        if self.path == "/config_dump":
            body = json.dumps(DUMP)
        self._answer(200, body)

    def do_POST(self) -> None:
        level = parse_qs(urlsplit(self.path).query).get("level", ["info"])[0]
        if level == "loud":
            self._answer(400, "no level 'loud'\n")
        else:
            self._answer(200, f"current log level is {level}\n")

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def ztunnels_of(run_dir: Path, *nodes: str) -> Iterator[None]:
    """Their admin sockets."""
    with contextlib.ExitStack() as stack:
        for node in nodes:
            (run_dir / "nodes" / node).mkdir(parents=True)
            server = stack.enter_context(_UnixServer(str(run_dir / "nodes" / node / "admin.sock"), _Ztunnel))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield


def test_live_ones_are_asked_each_where_it_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All know the same mesh; connections and certificates differ."""
    with ztunnels_of(tmp_path, "node-10", "node-2"):
        live = ["--run-dir", str(tmp_path)]
        assert len(text(capsys, "workload", *live)) == 4
        assert len(text(capsys, "connections", *live)) == 1 + 2 * 2
        assert len(text(capsys, "connections", *live, "--node", "node-2")) == 1 + 2
        assert run(["ztunnel", "service", *live, "--node", "node-3"]) == 69
        assert capsys.readouterr().err == "Error: no ztunnel on node 'node-3'; there are: node-2, node-10\n"
        assert run(["ztunnel", "workload", *live, "--node", "node-3"]) == 69
        assert "no ztunnel on node 'node-3'" in capsys.readouterr().err


def test_levels_are_shown_set_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On every node, unless one is named."""
    with ztunnels_of(tmp_path, "node-1", "node-2"):
        live = ["--run-dir", str(tmp_path)]
        assert text(capsys, "log", *live) == [["NODE", "LEVEL"], ["node-1", "info"], ["node-2", "info"]]
        level = ["--level", "access:debug,info"]
        assert text(capsys, "log", *live, *level, "--node", "node-2")[1:] == [["node-2", level[1]]]
        assert text(capsys, "log", *live, "-r")[1:] == [["node-1", "info"], ["node-2", "info"]]
        assert run(["ztunnel", "log", *live, "--level", "loud"]) == 65
        assert "no level 'loud'" in capsys.readouterr().err
        assert run(["ztunnel", "log", *live, "--level", "info", "-r"]) == 2


def test_without_a_mesh_it_is_69(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says how to start one; a socket that nobody serves is no better."""
    assert run(["ztunnel", "workload", "--run-dir", str(tmp_path)]) == 69
    assert "ambient up" in capsys.readouterr().err
    (tmp_path / "nodes" / "node-1").mkdir(parents=True)
    (tmp_path / "nodes" / "node-1" / "admin.sock").touch()
    assert run(["ztunnel", "log", "--run-dir", str(tmp_path)]) == 69


def test_every_command_of_the_group_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong row in the table would show up only when used."""
    for name in (*ztunnels.COMMANDS, *ztunnels.ALIASES):
        assert run(["ztunnel", name, "--help"]) == 0
        assert "--run-dir" in capsys.readouterr().out
    assert run(["ztunnel-config", "--help"]) == 0
    assert "connections" in capsys.readouterr().out
