"""TLS 1.3 records by hand: what an honest library would never send, after a handshake of its own.

The library's key log gives the secrets (RFC 8446 7.1); keys, nonces and updates are derived here (7.2, 7.3).
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from contextlib import suppress

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.hostile.peers import Door, client_context

HANDSHAKE, DATA = 22, 23
CERTIFICATE_VERIFY = 15
# KeyUpdate, one byte long: update_requested (RFC 8446 4.6.3).
KEY_UPDATE = b"\x18\x00\x00\x01\x01"
LARGEST_PLAINTEXT = 2**14
_HASH_BYTES = 48


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label without a context (RFC 8446 7.1)."""
    full = b"tls13 " + label
    info = struct.pack(">HB", size, len(full)) + full + b"\0"
    return HKDFExpand(SHA384(), size, info).derive(secret)


class Keys:
    """One direction's traffic keys."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._derive()

    def _derive(self) -> None:
        self._cipher = AESGCM(_expand(self._secret, b"key", 32))
        self._iv = _expand(self._secret, b"iv", 12)
        self._sequence = 0

    def update(self) -> None:
        """After a KeyUpdate was sealed."""
        self._secret = _expand(self._secret, b"traffic upd", _HASH_BYTES)
        self._derive()

    def _nonce(self) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return (int.from_bytes(self._iv) ^ number).to_bytes(12)

    def seal(self, kind: int, data: bytes, padding: int = 0) -> bytes:
        """One record."""
        inner = data + bytes((kind,)) + bytes(padding)
        header = struct.pack(">BHH", DATA, 0x0303, len(inner) + 16)
        return header + self._cipher.encrypt(self._nonce(), inner, header)

    def open(self, header: bytes, sealed: bytes) -> tuple[int, bytes]:
        """Its kind and content."""
        inner = self._cipher.decrypt(self._nonce(), sealed, header).rstrip(b"\0")
        return inner[-1], inner[:-1]


class Session:
    """A client that has shaken hands, but whose last flight is still to be sent.

    Attributes:
        last_flight: Its Certificate, CertificateVerify and Finished, as records.
        keys: For what comes after.
    """

    def __init__(self, door: Door) -> None:
        self.sock = door.knock()
        log = os.memfd_create("keys")
        try:
            context = client_context(door.svid)
            context.keylog_filename = f"/proc/self/fd/{log}"
            self.last_flight = self._shake(context)
            secrets = dict(_secrets(os.pread(log, 65536, 0).decode()))
        finally:
            os.close(log)
        self.keys = Keys(secrets["CLIENT_TRAFFIC_SECRET_0"])
        self._handshake_secret = secrets["CLIENT_HANDSHAKE_TRAFFIC_SECRET"]

    def _shake(self, context: ssl.SSLContext) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(outgoing.read())
                incoming.write(self.sock.recv(65536))
                continue
            assert tls.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
            return outgoing.read()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def begin(self) -> None:
        """Finish the handshake honestly."""
        self.send(self.last_flight)

    def begin_forged(self) -> None:
        """Finish it with a signature that is not by the certificate's key."""
        keys, position = Keys(self._handshake_secret), 0
        while position < len(self.last_flight):
            header = self.last_flight[position : position + 5]
            size = struct.unpack_from(">H", header, 3)[0]
            sealed = self.last_flight[position + 5 : position + 5 + size]
            position += 5 + size
            if header[0] != DATA:
                self.send(header + sealed)  # ChangeCipherSpec, for middleboxes.
                continue
            opened = Keys(self._handshake_secret)
            opened._sequence = keys._sequence
            kind, content = opened.open(header, sealed)
            if content[0] == CERTIFICATE_VERIFY:
                content = content[:-1] + bytes((content[-1] ^ 1,))
            self.send(keys.seal(kind, content))

    def send(self, *records: bytes) -> None:
        """All of them; whether the other end still listens is for others to say."""
        with suppress(ConnectionError):
            self.sock.sendall(b"".join(records))

    def closed(self) -> bool:
        """Wait for the end of the connection."""
        with suppress(ConnectionError):
            while self.sock.recv(65536):
                pass
        return True

    def heard(self, timeout: float) -> bytes:
        """What comes within *timeout* seconds, encrypted."""
        self.sock.settimeout(timeout)
        with suppress(socket.timeout):
            return self.sock.recv(65536)
        return b""


def _secrets(log: str) -> list[tuple[str, bytes]]:
    return [(line.split()[0], bytes.fromhex(line.split()[2])) for line in log.splitlines() if line[:1] != "#"]
