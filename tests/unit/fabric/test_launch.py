"""What the supervisor asks of init."""

from __future__ import annotations

import json

from ambient.fabric.launch import Launch, Pause, decode_launch, decode_pause, encode


def test_a_request_comes_back_as_it_was_sent() -> None:
    """Init is another process with another memory."""
    request = Launch(argv=("a", "b"), env={"X": "1"}, log="/l", pod=7, netns=True, fd_names=("F",))

    assert decode_launch(json.loads(encode("launch", 3, request))) == request


def test_a_pause_comes_back_as_it_was_sent() -> None:
    """As above."""
    request = Pause(hostname="web", etc="/e", hidden="/h", sysctls={"a/b": "1"})

    assert decode_pause(json.loads(encode("pause", 3, request))) == request
