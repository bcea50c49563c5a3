"""Network namespaces for tests: made in a forked child, gone with it.

Use::

    @in_namespaces                       # marks the test ``netns``; async bodies run under trio
    def test_something() -> None:
        lab = Lab()
        client, server = lab.pod("client"), lab.pod("server")
        with server.listen(80) as listener, client.connect(server.ip, 80) as sock: ...

The body runs in a child process whose network namespace is fresh (as root), inside a fresh user
namespace too (as an ordinary user, or with ``@in_namespaces(rootless=True)``). Namespaces of the lab
are held by descriptors of that child alone, so that not even a crash leaves one behind. The
child never execs, so it works wherever the interpreter lives.

A ``Lab`` is what the fabric builds: an outer router, nodes behind it, pods on links of their own::

    outer  n1 ---- eth0  node 1  p2 ---- eth0  pod 10.244.1.2
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pytest
import trio

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns, open_netns
from ambient.fabric.wiring_plan import (
    DEFAULT_V4,
    DEFAULT_V6,
    NODE_SYSCTLS,
    POD_ROUTER_V6,
    POD_SYSCTLS,
    PROBE_SOURCE,
    PROBE_SOURCE_V6,
)
from ambient.model.addressing import FIRST_POD_INDEX, NETNS
from ambient.wire.netlink_route import RTN_LOCAL, Route

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG = 1
# Every wait in a lab; long enough for a loaded machine of 2 cores.
DEADLINE = 20.0
_PASSED, _SKIPPED = b"passed", b"skipped:"

_libc = ctypes.CDLL(None, use_errno=True)


@overload
def in_namespaces(test: Callable[..., Any], /) -> Callable[..., None]: ...
@overload
def in_namespaces(*, rootless: bool = ...) -> Callable[[Callable[..., Any]], Callable[..., None]]: ...


def in_namespaces(test: Callable[..., Any] | None = None, /, *, rootless: bool = False) -> Any:
    """Decorate a test so that its body runs in fresh namespaces; fixtures are set up outside of them."""

    def decorate(body: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> None:
            run_isolated(functools.partial(body, *args, **kwargs), rootless=rootless)

        return pytest.mark.rootless(pytest.mark.netns(run)) if rootless else pytest.mark.netns(run)

    return decorate if test is None else decorate(test)


def run_isolated(body: Callable[[], Any], *, rootless: bool = False) -> None:
    """Run *body* in a child with namespaces of its own; its failure is raised here as an AssertionError."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(body, writer, rootless or os.geteuid() != 0)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as stream:
            said = stream.read()
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if said.startswith(_SKIPPED):
        pytest.skip(said.removeprefix(_SKIPPED).decode())
    if said != _PASSED:
        pytest.fail(said.decode() or "the child in the namespaces died", pytrace=False)


def _child(body: Callable[[], Any], writer: int, nested: bool) -> None:
    os.setpgid(0, 0)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        enter_namespaces(nested)
        trio.run(body) if _is_async(body) else body()
        said = _PASSED
    except pytest.skip.Exception as exc:
        said = _SKIPPED + str(exc).encode()
    except BaseException:
        said = traceback.format_exc().encode()
    with suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    # Descendants may hold the pipe's other end, so its reader waits for the end of the whole group.
    with os.fdopen(writer, "wb") as stream:
        stream.write(said)
    os._exit(0)


def _is_async(body: Callable[[], Any]) -> bool:
    return inspect.iscoroutinefunction(body.func if isinstance(body, functools.partial) else body)


def enter_namespaces(nested: bool) -> None:
    """Move this single-threaded process into a fresh network (and user) namespace; loopback is up."""
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if nested else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if nested:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    with NetlinkSocket() as nl:
        nl.set_up("lo")


def make_netns(sysctls: Mapping[str, str]) -> int:
    """A new network namespace with its loopback up; returns its descriptor."""
    with in_netns(open_netns("/proc/thread-self/ns/net")):
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        fd = open_netns("/proc/thread-self/ns/net")
        write_sysctls(sysctls)
    with NetlinkSocket(fd) as nl:
        nl.set_up("lo")
    return fd


