"""Where responses end, however their bytes arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.bench.response import MAX_HEAD_BYTES, ResponseReader
from ambient.errors import RemoteProtocolError

LENGTH = b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKS = b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
CHUNKS += b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n"


@given(
    st.lists(st.sampled_from([LENGTH, CHUNKS, EMPTY]), min_size=1, max_size=4),
    st.lists(st.integers(min_value=1, max_value=40), min_size=1),
)
def test_the_split_does_not_matter(responses: list[bytes], sizes: list[int]) -> None:
    """TCP keeps order, not message edges."""
    reader = ResponseReader()
    found = []
    for response in responses:
        rest, turn = response, 0
        while rest:
            size = sizes[turn % len(sizes)]
            if reader.feed(rest[:size]):
                found.append((reader.status, reader.body_bytes, reader.keep_alive))
            rest, turn = rest[size:], turn + 1

    meant = {LENGTH: (200, 11, True), CHUNKS: (404, 11, False), EMPTY: (204, 0, True)}
    assert found == [meant[response] for response in responses]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0", "not an HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not an HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "neither length nor chunks"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not a length"),
        (EMPTY + b"more", "after the end"),
        (LENGTH + b"more", "after the end"),
        (CHUNKS + b"more", "after the end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "not a chunk size"),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * MAX_HEAD_BYTES, "head over"),
    ],
)
def test_what_is_no_good_response_is_refused(data: bytes, message: str) -> None:
    """A proxy that garbles answers must not count as fast."""
    with pytest.raises(RemoteProtocolError, match=message):
        ResponseReader().feed(data)


def test_too_much_body_in_a_later_read_is_refused() -> None:
    """The quick path counts, too."""
    reader = ResponseReader()
    assert not reader.feed(LENGTH[:-5])
    with pytest.raises(RemoteProtocolError, match="after the end"):
        reader.feed(b"world!")
