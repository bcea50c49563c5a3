"""The capture sees what crosses between nodes, all of it, and tells plaintext from a handshake."""

from __future__ import annotations

import os
import ssl
import threading
from contextlib import suppress

import pytest

from ambient.bench import capture
from tests.lab import Lab, in_namespaces

MARKER = "0123456789abcdef0123456789abcdef"
LINKS = ("n1", "n2")


def exchange(lab: Lab, request: bytes, times: int = 1) -> None:
    """Send *request* from a pod of node 1 to one of node 2 and back, each time on a new connection."""
    client, server = lab.pod("client", 1), lab.pod("server", 2)
    with server.listen(8000) as listener:
        for _ in range(times):
            with client.connect(server.ip, 8000) as near:
                far, _ = listener.accept()
                with far:
                    near.sendall(request)
                    far.sendall(far.recv(65536))
                    assert near.recv(65536)


def watched(lab: Lab, request: bytes, times: int = 1) -> dict[str, int]:
    """What the capture says about such exchanges."""
    reader, writer = os.pipe()
    for number in (1, 2):
        lab.node(number)
    ready = threading.Event()
    found: list[dict[str, int]] = []
    watcher = threading.Thread(target=lambda: found.append(capture.capture(LINKS, MARKER, reader, ready.set)))
    watcher.start()
    try:
        assert ready.wait(10)
        exchange(lab, request, times)
    finally:
        os.close(writer)
        watcher.join()
        os.close(reader)
    return found[0]


@in_namespaces
def test_plaintext_is_seen_on_both_links() -> None:
    """Twenty requests and their echoes, each marker on two links; every byte accounted for."""
    found = watched(Lab(), f"GET / HTTP/1.1\r\nX-Ambient-Marker: {MARKER}\r\n\r\n".encode(), 20)

    assert found["markers"] == found["plaintext"] == 20 * 2 * 2
    assert found["dropped"] == 0
    assert found["link_bytes_low"] <= found["captured_bytes"] <= found["link_bytes_high"]
    # Nothing else moved when it ended: the bounds meet, and the proof has no slack.
    assert found["captured_bytes"] == pytest.approx(2 * found["wire_bytes"], rel=0.2)


@in_namespaces(rootless=True)
def test_an_ordinary_user_can_look_too() -> None:
    """AF_PACKET rings work inside a user namespace."""
    found = watched(Lab(), MARKER.encode())

    assert found["markers"] == 4
    assert found["plaintext"] == 0


@in_namespaces
def test_a_client_hello_is_a_handshake() -> None:
    """Counted once per link; random-looking bytes are not."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="x")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    found = watched(Lab(), outgoing.read())

    # The echo sends it back: two frames, each on two links.
    assert found["hellos"] == 4
    assert found["markers"] == found["plaintext"] == 0


def test_the_counters_of_other_links_are_not_counted() -> None:
    """Only the links between nodes."""
    text = (
        "Inter-|   Receive                |  Transmit\n face |bytes packets\n"
        "    lo: 7 0 0 0 0 0 0 0 7 0 0 0 0 0 0 0\n  n1: 10 1 0 0 0 0 0 0 20 2 0 0 0 0 0 0\n"
    )

    assert capture.link_bytes(text, LINKS) == {"n1": (10, 20)}
    assert capture.total({"n1": (10, 20), "n2": (1, 2)}) == 33


def test_a_link_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The harness shows it to a person."""
    assert capture.main(["--links", "nosuchlink"]) == 1

    assert capsys.readouterr().err.startswith("Error: cannot capture on nosuchlink: ")
