"""Hostile inputs A1 to A9 of the admin, metrics and readiness ports, against a real ztunnel process.

The ids are those of the threat list; each test's name begins with its own.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from ambient.model.identity import SpiffeId
from ambient.model.mesh import Mesh
from ambient.model.record import Flag
from ambient.model.workload import Workload
from tests.lab import Host, Lab, in_namespaces
from tests.netns.test_ztunnel_capture import connect
from tests.netns.test_ztunnel_process import Authority, Change, Ztunnel, workload, ztunnel
from ztunnel.metrics import MAX_SERIES, TcpMetrics, Traffic, closed

ANSWERED = re.compile(rb"HTTP/1\.1 (\d{3}) ")


async def request(
    node: Host, text: str, *, port: int = 15000, host: str = "127.0.0.1", body: bytes = b""
) -> tuple[int, bytes]:
    """Status and body of what *text* (a head with ``\\n`` ends) is answered."""
    async with await connect(node, host, port) as stream:
        await stream.send_all(text.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        answer = b"".join([data async for data in stream])
    found = ANSWERED.match(answer)
    return (int(found[1]) if found else 0), answer.partition(b"\r\n\r\n")[2]


async def until_ready(process: Ztunnel) -> None:
    """The agent may have its word before control has spoken and the ports are open."""
    with trio.fail_after(15):
        while " 200 " not in (await process.ready()).partition("\r\n")[0]:  # noqa: ASYNC110 - another process.
            await trio.sleep(0.01)


Body = Callable[[Ztunnel, Host], Awaitable[None]]


async def with_process(tmp_path: Path, body: Body) -> None:
    """Run *body* beside a ztunnel that serves one pod."""
    lab = Lab()
    pod = lab.pod("web")
    web = workload(pod)
    mesh, authority = Mesh(), Authority(time.time())
    mesh.apply(Change(workloads=(web,)))
    async with ztunnel(tmp_path, lab.node(), mesh, authority) as process:
        assert await process.agent.add(web, pod.netns) == ""
        assert await process.agent.snapshot_sent() == ""
        await until_ready(process)
        await body(process, pod)
        # The oracle of them all: alive, ready, and no bug was met.
        assert (await request(process.node, "GET /healthz/ready HTTP/1.1", port=15021))[0] == 200
        assert "bug of ours" not in process.log.read_text()


@in_namespaces
async def test_a1_admin_is_not_there_for_pods_and_other_nodes(tmp_path: Path) -> None:
    """Only from the node's own loopback; metrics and readiness answer from anywhere."""

    async def body(process: Ztunnel, pod: Host) -> None:
        for address in (process.node.ip, "127.0.0.1"):
            with pytest.raises(OSError):
                await connect(pod, address, 15000)
        with pytest.raises(OSError):
            await connect(process.node, process.node.ip, 15000)
        for port, path in ((15020, "/metrics"), (15021, "/healthz/ready")):
            text = f"GET {path} HTTP/1.1\nHost: {process.node.ip}"
            assert (await request(pod, text, port=port, host=process.node.ip))[0] == 200
            # What only the admin port may show is not shown there.
            for only_admin in ("/config_dump", "/logging", "/quitquitquit", "/debug/reactor"):
                text = f"POST {only_admin} HTTP/1.1\nHost: localhost"
                assert (await request(pod, text, port=port, host=process.node.ip))[0] == 404

    await with_process(tmp_path, body)


