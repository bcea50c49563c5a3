"""DER (X.690), as much of it as certificates need: strict, so that nothing can be read in two ways.

Floor 1: bytes and values. Only definite lengths in their shortest form, tags of one byte, and nothing left
over; ``ValueError`` says what is wrong.

Source: ITU-T X.690 sections 8 and 10.
"""

from __future__ import annotations

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, OID = 0x01, 0x02, 0x03, 0x04, 0x06
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31
# [0], [1] and [3] around other values (EXPLICIT).
CONTEXT_0, CONTEXT_1, CONTEXT_3 = 0xA0, 0xA1, 0xA3

_LONG, _HIGH_TAG = 0x80, 0x1F
# A length of up to 16 MiB; nothing here comes near.
_LENGTH_BYTES = 3


class Reader:
    """The values inside one other, in their order."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def peek(self) -> int:
        """The next tag; -1 at the end."""
        return self._data[self._at] if self._at < len(self._data) else -1

    def take(self, tag: int) -> bytes:
        """What is in the next value, which must have this tag."""
        start, end = self._step(tag)
        return self._data[start:end]

    def take_whole(self, tag: int) -> bytes:
        """The next value with its header."""
        begin = self._at
        return self._data[begin : self._step(tag)[1]]

    def take_if(self, tag: int) -> bytes | None:
        """What is in the next value if it has this tag; None, and the value stays, if not."""
        return self.take(tag) if self.peek() == tag else None

    def inside(self, tag: int) -> Reader:
        """Read what is in the next value."""
        return Reader(self.take(tag))

    def end(self) -> None:
        """Raise if something is left."""
        if self._at != len(self._data):
            raise ValueError("more than there should be")

    def _step(self, tag: int) -> tuple[int, int]:
        data, at = self._data, self._at
        if len(data) - at < 2:
            raise ValueError("ends too early")
        if data[at] != tag or tag & _HIGH_TAG == _HIGH_TAG:
            raise ValueError(f"tag {data[at]:#04x}, expected {tag:#04x}")
        size, start = data[at + 1], at + 2
        if size >= _LONG:
            count = size - _LONG
            size = int.from_bytes(data[start : start + count], "big")
            start += count
            if not 1 <= count <= _LENGTH_BYTES or size < _LONG or size >> 8 * (count - 1) == 0:
                raise ValueError("a length that is not in its shortest form")
        end = start + size
        if end > len(data):
            raise ValueError("ends too early")
        self._at = end
        return start, end


def encode(tag: int, *contents: bytes) -> bytes:
    """One value around others."""
    content = b"".join(contents)
    size = len(content)
    if size < _LONG:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG + len(length))) + length + content


def read_integer(content: bytes) -> int:
    """The number in an INTEGER."""
    if not content or (len(content) > 1 and (content[0], content[1] >> 7) in ((0, 0), (0xFF, 1))):
        raise ValueError("an integer that is not in its shortest form")
    return int.from_bytes(content, "big", signed=True)


def read_true(content: bytes | None) -> bool:
    """A BOOLEAN whose default is FALSE: so it is absent (None), or it is TRUE."""
    if content not in (None, b"\xff"):
        raise ValueError("a boolean that is neither absent nor TRUE")
    return content is not None