def write_sysctls(values: Mapping[str, str]) -> None:
    """Set *values* (path under /proc/sys -> text) in the present namespace."""
    for path, value in values.items():
        Path("/proc/sys", path).write_text(value)


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with addresses: a node or a pod.

    Attributes:
        netns: Its descriptor.
        ip, ip6: Its own addresses.
        link: Of a pod: the node's end of its link.
    """

    name: str
    netns: int
    ip: str
    ip6: str
    link: str = ""

    @property
    def netns_path(self) -> str:
        """A path that any process of this test can open, as the agent gets one."""
        return f"/proc/{os.getpid()}/fd/{self.netns}"

    def listen(self, port: int, host: str = "::") -> socket.socket:
        """A TCP listener in it, on both families unless *host* says otherwise."""
        with in_netns(self.netns):
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        made.settimeout(DEADLINE)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
        made.listen(64)
        return made

    def connect(self, host: str, port: int, deadline: float = DEADLINE) -> socket.socket:
        """A TCP connection from it."""
        with in_netns(self.netns):
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            made.settimeout(deadline)
            made.connect((host, port))
            made.settimeout(DEADLINE)
        except OSError:
            made.close()
            raise
        return made

    def udp(self, host: str = "", port: int = 0) -> socket.socket:
        """A UDP socket in it, bound to *host* if given; IPv6 if *host* is."""
        with in_netns(self.netns):
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(DEADLINE)
        if host:
            made.bind((host, port))
        return made


class Lab:
    """An outer router in the present namespace, and nodes and pods around it."""

    def __init__(self) -> None:
        write_sysctls(NODE_SYSCTLS)
        self._nodes: dict[int, Host] = {}
        self._pods: dict[int, int] = {}

    def node(self, number: int = 1) -> Host:
        """Node *number*, made when first asked for."""
        if number not in self._nodes:
            self._nodes[number] = _make_node(number)
        return self._nodes[number]

    def pod(self, name: str, node: int = 1) -> Host:
        """A new pod; the first of node 1 is 10.244.1.2."""
        index = self._pods.get(node, FIRST_POD_INDEX)
        self._pods[node] = index + 1
        return _make_pod(name, self.node(node), node, index)


def _make_node(number: int) -> Host:
    plan = NETNS.node(number)
    fd = make_netns(NODE_SYSCTLS)
    with NetlinkSocket() as outer:
        outer.add_veth(f"n{number}", "eth0", peer_netns=fd)
        outer.set_up(f"n{number}")
        outer.add_address(f"n{number}", f"{plan.router[0]}/30")
        outer.add_address(f"n{number}", f"{plan.router[1]}/64")
        with NetlinkSocket(fd) as node:
            node.set_up("eth0")
            node.add_address("eth0", f"{plan.uplink[0]}/30")
            node.add_address("eth0", f"{plan.uplink[1]}/64")
            for ip in (*plan.gateway, *NETNS.dns, PROBE_SOURCE, PROBE_SOURCE_V6):
                node.add_address("lo", ip)
            node.add_route(DEFAULT_V4, gateway=plan.router[0], link="eth0")
            node.add_route(DEFAULT_V6, gateway=plan.router[1], link="eth0")
        for network, gateway in zip(plan.pod_networks, plan.uplink, strict=True):
            outer.add_route(network, gateway=gateway, link=f"n{number}")
    return Host(f"node-{number}", fd, *plan.uplink)


def _make_pod(name: str, node: Host, number: int, index: int) -> Host:
    ip, ip6 = NETNS.pod(number, index)
    gateway = NETNS.node(number).gateway[0]
    link = f"p{index}"
    fd = make_netns(POD_SYSCTLS)
    with NetlinkSocket(node.netns) as nl:
        nl.add_veth(link, "eth0", peer_netns=fd)
        nl.set_up(link)
        nl.add_address(link, f"{POD_ROUTER_V6}/64")
        nl.add_route(f"{ip}/32", link=link)
        nl.add_route(f"{ip6}/128", link=link)
    with NetlinkSocket(fd) as nl:
        nl.set_up("eth0")
        nl.add_address("eth0", ip)
        nl.add_address("eth0", ip6)
        nl.add_route(f"{gateway}/32", link="eth0")
        nl.add_route(DEFAULT_V4, gateway=gateway, link="eth0")
        nl.add_route(DEFAULT_V6, gateway=POD_ROUTER_V6, link="eth0")
        _wait_for_local_route(nl, ip6)
    return Host(name, fd, ip, ip6, link)


def _wait_for_local_route(nl: NetlinkSocket, ip6: str) -> None:
    """The kernel makes it some time after the address; until then a pod would look for itself outside."""
    deadline = time.monotonic() + DEADLINE
    while not any(_is_local(route, ip6) for route in nl.routes(socket.AF_INET6)):
        assert time.monotonic() < deadline, f"{ip6} never became local"
        time.sleep(0.001)


def _is_local(route: Route, ip6: str) -> bool:
    return route.kind == RTN_LOCAL and route.destination.partition("/")[0] == ip6
