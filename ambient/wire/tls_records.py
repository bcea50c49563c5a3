"""Where TLS records end in a stream of bytes.

Floor 1: sans-IO. Reading from a TLS session that has only the beginning of a record raises an exception, and
that costs as much as decrypting several records. Whoever knows how many bytes of a record are still to come
need not try.

Source: RFC 8446 5.1 (five bytes of header, the last two are the length) and 5.2 (how long it may be).
"""

from __future__ import annotations

HEADER_BYTES = 5
# A longer record is an error, which the TLS session has to see.
MAX_FRAGMENT_BYTES = 16 * 1024 + 256


class RecordEnds:
    """Follows one direction from a record's beginning on.

    Attributes:
        unfinished: How many of the last bytes belong to a record that is not whole. 0 also after a record
            that is too long: then nothing more is known, and nothing more will be read.
    """

    __slots__ = ("_header", "_left", "unfinished")

    def __init__(self) -> None:
        self._header = b""  # Of the unfinished record, until it is whole.
        self._left = 0  # Of its fragment, after that.
        self.unfinished = 0

    def take(self, data: memoryview) -> None:
        """The next bytes."""
        size = len(data)
        position = self._left
        if position > size:
            self._left -= size
            self.unfinished += size
            return
        if self._header:
            data, size, position = memoryview(self._header + data), size + len(self._header), 0
            self._header = b""
        self._left = 0
        while size - position >= HEADER_BYTES:
            length = data[position + 3] << 8 | data[position + 4]
            end = position + HEADER_BYTES + length
            if length > MAX_FRAGMENT_BYTES:
                position = size
            elif end > size:
                self._left = end - size
                break
            else:
                position = end
        else:
            self._header = bytes(data[position:])
        self.unfinished = size - position
