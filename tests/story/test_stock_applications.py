"""Stock servers go in and out of the mesh while they are used, and neither they nor their users notice."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.story.conftest import AMBIENT, Mesh

pytestmark = [pytest.mark.netns, pytest.mark.stock, pytest.mark.slow, pytest.mark.timeout(240)]

USER = Path(__file__).with_name("stock_user.py")
CYCLES = 2
# Who goes in and out: the one that dials, the one that is dialled, both.
DIRECTIONS = (("namespace/users",), ("namespace/servers",), ("namespace/users", "namespace/servers"))
# What a run must have done to prove anything; a quiet machine does a hundred times as much.
LEAST = {"benchmark": 1000, "benchmark_connections": 100, "published": 50, "pages": 50, "kept_pages": 50}

NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 1000000; default_type text/plain;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{ listen 8080; listen [::]:8080; location / {{ root {directory}/pages; }} }}
}}
"""


def manifests(directory: Path) -> str:
    """One redis-server, one nginx, and whoever uses them, which all last until they are deleted."""
    redis = (
        "exec redis-server --save '' --appendonly no --protected-mode no --bind 0.0.0.0 -::"
        f" --dir {directory}"
    )
    nginx = f"exec nginx -e stderr -c {directory}/nginx.conf"
    return "---\n".join(
        [
            *map(_namespace, ("users", "servers")),
            _pod("users", "user", 1, "exec sleep infinity", 1),
            *(_pod("servers", "redis", 2, redis, 6379), _service("redis", 6379)),
            *(_pod("servers", "nginx", 1, nginx, 8080), _service("nginx", 8080)),
        ]
    )


def _namespace(name: str) -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"


def _service(name: str, port: int) -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: servers}}\n"
        f"spec: {{selector: {{app: {name}}}, ports: [{{port: {port}}}]}}\n"
    )


def _pod(namespace: str, name: str, node: int, command: str, port: int) -> str:
    probe = "" if port == 1 else f", readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}"
    return (
        "apiVersion: v1\nkind: Pod\n"
        f"metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n"
        f"spec:\n  nodeName: node-{node}\n  containers:\n"
        f"  - {{name: {name}, command: [/bin/sh, -c, {json.dumps(command)}]{probe}}}\n"
    )


@contextmanager
def using(mesh: Mesh) -> Iterator[subprocess.Popen[str]]:
    """The user at work in its pod, with its long connections open."""
    command = ["exec", "user", "-n", "users", "--", "python3", "-c", USER.read_text()]
    process = subprocess.Popen(
        [*AMBIENT, *command],
        env=mesh.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert ready == "ready\n", process.communicate(timeout=30)[1]
            yield process
        finally:
            process.kill()


def resets(mesh: Mesh, namespace: str, pod: str) -> int:
    """How many established connections the kernel has seen reset in a pod."""
    lines = mesh.ok("exec", pod, "-n", namespace, "--", "cat", "/proc/net/snmp").splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["EstabResets"])


def tunnelled(mesh: Mesh, port: int) -> int:
    """How many connections to *port* went over HBONE, by the ztunnels' own records."""
    logs = mesh.run_dir.glob("logs/ztunnel-*.log")
    lines = [
        line for path in logs for line in path.read_text().splitlines() if 'direction="outbound"' in line
    ]
    return sum(1 for line in lines if "dst.hbone_addr=" in line and f":{port} " in line)


def test_redis_and_nginx_notice_nothing(mesh: Mesh, tmp_path: Path) -> None:
    """``redis-benchmark``, a subscription and pages, over enrollments of either end and of both."""
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.html").write_text("a page" * 1000)
    (tmp_path / "nginx.conf").write_text(NGINX.format(directory=tmp_path))
    (tmp_path / "mesh.yaml").write_text(manifests(tmp_path))
    mesh.ok("up", "-f", str(tmp_path / "mesh.yaml"), "--nodes", "2", "--detach")
    pods = (("users", "user"), ("servers", "redis"), ("servers", "nginx"))
    before = {pod: resets(mesh, *pod) for pod in pods}

    with using(mesh) as user:
        for direction in DIRECTIONS * CYCLES:
            for target in direction:
                result = mesh.json("enroll", target, "--wait")
                assert (result["failed"], result["restarts"]) == (0, 0), result
            for target in direction:
                mesh.ok("unenroll", target, "--wait")
            assert user.poll() is None, user.communicate()[1]
        out, err = user.communicate(timeout=60)

    said: dict[str, Any] = json.loads(out)
    assert said.pop("failures") == [], err
    assert {name: said[name] for name in LEAST if said[name] < LEAST[name]} == {}
    assert {pod: resets(mesh, *pod) for pod in pods} == before
    assert all(tunnelled(mesh, port) for port in (6379, 8080))
    asked = ["exec", "redis", "-n", "servers", "--", "redis-cli", "info", "stats"]
    stats = dict(line.split(":", 1) for line in mesh.ok(*asked).splitlines() if ":" in line)
    assert (stats["total_error_replies"], stats["rejected_connections"]) == ("0", "0")
    assert (tmp_path / "error.log").read_text() == ""