@in_namespaces
async def test_a2_to_a4_and_a6_a7_requests_that_are_refused(tmp_path: Path) -> None:
    """DNS rebinding, pages of browsers, paths, methods, levels, durations: a table against one process."""
    local = "\nHost: localhost:15000"
    cases = {
        "a2-rebound-name": ("GET /config_dump HTTP/1.1\nHost: evil.example:15000", 403),
        "a2-look-alike": ("GET /config_dump HTTP/1.1\nHost: localhost.evil.example", 403),
        "a2-no-host": ("GET /config_dump HTTP/1.1", 403),
        "a2-two-hosts": (f"GET /config_dump HTTP/1.1{local}\nHost: evil.example", 403),
        "a2-absolute-target": (f"GET http://localhost/config_dump HTTP/1.1{local}", 400),
        "a3-page-posts": (f"POST /quitquitquit HTTP/1.1{local}\nOrigin: https://evil.example", 403),
        "a3-null-origin": (f"POST /quitquitquit HTTP/1.1{local}\nOrigin: null", 403),
        "a3-other-local-page": (
            f"POST /logging?level=off HTTP/1.1{local}\nOrigin: http://localhost:3000",
            403,
        ),
        "a3-fetched-by-a-page": (f"GET /config_dump HTTP/1.1{local}\nSec-Fetch-Site: cross-site", 403),
        "a3-get-does-not-stop": (f"GET /quitquitquit HTTP/1.1{local}", 405),
        "a4-parent": (f"GET /../config_dump HTTP/1.1{local}", 404),
        "a4-deeper-parent": (f"GET /debug/../config_dump HTTP/1.1{local}", 404),
        "a4-semicolon": (f"GET /..;/config_dump HTTP/1.1{local}", 404),
        "a4-escaped": (f"GET /%2e%2e/etc/passwd HTTP/1.1{local}", 404),
        "a4-double-slash": (f"GET //config_dump HTTP/1.1{local}", 404),
        "a4-huge-query": (f"GET /config_dump?a={'a' * 4000} HTTP/1.1{local}", 414),
        "a4-huger-query": (f"GET /config_dump?a={'a' * 9000} HTTP/1.1{local}", 431),
        "a6-no-level": (f"POST /logging?level= HTTP/1.1{local}", 400),
        "a6-odd-level": (f"POST /logging?level=%00%ff HTTP/1.1{local}", 400),
        "a6-odd-scope": (f"POST /logging?level=h2:off HTTP/1.1{local}", 400),
        "a6-long": (f"POST /logging?level={'info,' * 200} HTTP/1.1{local}", 400),
        "a6-put": (f"PUT /logging?level=info HTTP/1.1{local}", 405),
        "a7-for-ever": (f"GET /debug/pprof/profile?seconds=1000000000 HTTP/1.1{local}", 400),
        "a7-nothing": (f"GET /debug/pprof/profile?seconds=0 HTTP/1.1{local}", 400),
        "a7-negative": (f"GET /debug/pprof/profile?seconds=-1 HTTP/1.1{local}", 400),
        "a7-fraction": (f"GET /debug/pprof/profile?seconds=1e2 HTTP/1.1{local}", 400),
        "a7-other-digits": ("GET /debug/pprof/profile?seconds=%D9%A1 HTTP/1.1" + local, 400),
    }

    async def body(process: Ztunnel, pod: Host) -> None:
        for name, (text, expected) in cases.items():
            assert (await request(process.node, text))[0] == expected, name
        # And none of it has done anything.
        level = await request(process.node, f"GET /logging HTTP/1.1{local}")
        assert level == (200, b"current log level is info\n")
        assert process.process.poll() is None

    await with_process(tmp_path, body)


@in_namespaces
async def test_a5_a_dump_holds_no_key_token_or_environment(tmp_path: Path) -> None:
    """Whatever the process knows and is nobody's business."""

    async def body(process: Ztunnel, pod: Host) -> None:
        pages = b""
        for path in ("/", "/config_dump", "/logging", "/debug/connections", "/debug/reactor"):
            status, page = await request(process.node, f"GET {path} HTTP/1.1\nHost: localhost")
            assert status == 200
            pages += page
        profile = "GET /debug/pprof/profile?seconds=1 HTTP/1.1\nHost: localhost"
        pages += (await request(process.node, profile))[1]
        for secret in (b"BEGIN", b"PRIVATE", b"MC4CAQ", b"Bearer", b"eyJ"):
            assert secret not in pages, secret
        environ = {
            value
            for value in Path(f"/proc/{process.process.pid}/environ").read_text().split("\0")
            if len(value.partition("=")[2]) > 8
        }
        said = {process.node.name, str(tmp_path / f"{process.node.name}.zds")}
        for entry in environ:
            value = entry.partition("=")[2]
            assert value in said or value.encode() not in pages, entry

    await with_process(tmp_path, body)


