"""The requests behind the probes."""

from __future__ import annotations

import pytest

from ambient.fabric import probes
from ambient.model.podspec import Probe, ProbeKind


@pytest.mark.parametrize(
    ("line", "good"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.0 301 Moved\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\n", False),
        (b"HTTP/1.1 503\r\n", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"", False),
    ],
)
def test_kubernetes_idea_of_success(line: bytes, good: bool) -> None:
    """200 to 399; whatever is not HTTP has failed."""
    assert probes.is_good(line) is good


def test_the_manifests_headers_win() -> None:
    """A server behind a virtual host needs its Host."""
    probe = Probe(kind=ProbeKind.HTTP, port=80, path="/ok", headers=(("host", "web.example"),))

    request = probes.request(probe, "10.244.1.2")

    assert request.startswith(b"GET /ok HTTP/1.1\r\n")
    assert request.count(b"Host: ") == 1
    assert b"Host: web.example\r\n" in request
