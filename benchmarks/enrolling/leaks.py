"""What a mesh holds, as the kernel tells it: descriptors, rules, routes, namespaces. Not our own counters."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from ambient.engine.netlink import NetlinkSocket
from ambient.wire import nft_encode
from ambient.wire.netlink import NETLINK_NETFILTER, NLM_F_DUMP, Request

# linux/rtnetlink.h and nf_tables.h; dumps of everything, which the product never asks for.
RTM_GETROUTE, RTM_GETRULE = 26, 34
NFT_MSG_GETTABLE = 10 << 8 | 1
AF_INET, AF_INET6 = 2, 10


def holdings(pids: Iterable[int], namespaces: Iterable[int]) -> Counter[str]:
    """Everything that could be left behind, by kind and by whom.

    Args:
        pids: The daemons.
        namespaces: Descriptors of the pods' network namespaces.
    """
    found: Counter[str] = Counter()
    seen: set[str] = set()
    for role, pid in enumerate(pids):
        for target in _descriptors(pid):
            found[f"fd of daemon {role}: {re.sub(r'[0-9]+', 'N', target)}"] += 1
            if target.startswith("net:"):
                seen.add(target)
    found["namespaces held by daemons"] = len(seen)
    for number, netns in enumerate(namespaces):
        for what, count in _kernel(netns).items():
            found[f"pod {number}: {what}"] += count
    return found


def leaked(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """What is there now and was not before."""
    return dict(after - before)


def _descriptors(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # Closed while we look.
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def _kernel(netns: int) -> Counter[str]:
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        tables = len(nl.dump(Request(NFT_MSG_GETTABLE, bytes(4), "list tables", NLM_F_DUMP)))
        chains = len(nl.dump(nft_encode.dump_chains()))
    with NetlinkSocket(netns) as nl:
        rules = sum(len(nl.dump(_all(RTM_GETRULE, family))) for family in (AF_INET, AF_INET6))
        routes = sum(len(nl.dump(_all(RTM_GETROUTE, family))) for family in (AF_INET, AF_INET6))
    return Counter({"nft tables": tables, "nft chains": chains, "ip rules": rules, "routes": routes})


def _all(kind: int, family: int) -> Request:
    return Request(kind, bytes([family]) + bytes(11), "list", NLM_F_DUMP)