@in_namespaces
async def test_a8_a_thousand_slow_scrapers_are_bounded(tmp_path: Path) -> None:
    """They cost a few descriptors and little memory, and the one who reads still gets the page."""

    async def body(process: Ztunnel, pod: Host) -> None:
        pid = process.process.pid

        def resident() -> int:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def descriptors() -> int:
            return len(os.listdir(f"/proc/{pid}/fd"))

        before, open_before = resident(), descriptors()
        slow = [await connect(process.node, process.node.ip, 15020) for _ in range(1000)]
        for stream in slow[:500]:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        for stream in slow[500:]:
            await stream.send_all(b"GET /met")
        assert descriptors() <= open_before + 16
        assert resident() - before < 16 * 2**20
        # Readiness, and everything else, has a door of its own.
        assert (await request(process.node, "GET /healthz/ready HTTP/1.1", port=15021))[0] == 200
        for stream in slow:
            await stream.aclose()
        with trio.fail_after(30):
            status, page = await request(
                process.node, "GET /metrics HTTP/1.1", port=15020, host=process.node.ip
            )
        assert status == 200
        assert b"ambient_proxies 1\n" in page
        assert resident() - before < 16 * 2**20

    await with_process(tmp_path, body)


def test_a9_labels_cannot_break_out_and_a_cardinality_bomb_is_capped() -> None:
    """Names with quotes, newlines and backslashes; 100,000 identities: the cap, and the rest as ``other``."""
    metrics = TcpMetrics()
    evil = Workload(
        uid="evil",
        name='a"} 1\nistio_fake{x="',
        namespace="b\\",
        canonical_name='x"\r\n# HELP',
        workload_name='"',
    )
    closed(
        metrics.opened(Traffic(reporter="source", source=evil, destination=evil, service='s"\n')), Flag.NONE
    )
    line = re.compile(r'istio_tcp_\w+\{(\w+="([^"\\\n]|\\["\\n])*",?)+\} \d+')
    for found in metrics.exposition().split("\n")[:-1]:
        assert line.fullmatch(found) or found.startswith("# "), found
    assert "\nistio_fake" not in metrics.exposition()

    for number in range(100_000):
        identity = SpiffeId("cluster.local", "shop", f"sa{number}")
        source = Workload(uid=str(number), name=f"w{number}", namespace="shop")
        traffic = Traffic(reporter="source", source=source, destination=None, source_identity=identity)
        metrics.opened(traffic)
    assert len(metrics) == MAX_SERIES + 1
    text = metrics.exposition()
    opened = re.findall(r"^istio_tcp_connections_opened_total\{.*\} (\d+)$", text, re.M)
    assert sum(map(int, opened)) == 100_001
    assert 'source_workload="other"' in text
    assert sys.getsizeof(text) < 10 * 2**20


THREATS = {"a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9"}


def test_every_id_of_the_list_has_a_test() -> None:
    """A missing one is a promise that nobody keeps."""
    text = Path(__file__).read_text()
    named = set(re.findall(r"\b(a\d)_", text.replace("test_", ""))) | set(re.findall(r'"(a\d)-', text))
    assert named >= THREATS, sorted(THREATS - named)


@in_namespaces
async def test_the_admin_port_does_what_it_says(tmp_path: Path) -> None:
    """The other side of the table: each of its paths works on a real process; the last one ends it."""

    async def body(process: Ztunnel, pod: Host) -> None:
        local = "\nHost: localhost:15000"
        status, page = await request(process.node, f"GET /config_dump HTTP/1.1{local}")
        assert status == 200
        document = json.loads(page)
        assert [each["name"] for each in document["workloads"]] == ["web"]
        assert document["certificates"][0]["state"] == "Available"
        changed = await request(process.node, f"POST /logging?level=ztunnel:debug HTTP/1.1{local}")
        assert changed == (200, b"current log level is ztunnel=debug,info\n")
        profile = f"GET /debug/pprof/profile?seconds=1 HTTP/1.1{local}"
        status, page = await request(process.node, profile)
        assert status == 200
        assert b"reactor.Reactor.run" in page

    await with_process(tmp_path, body)


@in_namespaces
async def test_quitquitquit_drains_and_ends_the_process(tmp_path: Path) -> None:
    """As SIGTERM does, with exit code 0."""
    lab = Lab()
    pod = lab.pod("web")
    mesh, authority = Mesh(), Authority(time.time())
    mesh.apply(Change(workloads=(workload(pod),)))
    async with ztunnel(tmp_path, lab.node(), mesh, authority) as process:
        assert await process.agent.snapshot_sent() == ""
        await until_ready(process)
        posted = await request(process.node, "POST /quitquitquit HTTP/1.1\nHost: localhost", body=b"")
        assert posted == (200, b"shutdown now\n")
        assert await process.exited() == 0
        assert "draining" in process.log.read_text()
