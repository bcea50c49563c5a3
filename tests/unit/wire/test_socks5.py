"""SOCKS5's handshake, read to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import LocalProtocolError
from ambient.wire.socks5 import Refused, Reply, ServerHandshake, reply

GREETING = b"\x05\x01\x00"


def run(data: bytes, step: int = 1000) -> tuple[tuple[str, int] | None, bytes, bytes]:
    handshake, sent = ServerHandshake(), b""
    while handshake.target is None and data:
        size = min(step, handshake.needs)
        piece, data = data[:size], data[size:]
        sent += handshake.receive_data(piece)
    return handshake.target, sent, data


@pytest.mark.parametrize(
    ("request_", "target"),
    [
        (b"\x05\x01\x00\x01\x0a\x60\x00\x07\x00\x50", ("10.96.0.7", 80)),
        (b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x01\xbb", ("::1", 443)),
        (b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\x0a\x00\x00\x01\x01\xbb", ("10.0.0.1", 443)),
        (b"\x05\x01\x00\x03\x08API.Shop\x00\x50", ("api.shop", 80)),
    ],
    ids=["v4", "v6", "mapped", "name"],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_target_of_each_kind(request_: bytes, target: tuple[str, int], step: int) -> None:
    """In pieces of any size; what follows is not touched."""
    assert run(GREETING + request_ + b"GET /", step) == (target, b"\x05\x00", b"GET /")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\x04\x01", b""),
        (b"GE", b""),
        (b"\x05\x00", b""),
        (b"\x05\x01\x02", b"\x05\xff"),
        (GREETING + b"\x05\x02\x00\x01\x01", reply(Reply.COMMAND_NOT_SUPPORTED)),
        (GREETING + b"\x05\x03\x00\x01\x01", reply(Reply.COMMAND_NOT_SUPPORTED)),
        (GREETING + b"\x04\x01\x00\x01\x01", b""),
        (GREETING + b"\x05\x01\x00\x02\x01", reply(Reply.ADDRESS_NOT_SUPPORTED)),
        (GREETING + b"\x05\x01\x00\x03\x00", reply(Reply.ADDRESS_NOT_SUPPORTED)),
        (GREETING + b"\x05\x01\x00\x03\x03a\n\x00\x00\x50", reply(Reply.ADDRESS_NOT_SUPPORTED)),
        (GREETING + b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x00", reply(Reply.NOT_ALLOWED)),
    ],
)
def test_what_is_not_to_be_had_is_said_in_socks(data: bytes, answer: bytes) -> None:
    """SOCKS4, HTTP, authentication, BIND, UDP, odd addresses."""
    with pytest.raises(Refused) as caught:
        run(data)
    assert caught.value.answer == answer


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_do_anything_else(data: bytes, step: int) -> None:
    """Law: a target, a refusal, or more is needed; and never more than a name may be long."""
    handshake = ServerHandshake()
    try:
        while handshake.target is None and data:
            assert 0 < handshake.needs <= 257
            size = min(step, handshake.needs)
            piece, data = data[:size], data[size:]
            handshake.receive_data(piece)
    except Refused:
        pass


def test_reading_further_than_asked_is_our_own_fault() -> None:
    """Those bytes would be lost to the connection."""
    with pytest.raises(LocalProtocolError):
        ServerHandshake().receive_data(b"\x05\x01\x00")
