"""What enrolling a pod would do and meet, found out without doing it.

Asked by control for ``enroll --dry-run`` and ``check --pre``; the answer is plain data.
"""

from __future__ import annotations

import os
from typing import Any

from ambient.engine.netns import open_netns
from ambient.errors import AmbientError
from ambient.model.address import format_hostport
from ambient.redirect import pod_capture, sockets
from ambient.redirect.backends import Backend
from ambient.redirect.plan import DNS_CAPTURE_PORT, Capture, capture_plan
from ambient.wire.netlink_diag import TcpSocket
from ambient.wire.xds import MAX_EXISTING_SHOWN, NodePod


def survey(pod: NodePod, ztunnels: frozenset[int], rules: Backend) -> dict[str, Any]:
    """Look at *pod* and answer ``{rules, standing, established, connections, blocker, note}``.

    ``established`` counts the connections that are open, ``connections`` shows the first of them; what
    stands in the way is the ``blocker``, what may some day the ``note``, "" if nothing does.
    """
    capture = pod_capture.capture_of(pod)
    found: dict[str, Any] = {
        "rules": rules_text(rules, capture),
        "standing": "none",
        "blocker": "",
        "note": "",
    }
    found |= {"established": 0, "connections": []}
    try:
        netns = open_netns(pod.netns)
    except OSError as exc:
        return found | {"blocker": f"no network namespace {pod.netns!r}: {exc.strerror}"}
    try:
        pod_capture.check(netns, ztunnels)
        taken = _dns_port_taken(netns, ztunnels)
        found["blocker" if capture.dns else "note"] = taken
        found["standing"] = rules.standing(netns, capture).name.lower()
    except (OSError, AmbientError) as exc:
        found["blocker"] = str(exc)
    try:
        older = sockets.past_the_proxy(netns, capture)
        found |= {"established": len(older), "connections": shown(older)}
    except OSError as exc:
        found["blocker"] = found["blocker"] or str(exc)
    finally:
        os.close(netns)
    return found


def _dns_port_taken(netns: int, ztunnels: frozenset[int]) -> str:
    for each in sockets.listeners(netns, (DNS_CAPTURE_PORT,)):
        if not sockets.held_by(each.inode, ztunnels):
            return f"port {DNS_CAPTURE_PORT} is taken by {sockets.owner(each.inode) or 'another process'}"
    return ""


def shown(connections: tuple[TcpSocket, ...]) -> list[str]:
    """Connections as text, ``"10.244.1.2:80 - 10.244.1.3:40112"``, the first hundred."""
    return [
        f"{format_hostport(each.local, each.local_port)} - {format_hostport(each.remote, each.remote_port)}"
        for each in connections[:MAX_EXISTING_SHOWN]
    ]


def rules_text(rules: Backend, capture: Capture) -> str:
    """The rules and routes of a capture, in the words of whoever would put them in."""
    return "".join(f"{line}\n" for line in rules.planned(capture_plan(capture)))
