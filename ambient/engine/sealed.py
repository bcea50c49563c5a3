"""Certificates with their keys in sealed memory files: to be held by another process, and never on disk.

Floor 2. A memfd that is sealed can neither be changed nor grow, so who got its descriptor may map or read
it without trusting whoever passed it on. It ends with its last descriptor.

Source: memfd_create(2), fcntl(2) "File Sealing".
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

import msgpack

from ambient.engine.tls import Svid
from ambient.errors import AmbientError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.pki.key import PrivateKey
from ambient.pki.svid import X509Svid
from ambient.wire.frames import decode_map

ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# A chain of three, a key and a handful of roots are below 10 KiB; picked, not measured.
MAX_SEALED_BYTES = 64 * 1024


def seal(data: bytes) -> int:
    """A descriptor, close-on-exec and the caller's to close, of a memory file that holds *data* for ever."""
    fd = os.memfd_create("ambient-svid", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, ALL_SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def is_sealed(fd: int) -> bool:
    """Whether *fd* is a memory file that nobody can change any more, and of a size we would read."""
    with suppress(OSError):
        return (
            fcntl.fcntl(fd, fcntl.F_GET_SEALS) & ALL_SEALS == ALL_SEALS
            and os.fstat(fd).st_size <= MAX_SEALED_BYTES
        )
    return False


def seal_svid(svid: Svid) -> int:
    """``seal`` for an SVID and its key."""
    packed: bytes = msgpack.packb(
        {
            "identity": str(svid.identity),
            "chain": list(svid.chain),
            "key": svid.key,
            "roots": list(svid.roots),
        }
    )
    return seal(packed)


def unseal_svid(fd: int) -> Svid:
    """Read back what ``seal_svid`` wrote; *fd* stays open, at whatever position.

    Raises:
        RemoteProtocolError: it is not sealed, or holds no SVID whose parts belong together. The message
            never shows what it holds.
    """
    if not is_sealed(fd):
        raise RemoteProtocolError("not a sealed memory file")
    try:
        frame = decode_map(os.pread(fd, MAX_SEALED_BYTES, 0))
        match frame:
            case {"identity": str(uri), "chain": list(chain), "key": bytes(pem), "roots": list(roots)} if all(
                isinstance(der, bytes) for der in (*chain, *roots)
            ):
                return _assembled(SpiffeId.parse(uri), tuple(chain), pem, tuple(roots))
    except (AmbientError, ValueError, TypeError) as exc:
        raise RemoteProtocolError(f"a sealed SVID cannot be read: {type(exc).__name__}") from None
    raise RemoteProtocolError("a sealed SVID lacks a field or has a wrong type")


def _assembled(identity: SpiffeId, chain: tuple[bytes, ...], pem: bytes, roots: tuple[bytes, ...]) -> Svid:
    made = X509Svid.assemble(identity, PrivateKey.read_pem(pem), chain, roots)
    return Svid(identity, made.chain, pem, made.roots, made.not_before, made.not_after)
