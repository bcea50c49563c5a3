"""Reading header blocks that change no compression state, in a fraction of the general decoder's time.

Floor 1. HBONE peers of our own make send only literals without indexing and names of the static table
(``hbone_headers.encode_request``); such a block means the same whatever came before it, so it can be read
without the decoder that keeps the table. Anything else is the decoder's: ``read_literals`` then says so.

Source: RFC 7541 sections 5.1, 5.2, 6.1 and 6.2, appendix A.
"""

from __future__ import annotations

RawHeaders = list[tuple[bytes, bytes]]

# The static table's names from index 1 on, and the values of those that have one.
_NAMES = """
    :authority :method :method :path :path :scheme :scheme :status :status :status :status :status
    :status :status accept-charset accept-encoding accept-language accept-ranges accept
    access-control-allow-origin age allow authorization cache-control content-disposition
    content-encoding content-language content-length content-location content-range content-type cookie
    date etag expect expires from host if-match if-modified-since if-none-match if-range
    if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization
    range referer refresh retry-after server set-cookie strict-transport-security transfer-encoding
    user-agent vary via www-authenticate
"""
_VALUES = {
    2: "GET",
    3: "POST",
    4: "/",
    5: "/index.html",
    6: "http",
    7: "https",
    **dict(zip(range(8, 15), ("200", "204", "206", "304", "400", "404", "500"), strict=True)),
    16: "gzip, deflate",
}
_STATIC: tuple[tuple[bytes, bytes], ...] = tuple(
    (name.encode(), _VALUES.get(index, "").encode()) for index, name in enumerate(_NAMES.split(), 1)
)
# A block of ours has six; more is not the usual case.
MAX_FIELDS = 16
# With those of a byte each: a list of 16 KiB, in which each counts 32 bytes at least, has no more.
MAX_ALL_FIELDS = 512


def read_literals(block: bytes, ends: list[int] | None = None) -> RawHeaders | None:
    """The fields of *block*, or None if it needs the decoder (which may then find it broken).

    Args:
        ends: Takes where each of them ends.
    """
    found: RawHeaders = []
    position, end = 0, len(block)
    while position < end:
        first = block[position]
        position += 1
        if first & 0x80:  # 6.1: indexed.
            if not 0x81 <= first <= 0xBD or len(found) >= MAX_ALL_FIELDS:
                return None
            found.append(_STATIC[first - 0x81])
            if ends is not None:
                ends.append(position)
            continue
        # 6.2.2 and 6.2.3 are 000xxxxx: with or without "never indexed", which means nothing to a reader.
        if first & 0xE0 or len(found) >= MAX_FIELDS:
            return None
        index = first & 0x0F
        if index == 0x0F:
            return None
        if index:
            name = _STATIC[index - 1][0]
        else:
            # Nearly every string is short and whole: no call for it.
            stop = position + 1 + block[position] if position < end else end + 1
            if stop <= end and block[position] < 0x7F:
                name, position = block[position + 1 : stop], stop
            else:
                read = _string(block, position, end)
                if read is None:
                    return None
                name, position = read
        stop = position + 1 + block[position] if position < end else end + 1
        if stop <= end and block[position] < 0x7F:
            value, position = block[position + 1 : stop], stop
        else:
            read = _string(block, position, end)
            if read is None:
                return None
            value, position = read
        found.append((name, value))
        if ends is not None:
            ends.append(position)
    return found


def _string(block: bytes, position: int, end: int) -> tuple[bytes, int] | None:
    """A string literal without Huffman coding and its end."""
    if position >= end:
        return None
    size = block[position]
    position += 1
    if size >= 0x7F:
        # Huffman coded, or a length that continues: one more byte is enough for 254 bytes.
        if size != 0x7F or position >= end or block[position] & 0x80:
            return None
        size = 0x7F + block[position]
        position += 1
    stop = position + size
    return (block[position:stop], stop) if stop <= end else None
