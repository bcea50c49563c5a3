"""DER: one value has one form, and every other form is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.pki import der
from ambient.pki.der import Reader, encode, read_integer, read_true


@given(st.binary(max_size=70_000))
def test_what_was_encoded_is_read(content: bytes) -> None:
    """With lengths of one to three bytes."""
    value = encode(der.OCTET_STRING, content)
    reader = Reader(value * 2)

    assert reader.peek() == der.OCTET_STRING
    assert reader.take(der.OCTET_STRING) == content
    assert reader.take_whole(der.OCTET_STRING) == value
    assert reader.peek() == -1
    reader.end()


@given(st.integers(-(2**160), 2**160))
def test_integers_have_a_sign(number: int) -> None:
    """A serial number of twenty bytes is the largest that is meant to be read."""
    content = number.to_bytes(
        max(1, (number if number >= 0 else ~number).bit_length() // 8 + 1), "big", signed=True
    )

    assert read_integer(content) == number


def test_what_is_not_there_is_not_taken() -> None:
    """An optional value of another tag stays where it is."""
    reader = Reader(encode(der.INTEGER, b"\1"))

    assert reader.take_if(der.BOOLEAN) is None
    assert reader.inside(der.INTEGER).peek() == 1
    assert reader.take_if(der.INTEGER) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04",
        b"\x04\x02x",
        b"\x30\x00",
        b"\x04\x80x\x00\x00",
        b"\x04\x81\x01x",
        b"\x04\x82\x00\x81" + bytes(129),
        b"\x04\x84\x00\x00\x00\x01x",
        b"\x04\x82\x01",
        b"\x04\x81",
    ],
    ids=[
        "empty", "tag-only", "short", "other-tag", "indefinite", "long-form-of-one", "leading-zero",
        "four-bytes-of-length", "half-a-length", "no-length",
    ],
)  # fmt: skip
def test_other_forms_are_refused(data: bytes) -> None:
    """BER allows some of them."""
    with pytest.raises(ValueError, match=r"."):
        Reader(data).take(der.OCTET_STRING)


def test_tags_of_two_bytes_are_refused() -> None:
    """Nothing of ours has one."""
    with pytest.raises(ValueError, match="tag"):
        Reader(b"\x1f\x01\x01x").take(0x1F)


def test_nothing_may_be_left_over() -> None:
    """Bytes that nobody reads may be read by somebody else."""
    with pytest.raises(ValueError, match="more than"):
        Reader(b"\0").end()


@pytest.mark.parametrize("content", [b"", b"\0\1", b"\xff\x80"], ids=["empty", "zeros", "ones"])
def test_integers_are_in_their_shortest_form(content: bytes) -> None:
    """X.690 8.3.2."""
    with pytest.raises(ValueError, match="integer"):
        read_integer(content)


def test_a_default_is_not_written() -> None:
    """X.690 11.5; and TRUE is 0xFF (11.1)."""
    assert (read_true(None), read_true(b"\xff")) == (False, True)
    for content in (b"\0", b"\1", b"", b"\xff\xff"):
        with pytest.raises(ValueError, match="boolean"):
            read_true(content)
