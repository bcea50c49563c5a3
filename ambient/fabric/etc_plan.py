"""What a pod finds in /etc: names resolved by the cluster DNS first. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

CLUSTER_DNS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"
_HOSTS_LINE = re.compile(r"^(\s*hosts\s*:).*$", re.MULTILINE)


def resolv_conf(namespace: str) -> str:
    """As kubelet writes it for ``dnsPolicy: ClusterFirst``."""
    domains = (f"{namespace}.svc.{CLUSTER_DOMAIN}", f"svc.{CLUSTER_DOMAIN}", CLUSTER_DOMAIN)
    return f"search {' '.join(domains)}\nnameserver {CLUSTER_DNS}\noptions ndots:5\n"


def hosts(name: str, addresses: Sequence[str]) -> str:
    """The pod's own names, and nobody else's."""
    own = [f"{address}\t{name}" for address in addresses]
    return "\n".join(("127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", *own, ""))


def nsswitch_conf(machine: str) -> str:
    """*machine*'s file with names looked up in files and DNS alone.

    A machine that asks systemd-resolved (``resolve``) or Avahi would go around the cluster's DNS by
    way of sockets that the pod shares with it.
    """
    if not _HOSTS_LINE.search(machine):
        return machine + "hosts: files dns\n"
    return _HOSTS_LINE.sub(r"\1 files dns", machine)


def files(name: str, namespace: str, addresses: Sequence[str], nsswitch: str) -> dict[str, str]:
    """File name in /etc -> text, for one pod.

    Args:
        nsswitch: The machine's ``/etc/nsswitch.conf``, "" if it has none.
    """
    made = {
        "resolv.conf": resolv_conf(namespace),
        "hosts": hosts(name, addresses),
        "hostname": f"{name}\n",
    }
    # Without the file the C library's default is the one we want.
    return {**made, "nsswitch.conf": nsswitch_conf(nsswitch)} if nsswitch else made
