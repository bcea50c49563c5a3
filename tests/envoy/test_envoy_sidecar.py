"""A real Envoy takes the sidecar's configuration, and carries a request that our own sidecar sent."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from ambient.model.mesh import Change, Mesh
from ambient.model.policy import (
    Action,
    Connection,
    Match,
    Policy,
    Scope,
    StringMatch,
    decide,
)
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Protocol, Workload
from ambient.pki.svid import pem
from tests.flow.l7_mesh import L7Mesh, client, in_l7_mesh
from waypoint.envoy_bootstrap import bootstrap, dynamic_files
from waypoint.envoy_clusters import INBOUND, clusters
from waypoint.envoy_listeners import inbound, listeners
from waypoint.envoy_process import envoy_path
from waypoint.envoy_tls import Files

pytestmark = pytest.mark.envoy


def mesh_of_two() -> tuple[Mesh, Workload]:
    """A mesh with an HTTP and a TCP service, one endpoint behind a sidecar and one without; and the first."""
    mesh = Mesh()
    services = [
        Service(
            name=name,
            namespace="shop",
            hostname=f"{name}.shop.svc.cluster.local",
            addresses=(f"10.96.0.{number}", f"fd00:10:96::{number}"),
            ports=(ServicePort(port=80, target_port=8080, app_protocol=protocol),),
        )
        for number, (name, protocol) in enumerate([("api", "http"), ("web", "http"), ("db", "tcp")], 1)
    ]
    workloads = [
        Workload(
            uid=f"Kubernetes//Pod/shop/{name}#1",
            name=name,
            namespace="shop",
            service_account=name,
            addresses=(f"10.244.1.{number}", f"fd00:10:244:1::{number}"),
            protocol=protocol,
            services={f"shop/{service}.shop.svc.cluster.local": {80: 8080}},
        )
        for number, (name, service, protocol) in enumerate(
            [
                ("api", "api", Protocol.ISTIO_MTLS),
                ("old", "api", Protocol.TCP),
                ("db", "db", Protocol.ISTIO_MTLS),
            ],
            2,
        )
    ]
    mesh.apply(Change(services=tuple(services), workloads=tuple(workloads)))
    return mesh, workloads[0]


@contextmanager
def memory_files(mesh: L7Mesh, workload: Workload) -> Iterator[Files]:
    """The certificate of *workload* as Envoy reads it."""
    mesh.alpn_svids.renew(workload.identity)
    svid = mesh.alpn_svids._svids[workload.identity]
    made = [os.memfd_create("test") for _ in range(3)]
    for descriptor, data in zip(made, (pem(svid.chain), svid.key, pem(svid.roots)), strict=True):
        os.write(descriptor, data)
    try:
        yield Files(*made)
    finally:
        for descriptor in made:
            os.close(descriptor)


def policy(key: str, action: Action, *matches: Match) -> Policy:
    """A policy with one rule of one clause."""
    return Policy(
        key=key,
        namespace="shop",
        action=action,
        scope=Scope.GLOBAL,
        rules=((matches,),) if matches else (),
    )


STRICT = policy("istio-system/strict", Action.DENY, Match(not_principals=(StringMatch.parse("*"),)))
EVERYTHING = policy(
    "shop/everything",
    Action.ALLOW,
    Match(
        namespaces=(StringMatch.parse("shop"), StringMatch.parse("sh*")),
        not_namespaces=(StringMatch.parse("*x"),),
        service_accounts=("shop/web",),
        principals=(StringMatch.parse("cluster.local/ns/shop/sa/web"),),
        source_ips=("10.0.0.0/8",),
        not_source_ips=("10.9.0.0/16",),
        destination_ips=("10.244.0.0/16",),
        not_destination_ips=("fd00::/8",),
        destination_ports=(8080,),
        not_destination_ports=(9090,),
    ),
    Match(destination_ports=(8081,)),
)


@pytest.mark.parametrize(
    "policies", [(), (STRICT,), (STRICT, EVERYTHING)], ids=["open", "strict", "everything"]
)
def test_envoy_accepts_the_configuration(tmp_path: Path, policies: tuple[Policy, ...]) -> None:
    """Envoy 1.40's own validation, of everything that the sidecar would load."""

    @in_l7_mesh
    async def validated(l7: L7Mesh) -> None:
        mesh, me = mesh_of_two()
        mesh.apply(Change(policies=policies))
        with memory_files(l7, me) as files:
            document: dict[str, Any] = bootstrap(me, str(tmp_path))
            del document["dynamic_resources"]
            document["static_resources"] = {
                "clusters": clusters(mesh, files, 15000),
                "listeners": listeners(mesh, me, files),
            }
            path = tmp_path / "bootstrap.json"
            path.write_text(json.dumps(document))
            done = await trio.run_process(
                [envoy_path(), "--mode", "validate", "-c", str(path)],
                pass_fds=(files.chain, files.key, files.roots),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr.decode()

    validated()


def test_no_key_is_in_any_file() -> None:
    """What is written to the run directory names descriptors, and nothing else of the identity."""
    mesh, me = mesh_of_two()

    text = "".join(dynamic_files(mesh, me, Files(7, 8, 9, 1)).values()) + json.dumps(bootstrap(me, "/run"))

    assert "/dev/fd/8" in text
    assert "PRIVATE KEY" not in text
    assert "CERTIFICATE-----" not in text


def test_changed_certificate_changes_the_files() -> None:
    """Envoy reads the memory files again only if its configuration differs."""
    mesh, me = mesh_of_two()

    before, after = (dynamic_files(mesh, me, Files(7, 8, 9, serial)) for serial in (1, 2))

    assert before["cds.json"] != after["cds.json"]
    assert before["lds.json"] != after["lds.json"]


NO_WEB = policy("shop/no-web", Action.DENY, Match(principals=(StringMatch.parse("*/sa/web"),)))
ONLY_WEB = policy(
    "shop/only-web", Action.ALLOW, Match(service_accounts=("shop/web",), destination_ports=(8080,))
)
EVERYBODY = Policy(key="shop/all", namespace="shop", action=Action.DENY, scope=Scope.GLOBAL, rules=((),))
NOT_WEB = policy("shop/not-web", Action.ALLOW, Match(not_principals=(StringMatch.parse("*/sa/web"),)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policies", "secured", "plain"),
    [
        ((), 200, 200),
        ((STRICT,), 200, 403),
        ((NO_WEB,), 403, 200),
        ((ONLY_WEB,), 200, 403),
        ((NOT_WEB,), 403, 403),
        ((ONLY_WEB, NO_WEB), 403, 403),
        ((policy("shop/nobody", Action.ALLOW),), 403, 403),
        ((EVERYBODY,), 403, 403),
    ],
    ids=["open", "strict", "no-web", "only-web", "not-web", "deny-wins", "nobody", "everybody"],
)
def test_our_sidecar_talks_to_a_real_envoy(
    tmp_path: Path, policies: tuple[Policy, ...], secured: int, plain: int
) -> None:
    """Our mutual TLS, our HTTP/1.1, taken by Envoy's inbound listener; and policy decides as ours would."""

    @in_l7_mesh
    async def talked(mesh: L7Mesh) -> None:
        service = mesh.http_service("api")
        web = mesh.workload("web", Protocol.ISTIO_MTLS)
        api = mesh.endpoint("api", service, Protocol.ISTIO_MTLS)
        mesh.sidecar(web)
        mesh.app(api, port=18080)
        guarded = Mesh()
        guarded.apply(mesh.mesh.snapshot())
        guarded.apply(Change(policies=policies))
        for identity, status in ((web.identity, secured), (None, plain)):
            facts = Connection(identity, web.addresses[0], api.addresses[0], 8080)
            assert decide(policies, facts).allowed is (status == 200)
        with memory_files(mesh, api) as files:
            listener = reachable(inbound(guarded, api, files), api.addresses[0])
            path = tmp_path / "bootstrap.json"
            path.write_text(json.dumps(static(listener, api.addresses[0])))
            async with trio.open_nursery() as nursery:
                start = partial(
                    trio.run_process,
                    [envoy_path(), "-c", str(path), "--disable-hot-restart", "--concurrency", "1"],
                    pass_fds=(files.chain, files.key, files.roots),
                    stderr=subprocess.DEVNULL,
                    check=False,
                )
                process: trio.Process = await nursery.start(start)
                try:
                    await until_listening(api.addresses[0], 8080)
                    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
                        statuses = {(await http.get("/", "api"))[0] for _ in range(3)}
                        assert statuses == {secured}
                        if secured == 200:
                            assert len((await http.get("/bytes/1000000", "api"))[2]) == 1_000_000
                    connecting = partial(trio.open_tcp_stream, api.addresses[0], 8080)
                    async with client(connecting()) as http:
                        assert (await http.get("/", "api"))[0] == plain
                finally:
                    process.terminate()
        assert all(f'dst.identity="{api.identity}"' in line for line in await mesh.logged(3))

    talked()


def reachable(listener: dict[str, Any], ip: str) -> dict[str, Any]:
    """The inbound listener without a kernel's redirection: on the application's own address and port."""
    found = copy.deepcopy(listener)
    for name in ("transparent", "socket_options"):
        found.pop(name)
    found["address"] = {"socket_address": {"address": ip, "port_value": 8080}}
    found["listener_filters"] = found["listener_filters"][1:]
    return found


def static(listener: dict[str, Any], ip: str) -> dict[str, Any]:
    """A bootstrap with this listener alone; the application is next door."""
    endpoint = {"address": {"socket_address": {"address": ip, "port_value": 18080}}}
    cluster = {
        "name": INBOUND,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": INBOUND,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


async def until_listening(ip: str, port: int) -> None:
    """Wait for Envoy."""

    def listening() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((ip, port)) == 0

    with trio.fail_after(15):
        while not listening():  # noqa: ASYNC110 - another process's socket has no event.
            await trio.sleep(0.05)
