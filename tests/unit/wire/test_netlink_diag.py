"""Socket diagnosis: states asked for, names read, one socket named for its end."""

from __future__ import annotations

import struct

import pytest

from ambient.errors import RemoteProtocolError
from ambient.wire import netlink_diag
from ambient.wire.netlink import AF_INET, AF_INET6, Message
from ambient.wire.netlink_diag import ESTABLISHED, LISTEN

V4 = bytes((10, 0, 0, 1)) + bytes(12)
MAPPED = bytes(10) + b"\xff\xff" + bytes((10, 0, 0, 2))
V6 = bytes.fromhex("fd00") + bytes(13) + b"\x05"


def message(family: int, local: bytes, remote: bytes) -> Message:
    name = struct.pack("!HH16s16s", 80, 4242, local, remote) + struct.pack("=III", 3, 17, 4)
    return Message(
        20,
        0,
        1,
        struct.pack("=BBBB", family, ESTABLISHED, 0, 0) + name + struct.pack("=IIIII", 0, 1, 2, 1000, 55),
    )


@pytest.mark.parametrize(
    ("family", "local", "remote", "texts"),
    [
        (AF_INET, V4, V4, ("10.0.0.1", "10.0.0.1")),
        (AF_INET6, V6, V6, ("fd00::5", "fd00::5")),
        (AF_INET6, MAPPED, MAPPED, ("10.0.0.2", "10.0.0.2")),
    ],
    ids=["v4", "v6", "mapped"],
)
def test_a_socket_is_read(family: int, local: bytes, remote: bytes, texts: tuple[str, str]) -> None:
    """Addresses as the rest of the mesh writes them."""
    found = netlink_diag.decode_socket(message(family, local, remote))

    assert (found.local, found.remote) == texts
    assert (found.local_port, found.remote_port, found.uid, found.inode) == (80, 4242, 1000, 55)
    assert found.cookie == (17, 4)


def test_the_end_of_a_socket_names_it_exactly() -> None:
    """Cookie and all: never the next one of the same ports."""
    found = netlink_diag.decode_socket(message(AF_INET, V4, V4))

    request = netlink_diag.destroy(found)

    assert request.kind == netlink_diag.SOCK_DESTROY
    assert found.raw_name in request.body
    assert "10.0.0.1:80" in request.what


def test_states_are_a_mask() -> None:
    """Bit 1 is ESTABLISHED, bit 10 LISTEN; of any family, behind an empty name."""
    body = netlink_diag.dump_tcp(ESTABLISHED, LISTEN).body

    assert struct.unpack("=B3x48xII", body) == (0, (1 << 1) | (1 << 10), 0)


def test_a_short_answer_is_refused() -> None:
    """Not read past its end."""
    with pytest.raises(RemoteProtocolError):
        netlink_diag.decode_socket(Message(20, 0, 1, bytes(20)))
