"""The generation of a namespace's rules: a number that grows with every change, and the news of one.

Floor 1: sans-IO. Asking for the number costs microseconds, whatever stands there; only when it has moved
need the rules be read.

Source: Linux ``nf_tables.h`` (NFT_MSG_GETGEN), ``nfnetlink.h`` (NFNLGRP_NFTABLES), ``rtnetlink.h``.
"""

from __future__ import annotations

import struct

from ambient.wire.netlink import Request

NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 10 << 8 | 15, 10 << 8 | 16
# Multicast groups: changes of nf_tables; changes of routing rules and routes, by family.
NFNLGRP_NFTABLES = 7
RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE = 7, 8, 11, 19
ROUTING_GROUPS = (RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE)


def ask_generation() -> Request:
    """Ask for the number; answered by one message, without an acknowledgement."""
    return Request(NFT_MSG_GETGEN, struct.pack("!BBH", 0, 0, 0), "read the generation of the rules", 0)
