"""A network that loses one packet in twenty: every byte arrives, in order, on every stream."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import trio

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns
from ambient.wire import nft_encode
from ambient.wire.netlink import NETLINK_NETFILTER
from ambient.wire.nft import Base, Chain, Chance, Drop, Hook, Table
from tests.lab import Host, in_namespaces
from tests.netns.test_ztunnel_capture import connect
from tests.netns.test_ztunnel_exhaustion import scene

# Between the links and everything else, before connections are tracked (NF_IP_PRI_RAW is -300).
BEFORE_ALL = -350
LOSS = Table("loss", (Chain("lose", ((Chance(20), Drop()),), Base("filter", Hook.PREROUTING, BEFORE_ALL)),))
STREAMS, BYTES = 4, 1024 * 1024
# A packet lost at the end of a burst costs the kernel's least patience, 0.2 s; lost again, twice that.
PATIENCE_SECONDS = 120.0


def lose(netns: int) -> None:
    with NetlinkSocket(netns, NETLINK_NETFILTER) as nl:
        nl.transaction(nft_encode.create(LOSS))


def resent(host: Host) -> int:
    """Segments that TCP sent again in this namespace (RFC 4022 tcpRetransSegs)."""
    with in_netns(host.netns):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


async def transfer(client: Host, server: Host, seed: int) -> None:
    """Send random bytes, read them back at the same time, and compare."""
    data = random.Random(seed).randbytes(BYTES)
    got = hashlib.sha256()
    stream = await connect(client, server.ip, 8080)

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        count = 0
        async for piece in stream:
            got.update(piece)
            count += len(piece)
    assert (count, got.digest()) == (BYTES, hashlib.sha256(data).digest())


@in_namespaces
async def test_five_per_cent_loss_changes_no_byte(tmp_path: Path) -> None:
    """Both ways, through both ztunnels; what is lost is the kernel's to send again, never ours to skip."""
    async with scene(tmp_path) as it:
        for node in (it.near.node, it.far.node):
            lose(node.netns)
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for seed in range(STREAMS):
                    nursery.start_soon(transfer, it.client, it.server, seed)
        assert resent(it.client) + resent(it.server) > 0, "nothing was lost, so nothing was tested"
