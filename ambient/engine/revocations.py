"""The file of revocation lists, read again whenever it has changed.

Floor 2. Asked at each handshake, it looks at the file at most once a second. A file that cannot be read
leaves what was read before in force: losing it must not let anybody back in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ambient.pki.revocation import MAX_CRL_BYTES, RevocationList, is_revoked, read_lists

# How soon a change of the file counts.
LOOK_SECONDS = 1.0


class Revocations:
    """The lists of one file.

    Args:
        complain: Told, once for each change, what is wrong with it.
        clock: Monotonic seconds.

    Attributes:
        every: Seconds between two looks.
        version: Grows whenever there are other lists; whoever holds a connection open then asks again.
    """

    def __init__(
        self, path: str, complain: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._complain = complain
        self._clock = clock
        self._looked = float("-inf")
        self._seen: tuple[int, ...] | None = None
        self._lists: list[RevocationList] = []
        self._signed: dict[tuple[bytes, ...], list[RevocationList]] = {}
        self.every = LOOK_SECONDS
        self.version = 0

    def is_revoked(self, certificate_der: bytes, roots: tuple[bytes, ...]) -> bool:
        """Whether a leaf was taken back by one of *roots*."""
        self.look()
        signed = self._signed.get(roots)
        if signed is None:
            signed = self._signed[roots] = [each for each in self._lists if self._is_signed(each, roots)]
        return bool(signed) and is_revoked(certificate_der, signed)

    def _is_signed(self, each: RevocationList, roots: tuple[bytes, ...]) -> bool:
        signed = each.is_signed_by_one_of(roots)
        if not signed:
            self._complain(f"{self._path}: a list is not signed by an issuer we trust, ignored")
        return signed

    def look(self) -> None:
        """Read the file if it is another one, unless that was asked a moment ago."""
        now = self._clock()
        if now - self._looked < self.every:
            return
        self._looked = now
        try:
            status = os.stat(self._path)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._seen = seen
                self._read()
        except OSError as exc:
            if self._seen != ():
                self._seen = ()
                self._complain(f"{self._path} cannot be read, what was revoked stays so: {exc.strerror}")

    def _read(self) -> None:
        with open(self._path, "rb") as file:
            data = file.read(MAX_CRL_BYTES + 1)
        if len(data) > MAX_CRL_BYTES:
            self._complain(f"{self._path} is over {MAX_CRL_BYTES} bytes, not read")
            return
        lists, complaints = read_lists(data)
        if any(each.next_update < time.time() for each in lists):
            complaints.append("a list has expired; what it revoked stays so")
        for complaint in complaints:
            self._complain(f"{self._path}: {complaint}")
        if lists:
            self._lists = lists
            self._signed.clear()
            self.version += 1
