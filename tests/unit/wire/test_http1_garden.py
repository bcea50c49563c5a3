"""The HTTP Garden's payloads: each is refused, or is exactly the requests that it must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ambient.wire.http1 import RequestParser
from ambient.wire.http1_heads import Refused, RequestHead

VECTORS = Path(__file__).parents[2] / "vectors" / "http-garden-payloads.json"
PAYLOADS = [
    (entry["payload_escaped"].encode().decode("unicode_escape").encode("latin-1"), entry["bug"])
    for entry in json.loads(VECTORS.read_text())
]
# The few that are valid HTTP/1.1 (or valid up to a point), with the requests that a correct reader sees.
UNAMBIGUOUS = {
    "`\\xa0` and `\\x85` are stripped from the beginnings": [b"/login"],
    "Connections are closed prematurely when an invalid": [],  # no Host here, so refused at once
    "Sending an extra byte after a request with a chunked": [b"/"],
    "Empty chunk-sizes are treated as though they were `0`": [b"/"],
}


@pytest.mark.parametrize(("payload", "bug"), PAYLOADS, ids=[f"{i:02}" for i in range(len(PAYLOADS))])
def test_payload_cannot_smuggle(payload: bytes, bug: str) -> None:
    """No payload becomes a request that another reader would not see, or hides one that it would."""
    events = RequestParser().receive_data(payload)

    heads = [event for event in events if isinstance(event, RequestHead)]
    refused = [event for event in events if isinstance(event, Refused)]
    known = next((targets for start, targets in UNAMBIGUOUS.items() if bug.startswith(start)), None)
    assert refused or known is not None, events
    assert len(heads) <= 1
    if known is not None:
        assert [head.target for head in heads] == known
    for head in heads:
        assert b"\x00" not in b"".join(name + value for name, value in head.headers)
