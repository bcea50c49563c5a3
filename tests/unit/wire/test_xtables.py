"""Tables of the legacy iptables as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import RemoteProtocolError
from ambient.wire import xtables
from ambient.wire.netlink import AF_INET, AF_INET6

HEAD = 40
# Bytes of an entry before its counters, and where it says how long it is.
SHAPES = {AF_INET: (96, 90), AF_INET6: (152, 142)}


def entry(family: int, fill: int, counters: bytes, rest: bytes = b"") -> bytes:
    """An entry whose conditions are *fill*."""
    before, next_at = SHAPES[family]
    made = bytearray(bytes([fill]) * before + counters + rest)
    struct.pack_into("=H", made, next_at, len(made))
    return bytes(made)


@given(
    st.sampled_from([AF_INET, AF_INET6]),
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=5),
    st.binary(min_size=16, max_size=16),
)
def test_counters_do_not_count(family: int, rules: list[tuple[int, bytes]], counters: bytes) -> None:
    """Whatever was counted, the content is the same; whatever else differs, it is not."""
    counted = b"".join(entry(family, fill, counters, rest) for fill, rest in rules)
    fresh = b"".join(entry(family, fill, bytes(16), rest) for fill, rest in rules)

    assert xtables.content(bytes(HEAD) + counted, family) == fresh
    for at in range(0, len(fresh), 16):
        changed = bytearray(counted)
        changed[at] ^= 1
        try:
            same = xtables.content(bytes(HEAD) + bytes(changed), family) == fresh
        except RemoteProtocolError:
            continue  # The length itself was changed.
        assert not same or at % len(fresh) in _counted(family, rules)


def _counted(family: int, rules: list[tuple[int, bytes]]) -> set[int]:
    found: set[int] = set()
    start, (before, _) = 0, SHAPES[family]
    for _, rest in rules:
        found |= set(range(start + before, start + before + 16))
        start += before + 16 + len(rest)
    return found


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_an_entry_that_leads_nowhere_is_no_endless_loop(family: int) -> None:
    """The kernel is trusted, its answers are still read with care."""
    made = bytearray(entry(family, 1, bytes(16)))
    struct.pack_into("=H", made, SHAPES[family][1], 0)

    with pytest.raises(RemoteProtocolError, match="0 bytes"):
        xtables.content(bytes(HEAD) + bytes(made), family)
    with pytest.raises(RemoteProtocolError, match="an entry of 5 bytes"):
        xtables.content(bytes(HEAD + 5), family)


def test_a_size_is_read_from_its_place() -> None:
    """The last of the numbers, after that of the entries."""
    asked = xtables.ask_info(b"nat")
    assert (len(asked), asked[:4]) == (xtables.INFO_BYTES, b"nat\0")
    assert xtables.read_size(asked[:-8] + struct.pack("=II", 12, 3080)) == 3080
    assert len(xtables.ask_entries(b"nat", 3080)) == HEAD + 3080
