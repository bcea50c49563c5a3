"""Making a pod's conntrack forget the connections that were captured.

The kernel keeps them when the rules go, some for days. A later connection with the addresses and ports of
one of them, met by conntrack through a packet of the other end (as every connection older than enrollment
may be), would be given another port, because the old one is thought to use this one: its answers reach
nobody.

Where nobody but us had conntrack on, nothing that it knows is of use any more. There may be tens of thousands
of them, two minutes of connections, and the next enrollment would wait for the kernel's walk over them. Where
others have rules, what else the pod has tracked is its own.
"""

from __future__ import annotations

from pathlib import Path

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns
from ambient.redirect.plan import DNS_CAPTURE_PORT, MARK_MASK, OUTBOUND_PORT, RETURN_MARK
from ambient.wire import netlink_conntrack, nft_encode
from ambient.wire.netlink import NETLINK_NETFILTER


def forget_captured(netns: int) -> None:
    """Forget them, after our rules have gone. A kernel that cannot list them keeps them.

    Takes up to 20 ms, because the kernel walks the table of all namespaces: not for the way in.
    """
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        try:
            if not netlink_conntrack.decode_count(nl.get(netlink_conntrack.ask_count())):
                return  # Most pods that are quiet; the kernel's walks are for the others.
            if not _others_track(nl, netns):
                nl.run(netlink_conntrack.forget_all())
                return
            # The proxy's to the application.
            nl.run(netlink_conntrack.forget_marked(RETURN_MARK, MARK_MASK))
            # The application's to the proxy.
            found = map(netlink_conntrack.decode, nl.dump(netlink_conntrack.dump_redirected()))
        except OSError:
            return  # No nf_conntrack_netlink, or a table that changes faster than it can be read.
        doomed = [
            netlink_conntrack.forget(each)
            for each in found
            if each.answered_from in (OUTBOUND_PORT, DNS_CAPTURE_PORT)
        ]
        for refusal in nl.refusals(*doomed):
            if not isinstance(refusal, FileNotFoundError):  # It ended by itself meanwhile.
                raise refusal


def _others_track(nl: NetlinkSocket, netns: int) -> bool:
    """Whether rules of others that may have conntrack on are left: nf_tables, or the legacy iptables."""
    if nl.dump(nft_encode.dump_chains(nft_encode.NFPROTO_UNSPEC)):
        return True
    with in_netns(netns):
        return any(map(_has_tables, ("ip_tables_names", "ip6_tables_names")))


def _has_tables(name: str) -> bool:
    try:
        return bool(Path("/proc/thread-self/net", name).read_bytes())
    except FileNotFoundError:
        return False  # The kernel has no such tables, or nobody has ever used them.
    except PermissionError:
        return True  # The namespace is another user's, and who knows.
