"""What a namespace that somebody else made counts as: its name, its addresses, or why it cannot. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import TypeAlias

from ambient.errors import ConfigError

# (device, inode) of a namespace file.
Identity: TypeAlias = tuple[int, int]

# RFC 1123: what Kubernetes takes for a name.
MAX_NAME = 63
_NOT_A_LABEL = re.compile(r"[^a-z0-9-]+")

ROOTLESS = (
    "a mesh without root cannot enter a network namespace that it did not make: "
    "start the mesh as root (sudo ambient up)"
)
LOOPBACK = "fabric loopback has no network namespaces and no redirection; see: ambient check"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One namespace that counts as a pod.

    Attributes:
        uid: Control's name for it.
        pid: Host PID of a process in it, 0 if none is known.
        started: Start of that process in clock ticks, against reuse of the number.
        path: Where the namespace is bound, in the view of whoever asked; "" for none.
        netns: A path that every process of the mesh can open.
    """

    uid: str
    namespace: str
    name: str
    identity: Identity
    pid: int
    started: int
    path: str
    netns: str


def default_name(program: str, pid: int, path: str) -> str:
    """The name of a guest that was given none: ``nginx-4711``, or the last part of its path."""
    given = f"{program}-{pid}" if pid else path.rpartition("/")[2]
    name = _NOT_A_LABEL.sub("-", given.lower()).strip("-")
    return name[-MAX_NAME:].strip("-") or "guest"


def check_name(name: str) -> str:
    """Return *name*.

    Raises:
        ConfigError: no pod can be called so.
    """
    if len(name) > MAX_NAME or not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
        raise ConfigError(f"not a name for a pod: {name!r}; letters a-z, digits and '-', at most {MAX_NAME}")
    return name


def reachable(cidrs: Iterable[str]) -> tuple[str, ...]:
    """Of the addresses in a namespace, those that others can send to; IPv4 first, as a pod's are.

    Raises:
        ConfigError: there is none.
    """
    found = {ip_interface(each).ip for each in cidrs}
    mine = sorted(
        (each for each in found if not (each.is_loopback or each.is_link_local or each.is_multicast)),
        key=lambda each: (each.version, int(each)),
    )
    if not mine:
        raise ConfigError("it has no address but loopback and link-local ones: give it one first")
    return tuple(each.compressed for each in mine)


def refuse_known(identity: Identity, ours: Mapping[Identity, str], machine: Identity) -> None:
    """Refuse a namespace that is no guest.

    Args:
        ours: Namespaces of the mesh's own nodes and pods -> what they are.
        machine: The machine's own namespace.

    Raises:
        ConfigError: with the reason.
    """
    if identity == machine:
        raise ConfigError("it is in the machine's own network namespace: its traffic is the machine's")
    if identity in ours:
        raise ConfigError(f"that is {ours[identity]} of this mesh; for a pod: ambient enroll pod/NAME -n NS")
