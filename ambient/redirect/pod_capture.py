"""Whether a pod can be captured, and capturing it: the plain calls that ``pod_keeper`` puts in order."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import netns_identity, open_netns
from ambient.errors import ConfigError
from ambient.redirect import sockets
from ambient.redirect.backends import Backend
from ambient.redirect.plan import Capture
from ambient.wire.netlink_diag import TcpSocket
from ambient.wire.xds import NodePod


def check(netns: int, ztunnels: frozenset[int]) -> None:
    """Refuse what cannot be captured, before anything is done.

    Args:
        ztunnels: Processes that may hold the proxy's ports there already.

    Raises:
        ConfigError: with the reason for the operator.
    """
    check_namespace(netns)
    check_ports(netns, ztunnels)


def check_namespace(netns: int) -> None:
    """Refuse the node's own.

    Raises:
        ConfigError: it is.
    """
    own = open_netns("/proc/self/ns/net")
    try:
        if netns_identity(own) == netns_identity(netns):
            raise ConfigError("it is in the node's own network namespace (hostNetwork): cannot be captured")
    finally:
        os.close(own)


def check_ports(netns: int, ztunnels: frozenset[int]) -> None:
    """Refuse a namespace where the proxy's ports are somebody else's.

    Raises:
        ConfigError: they are; it names who.
    """
    for found in sockets.listeners(netns):
        if not sockets.held_by(found.inode, ztunnels) and _is_open(netns, found):
            who = sockets.owner(found.inode) or "another process"
            raise ConfigError(f"port {found.local_port} is taken by {who}")


def _is_open(netns: int, listener: TcpSocket) -> bool:
    """Whether it still is: one that was closed since it was listed is held by nobody, and is nobody's."""
    return any(each.inode == listener.inode for each in sockets.listeners(netns))


def check_is_home(netns: int, pod: NodePod) -> None:
    """Refuse a namespace that took the place of the pod's and is not the pod's: a path may be used again.

    Raises:
        ConfigError: it lacks one of the pod's addresses.
    """
    with NetlinkSocket(netns) as nl:
        there = {each.cidr.partition("/")[0] for each in nl.addresses()}
    for address in pod.addresses:
        if address not in there:
            raise ConfigError(f"the namespace at {pod.netns} is not the pod's: it has no address {address}")


def capture_of(pod: NodePod) -> Capture:
    """What of *pod* is captured."""
    return Capture(dns=pod.dns_capture, exclusions=pod.exclusions)


@dataclass(frozen=True, slots=True)
class Existing:
    """The connections that are older than a capture: those left alone, and those that were reset."""

    kept: tuple[TcpSocket, ...] = ()
    reset: tuple[TcpSocket, ...] = ()


def install(rules: Backend, netns: int, pod: NodePod) -> Existing:
    """Install the rules and do with older connections what *pod* says.

    They are listed when the rules stand, from when on nobody is added to them: whoever connects first does
    not wait for the kernel's walk over all connections of the machine.
    """
    rules.install(netns, capture_of(pod))
    # A pod that drains has connections which the proxy carries: those are the mesh's.
    older = sockets.past_the_proxy(netns, capture_of(pod))
    if pod.existing != "reset":
        return Existing(kept=older)
    sockets.reset(netns, older)
    return Existing(reset=older)


def settle(netns: int, capture: Capture, existing: Existing, *, strict: bool) -> Existing:
    """Account for connections that came past the proxy while the pod's rules were not there.

    Whoever enrolled the pod knew of the older ones; of these nobody knew. They are plaintext and counted
    as such; those into a pod that refuses plaintext were never admitted by anybody, and are reset.
    """
    known = {each.cookie for each in existing.kept}
    strays = tuple(each for each in sockets.past_the_proxy(netns, capture) if each.cookie not in known)
    served = sockets.listening_ports(netns) if strict and strays else frozenset()
    doomed = tuple(each for each in strays if each.local_port in served)
    if doomed:
        sockets.reset(netns, doomed)
    left = tuple(each for each in strays if each.local_port not in served)
    return Existing(kept=existing.kept + left, reset=doomed)
