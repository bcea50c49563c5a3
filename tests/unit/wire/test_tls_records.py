"""Ends of TLS records, however the bytes are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ambient.wire.tls_records import HEADER_BYTES, MAX_FRAGMENT_BYTES, RecordEnds

LENGTHS = st.lists(st.integers(0, 40) | st.integers(MAX_FRAGMENT_BYTES - 2, MAX_FRAGMENT_BYTES), max_size=6)


def record(length: int) -> bytes:
    # A fragment that looks like headers, so that looking at the wrong place shows.
    return b"\x17\x03\x03" + length.to_bytes(2, "big") + (b"\x17\x03\x03\x00\x01" * length)[:length]


@given(LENGTHS, st.lists(st.integers(1, 20_000), max_size=12))
def test_however_the_bytes_are_cut(lengths: list[int], cuts: list[int]) -> None:
    """After every piece it is known how much of the last record is there."""
    stream = b"".join(map(record, lengths))
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + HEADER_BYTES + length)
    follows, position = RecordEnds(), 0
    for cut in [*cuts, *[3] * 4, len(stream)]:
        piece = stream[position : position + cut]
        position += len(piece)
        follows.take(memoryview(piece))

        assert follows.unfinished == position - max(end for end in ends if end <= position)


def test_a_record_that_is_too_long_is_for_the_session_to_judge() -> None:
    """Held back it would wait for bytes that need not come."""
    follows = RecordEnds()
    follows.take(memoryview(record(7) + record(MAX_FRAGMENT_BYTES + 1)[:100]))

    assert follows.unfinished == 0
