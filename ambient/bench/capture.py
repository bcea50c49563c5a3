"""Looks at the wire between the nodes: how much, and is any of it readable.

Floor 5; run in the mesh's outer network namespace as ``python -m ambient.bench.capture``.

Theory of operation
===================

A packet socket with a TPACKET_V3 ring on every node link. The kernel writes whole blocks of frames into
shared memory; one ``count`` over a block looks for the marker in all its frames at once, and one walk over
the block's headers adds up their lengths. A ``recv`` per packet would cost more CPU than some of the proxies
it watches. Three facts make it a proof rather than an impression: what the ring dropped (PACKET_STATISTICS),
whether its bytes agree with the links' own counters, and that the same capture shows the marker in mode
``none``. Frames pass each link once, so a frame from node to node is seen twice, outgoing and incoming.

    harness                                this program
                                   <--     {"event": "ready"}
      "stop\\n" or end of file      -->
                                   <--     {"event": "result", ...}

Source: packet(7), linux/if_packet.h, Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

import json
import mmap
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_TPACKET_V3 = 2
_STATUS_USER = 1
_ETH_P_ALL = 0x0003
# block_status, num_pkts, offset_to_first_pkt, blk_len of tpacket_hdr_v1, behind version and offset_to_priv.
_BLOCK = struct.Struct("=8xIIII")
# tp_next_offset, (sec, nsec), tp_snaplen, tp_len of tpacket3_hdr.
_FRAME = struct.Struct("=I8xII")
_STATISTICS = struct.Struct("=III")

# A GSO frame reaches 65,226 bytes (reference/redirection.md 6), so a block holds at least eight; 8 MiB a link
# is a second of 500 Mbit/s. Picked, not measured.
BLOCK_BYTES = 1 << 19
BLOCKS = 16
# How long a block may stay half full before the kernel hands it over.
RETIRE_MS = 20

# The plain words of any HTTP/1.1 exchange: by chance in 2^-64 of positions of a ciphertext.
_PLAINTEXT = b"HTTP/1.1"
# A TLS record that starts with a ClientHello: record 3.1, handshake 1, length below 64 KiB, version 3.3.
_CLIENT_HELLO = re.compile(rb"\x16\x03\x01..\x01\x00..\x03\x03", re.DOTALL)


@dataclass(slots=True)
class Seen:
    """What one ring has shown so far."""

    packets: int = 0
    size: int = 0
    markers: int = 0
    plaintext: int = 0
    hellos: int = 0


class Ring:
    """One link's packet ring; close it."""

    def __init__(self, link: str, marker: bytes) -> None:
        self.seen = Seen()
        self._marker = marker
        self._next = 0
        # Protocol 0 receives nothing until bind: no frame of another link slips in.
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        request = struct.pack("=7I", BLOCK_BYTES, BLOCKS, BLOCK_BYTES, BLOCKS, RETIRE_MS, 0, 0)
        self.sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        self._ring = mmap.mmap(self.sock.fileno(), BLOCK_BYTES * BLOCKS)
        self.sock.bind((link, _ETH_P_ALL))

    def close(self) -> None:
        """Give the memory back."""
        self._ring.close()
        self.sock.close()

    def dropped(self) -> int:
        """Frames the ring had no room for since the last call; the kernel forgets them on reading."""
        _packets, drops, _freezes = _STATISTICS.unpack(
            self.sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        )
        return int(drops)

    def read(self) -> bool:
        """Take every block the kernel has handed over; return whether there was one."""
        took = False
        while True:
            start = self._next * BLOCK_BYTES
            status, frames, first, length = _BLOCK.unpack_from(self._ring, start)
            if not status & _STATUS_USER:
                return took
            self._take(self._ring[start : start + length], frames, first)
            # Hands the block back; the status word is the third of the block.
            struct.pack_into("=I", self._ring, start + 8, 0)
            self._next = (self._next + 1) % BLOCKS
            took = True

    def _take(self, block: bytes, frames: int, at: int) -> None:
        seen = self.seen
        for _ in range(frames):
            step, _captured, size = _FRAME.unpack_from(block, at)
            seen.size += size
            at += step
        seen.packets += frames
        seen.markers += block.count(self._marker) if self._marker else 0
        seen.plaintext += block.count(_PLAINTEXT)
        seen.hellos += sum(1 for _ in _CLIENT_HELLO.finditer(block))


def link_bytes(text: str, links: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Received and sent bytes of *links*, from the text of /proc/net/dev."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name.strip() in links:
            found[name.strip()] = (int(fields[0]), int(fields[8]))
    return found


def read_links(links: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The counters now, of this thread's network namespace."""
    return link_bytes(Path("/proc/thread-self/net/dev").read_text(), links)


def total(counters: dict[str, tuple[int, int]]) -> int:
    """Both directions of every link."""
    return sum(received + sent for received, sent in counters.values())


def watch(rings: Sequence[Ring], stop_fd: int) -> None:
    """Read the rings until *stop_fd* becomes readable."""
    poll = select.poll()
    poll.register(stop_fd, select.POLLIN | select.POLLHUP)
    by_fd = {ring.sock.fileno(): ring for ring in rings}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _events in poll.poll():
            if fd == stop_fd:
                return
            by_fd[fd].read()


def drain(rings: Sequence[Ring]) -> None:
    """Read on until every block that may hold a frame from before now was handed over."""
    end = time.monotonic() + 3 * RETIRE_MS / 1000
    while time.monotonic() < end:
        if not sum(ring.read() for ring in rings):
            time.sleep(RETIRE_MS / 4000)


def capture(links: Sequence[str], marker: str, stop_fd: int, ready: Any) -> dict[str, Any]:
    """Watch *links* from *ready* to stop, and return what was seen.

    The counters are read before and after each end of the capture: what was captured must lie between the
    two spans, exactly, with no tolerance to argue about.
    """
    outer_before = read_links(links)
    rings = [Ring(link, marker.encode()) for link in links]
    try:
        inner_before = read_links(links)
        ready()
        watch(rings, stop_fd)
        inner_after = read_links(links)
        drain(rings)
        outer_after = read_links(links)
        return {
            "packets": sum(ring.seen.packets for ring in rings),
            "dropped": sum(ring.dropped() for ring in rings),
            "captured_bytes": sum(ring.seen.size for ring in rings),
            "link_bytes_low": total(inner_after) - total(inner_before),
            "link_bytes_high": total(outer_after) - total(outer_before),
            "markers": sum(ring.seen.markers for ring in rings),
            "plaintext": sum(ring.seen.plaintext for ring in rings),
            "hellos": sum(ring.seen.hellos for ring in rings),
            # Incoming only: each frame between nodes comes in on exactly one link.
            "wire_bytes": sum(inner_after[link][0] - inner_before[link][0] for link in links),
        }
    finally:
        for ring in rings:
            ring.close()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m ambient.bench.capture")
    parser.add_argument("--links", required=True, help="comma separated")
    parser.add_argument("--marker", default="")
    args = parser.parse_args(argv)
    try:
        found = capture(
            args.links.split(","), args.marker, sys.stdin.fileno(), lambda: _say({"event": "ready"})
        )
    except OSError as exc:
        print(f"Error: cannot capture on {args.links}: {exc.strerror or exc}", file=sys.stderr)
        return 1
    _say({"event": "result", **found})
    return 0


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    sys.exit(main())
