"""Making a pod's conntrack forget the connections that were captured.

The kernel keeps them when the rules go, some for days. A later connection with the addresses and ports of
one of them, met by conntrack through a packet of the other end (as every connection older than enrollment
may be), would be given another port, because the old one is thought to use this one: its answers reach
nobody. What else the pod has tracked is its own.
"""

from __future__ import annotations

from contextlib import suppress

from ambient.engine.netlink import NetlinkSocket
from ambient.redirect.plan import DNS_CAPTURE_PORT, MARK_MASK, OUTBOUND_PORT, RETURN_MARK
from ambient.wire import netlink_conntrack
from ambient.wire.netlink import NETLINK_NETFILTER
from ambient.wire.netlink_conntrack import Tracked


def forget_captured(netns: int) -> int:
    """Forget them; returns how many there were. A kernel that cannot list them keeps them.

    Takes some 20 ms, because the kernel walks the table of all namespaces: not for the way in.
    """
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        try:
            if not netlink_conntrack.decode_count(nl.get(netlink_conntrack.ask_count())):
                return 0  # Most pods that are quiet; the kernel's walk is for the others.
            known = [netlink_conntrack.decode(message) for message in nl.dump(netlink_conntrack.dump())]
        except OSError:
            return 0  # No nf_conntrack_netlink, or a table that changes faster than it can be read.
        captured = [each for each in known if was_captured(each)]
        for each in captured:
            with suppress(FileNotFoundError):  # It ended by itself meanwhile.
                nl.run(netlink_conntrack.forget(each))
    return len(captured)


def was_captured(tracked: Tracked) -> bool:
    """Whether our rules redirected it to the proxy, or marked it as the proxy's to the application."""
    redirected = tracked.answered_from in (OUTBOUND_PORT, DNS_CAPTURE_PORT)
    return redirected or tracked.mark & MARK_MASK == RETURN_MARK
