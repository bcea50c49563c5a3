"""Asking a container whether it is well: the requests behind the probes.

They come from the node, from the address that every pod's rules exempt, so that a captured pod
answers its own probes as it did before.
"""

from __future__ import annotations

import ssl
from socket import AF_INET, AF_INET6

import trio

from ambient.engine.netns import socket_in
from ambient.fabric.wiring_plan import PROBE_SOURCE, PROBE_SOURCE_V6
from ambient.model.podspec import Probe, ProbeKind

# Kubernetes: "any code greater than or equal to 200 and less than 400 indicates success".
GOOD_STATUSES = range(200, 400)
# A status line is all we read; picked, not measured.
MAX_STATUS_LINE_BYTES = 4096


async def ask(probe: Probe, netns: int | None, address: str, *, from_node: bool = True) -> bool:
    """Whether an HTTP or TCP probe succeeds within its timeout.

    Args:
        netns: Where to ask from: the node's network namespace, None for our own.
        address: The pod's.
        from_node: Whether to use the probes' source address, which is the node's.
    """
    with trio.move_on_after(probe.timeout):
        try:
            stream = await _connect(netns, address, probe.port, from_node=from_node and netns is not None)
            async with stream:
                return probe.kind is ProbeKind.TCP or await _get(stream, probe, address)
        except (OSError, trio.BrokenResourceError, ssl.SSLError):
            return False
    return False


async def is_listening(netns: int, address: str, port: int, timeout: float = 1.0) -> bool:
    """Whether something accepts connections at *address* inside *netns* itself."""
    probe = Probe(kind=ProbeKind.TCP, port=port, timeout=timeout)
    return await ask(probe, netns, address, from_node=False)


async def _connect(netns: int | None, address: str, port: int, *, from_node: bool) -> trio.SocketStream:
    family = AF_INET6 if ":" in address else AF_INET
    sock = trio.socket.from_stdlib_socket(socket_in(netns, family))
    try:
        if from_node:
            await sock.bind((PROBE_SOURCE_V6 if family == AF_INET6 else PROBE_SOURCE, 0))
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def _get(raw: trio.SocketStream, probe: Probe, address: str) -> bool:
    stream: trio.abc.Stream = raw
    if probe.scheme == "https":
        stream = trio.SSLStream(raw, _anybody(), https_compatible=True)
    await stream.send_all(request(probe, address))
    line = b""
    while b"\r\n" not in line and len(line) < MAX_STATUS_LINE_BYTES:
        piece = await stream.receive_some()
        if not piece:
            return False
        line += bytes(piece)
    return is_good(line)


def _anybody() -> ssl.SSLContext:
    """Kubelet does not verify certificates in probes either."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def request(probe: Probe, address: str) -> bytes:
    """The bytes of an HTTP probe."""
    host = f"[{address}]:{probe.port}" if ":" in address else f"{address}:{probe.port}"
    headers = {"Host": host, "User-Agent": "kube-probe/ambient", "Accept": "*/*", "Connection": "close"}
    for name, value in probe.headers:
        headers[name.title()] = value
    head = [f"GET {probe.path or '/'} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(head) + "\r\n\r\n").encode()


def is_good(line: bytes) -> bool:
    """Whether the status line at the start of *line* means success."""
    words = line.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return False
    return int(words[1]) in GOOD_STATUSES
