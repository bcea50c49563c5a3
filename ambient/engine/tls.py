"""Mutual TLS with SPIFFE identities, as a channel over a non-blocking socket.

Floor 2. TLS 1.3 by ``ssl.SSLObject`` over ``MemoryBIO``: reads of a batch are decrypted into one shared
buffer, writes are encrypted at once and sent when the batch ends.

Who the peer is gets decided once, at the end of the handshake: its chain leads to a root of our own
trust domain (OpenSSL), and its leaf names exactly one URI, a SPIFFE ID (SPIFFE X509-SVID 2 and 5.2:
more than one must be rejected). A bare ``SSLContext`` ignores ``SSLKEYLOGFILE``, which
``create_default_context`` would obey. The key reaches OpenSSL through a memfd, never through the disk.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ambient.engine.channel import Data, SocketChannel
from ambient.engine.reactor import HANG_UP, IN, OUT, Reactor
from ambient.errors import AmbientError, ConfigError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.own_code import own_code
from ambient.pki.svid import CLIENT_USE, SERVER_USE, spiffe_id_of
from ambient.wire.tls_records import HEADER_BYTES, RecordEnds

ALPN_HBONE = ("h2",)
# One record decrypts to at most this (RFC 8446 5.1); a read needs as much room.
RECORD_BYTES = 16 * 1024
# Writes up to this size share a record. Picked: a copy of 4 KiB takes about as long as sealing a record.
GATHER_BYTES = 4 * 1024
# A record that holds more has no room for another of them.
_GATHERED_BYTES = RECORD_BYTES - GATHER_BYTES
# What a peer may send without a byte for us: four of the largest records. More is a flood of KeyUpdates.
MAX_BARREN_BYTES = 4 * (RECORD_BYTES + 256)
# What OpenSSL asks of keys and signatures, whatever its builder's default: 112 bits, no SHA-1, no RSA-1024.
SECURITY_LEVEL = "DEFAULT@SECLEVEL=2"
# Encrypted bytes that are sent at once and not at the end of the batch: while the cache still has them.
SEND_BYTES = 256 * 1024
# Encrypted bytes that are decrypted at a time.
FEED_BYTES = 256 * 1024
# Encrypted bytes that wait for the socket before ``writable`` turns False.
TLS_HIGH_BYTES = 1024 * 1024
# A handshake's incoming bytes: the largest chain we would look at. OpenSSL's own bound is 100 KiB.
MAX_HANDSHAKE_BYTES = 128 * 1024

# Whom an OpenSSL reason accuses; whatever is not listed is "protocol".
_REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "bad_certificate",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "no_certificate",
    "NO_APPLICATION_PROTOCOL": "no_alpn",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "no_alpn",
    "HTTP_REQUEST": "not_tls",
    "WRONG_VERSION_NUMBER": "not_tls",
    "UNKNOWN_PROTOCOL": "not_tls",
}


class TlsError(AmbientError):
    """A handshake failed, or the peer is not who it must be.

    Args:
        reason: A stable word for records: ``not_tls``, ``no_certificate``, ``bad_certificate``,
            ``revoked``, ``no_svid``, ``multiple_svids``, ``foreign_trust_domain``, ``wrong_identity``,
            ``no_alpn``, ``deadline``, ``closed``, ``flood`` or ``protocol``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Svid:
    """A certificate that proves *identity*, with its key; the key shows in no repr.

    Attributes:
        chain: DER, leaf first.
        key: The private key, PKCS#8 PEM.
        roots: DER of the trust domain's roots.
        not_before: Unix seconds of the leaf.
        not_after: Unix seconds of the leaf.
    """

    identity: SpiffeId
    chain: tuple[bytes, ...] = field(repr=False)
    key: bytes = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    not_before: float
    not_after: float


class TlsContext:
    """What one side of a handshake needs; made once per SVID and shared by its connections.

    Args:
        svid: Our identity; its roots judge the peer, its trust domain must be the peer's.
        server: Which side.
        alpn: Protocols offered or accepted; the handshake fails without an agreement.

    Raises:
        ConfigError: OpenSSL does not take the chain or the key (which is not shown).
    """

    __slots__ = ("_context", "alpn", "identity", "roots", "server")

    def __init__(self, svid: Svid, *, server: bool, alpn: tuple[str, ...] = ALPN_HBONE) -> None:
        self.identity = svid.identity
        self.roots = svid.roots
        self.server = server
        self.alpn = alpn
        self._context = context = ssl.SSLContext(
            ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_ciphers(SECURITY_LEVEL)
        context.check_hostname = False  # Identities are SPIFFE IDs, checked in ``verify_peer``.
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(list(alpn))
        if server:
            context.num_tickets = 0  # A resumed session would skip the certificate.
        _load_svid(context, svid)

    def __repr__(self) -> str:
        return f"<TlsContext {self.identity} {'server' if self.server else 'client'}>"

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """A new session; a client sends no SNI."""
        return self._context.wrap_bio(incoming, outgoing, server_side=self.server)


def verify_peer(certificate: object, own: SpiffeId, expected: frozenset[SpiffeId] | None) -> SpiffeId:
    """The identity in *certificate* (``getpeercert()``), whose chain OpenSSL has verified.

    Args:
        expected: Whom it may name; None accepts everyone of our trust domain.

    Raises:
        TlsError: it names nobody, several, or someone else.
    """
    names = certificate.get("subjectAltName", ()) if isinstance(certificate, dict) else ()
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) > 1:
        raise TlsError("multiple_svids", f"the peer's certificate has {len(uris)} URI names")
    if not uris:
        raise TlsError("no_svid", "the peer's certificate has no URI name")
    try:
        identity = SpiffeId.parse(uris[0])
    except ConfigError as exc:
        raise TlsError("no_svid", f"the peer's certificate: {exc}") from exc
    if identity.trust_domain != own.trust_domain:
        raise TlsError("foreign_trust_domain", f"the peer is of trust domain {identity.trust_domain!r}")
    if expected is not None and identity not in expected:
        wanted = ", ".join(sorted(map(str, expected))) or "nobody"
        raise TlsError("wrong_identity", f"the peer is {identity}, expected {wanted}")
    return identity


def verify_leaf(certificate_der: bytes, *, client: bool) -> None:
    """Refuse what OpenSSL lets pass: a CA's certificate presented as a workload's, or one for any use.

    Raises:
        TlsError: it is one (SPIFFE X509-SVID 4.1, 4.4), or a second reading of its names disagrees.
    """
    try:
        spiffe_id_of(certificate_der, use=CLIENT_USE if client else SERVER_USE)
    except RemoteProtocolError as exc:
        raise TlsError("bad_certificate", str(exc)) from exc


@own_code
class TlsChannel(SocketChannel):
    """A ``Channel`` whose bytes are encrypted; exists only after a verified handshake.

    A TCP end of file without TLS's own goodbye is delivered as an end of file with ``truncated`` set:
    the protocol above knows whether its message was complete.

    Attributes:
        identity: Who we are.
        peer_identity: Who is at the other end, from its certificate.
        alpn: The protocol agreed on.
    """

    __slots__ = (
        "_barren", "_barren_since", "_encrypt", "_ends", "_gathered", "_incoming", "_outgoing", "_read",
        "_tls", "alpn", "identity", "peer_identity", "truncated",
    )  # fmt: skip

    _high = TLS_HIGH_BYTES

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        identity: SpiffeId,
        peer_identity: SpiffeId,
    ) -> None:
        super().__init__(reactor, sock)
        self._tls = tls
        # SSLObject's methods only pass on to this; as they are called for every message, go there directly.
        # The stub says that read returns bytes; with a buffer it is the number of bytes.
        session: Any = getattr(tls, "_sslobj", tls)
        self._read: Callable[[int, memoryview], int] = session.read
        self._encrypt: Callable[[Data], int] = session.write
        self._incoming = incoming
        self._outgoing = outgoing
        self._gathered = bytearray()
        self._ends = RecordEnds()
        if incoming.pending:
            self._feed(memoryview(incoming.read()))  # What came with the end of the handshake.
        self.identity = identity
        self.peer_identity = peer_identity
        self.alpn = tls.selected_alpn_protocol() or ""
        self.truncated = False
        self._barren = 0  # Bytes that came since ``bytes_in`` was ``_barren_since``.
        self._barren_since = 0

    def peer_proof(self) -> tuple[bytes, tuple[bytes, ...]]:
        """The peer's leaf, and the roots by which it was verified; all DER."""
        leaf = self._tls.getpeercert(binary_form=True) or b""
        return leaf, tuple(self._tls.context.get_ca_certs(binary_form=True))

    def start(self, receiver: object) -> None:
        """Deliver to *receiver* from now on; the peer's first bytes may be here already."""
        super().start(receiver)  # type: ignore[arg-type]
        if self._incoming.pending:
            self._reactor.call_soon(self._decrypt, self.crashed)

    def resume(self) -> None:
        """Undo ``pause``; what was read but not yet decrypted comes first."""
        super().resume()
        if self._incoming.pending:
            self._reactor.call_soon(self._decrypt, self.crashed)

    def write(self, data: Data) -> None:
        """Encrypt *data* now, send it when the batch ends."""
        if self._sock is None or self._eof_wanted:
            return
        size = len(data)
        self.bytes_out += size
        gathered = self._gathered
        if size <= GATHER_BYTES:
            # What one batch writes becomes one record: sealing and opening a record costs more than copying.
            gathered += data
            if not self._dirty:
                self._mark_dirty()
            if len(gathered) <= _GATHERED_BYTES:
                return
            self._seal()
        else:
            self._reactor.room = 0
            if gathered:
                self._seal()
            if size > SEND_BYTES:
                self._write_large(data)
            else:
                self._encrypt(data)
        if not self._dirty:
            self._mark_dirty()
        if self._outgoing.pending >= SEND_BYTES:
            if not self._mask & OUT:
                self._write_out()
            self.full = self._backlog() > TLS_HIGH_BYTES

    def _write_large(self, data: Data) -> None:
        # Piece by piece: a session keeps for ever what room its largest write took.
        view = memoryview(data)
        for start in range(0, len(view), SEND_BYTES):
            self._encrypt(view[start : start + SEND_BYTES])
            sealed = self._outgoing.read()
            sent = 0 if self._out else self._send([sealed])
            if self._sock is None:
                return
            if sent < len(sealed):
                self._queue(sealed[sent:], len(sealed) - sent)
        # Nobody is told of room before the last piece: what they wrote then would come between two.
        self._update()

    def write_alone(self, data: memoryview) -> None:
        """``write`` of all that this batch writes: sealed and sent at once, unless something is before it."""
        sock = self._sock
        if sock is None or self._dirty or self._out or self.full or self._eof_wanted:
            self.write(data)
            return
        self.bytes_out += len(data)
        self._encrypt(data)
        self._send_sealed(sock, self._outgoing.read())

    def write_eof(self) -> None:
        """Send close_notify after what was written, when the batch ends."""
        if not self._eof_wanted and self._sock is not None:
            self._eof_wanted = True
            self._mark_dirty()

    def write_parts(self, parts: list[memoryview], total: int) -> None:
        """``write`` of several slices."""
        for part in parts:
            self.write(part)

    def _seal(self) -> None:
        """Encrypt what was gathered."""
        self._encrypt(self._gathered)
        self._gathered = bytearray()

    def detach(self) -> socket.socket:
        """Impossible: the session's state would be lost."""
        raise RuntimeError("a TLS channel cannot be detached")

    def on_event(self, events: int) -> None:
        """The socket is ready; the reactor calls it."""
        if events == IN and self._mask & IN:
            self._readable()  # The usual event.
        else:
            super().on_event(events)

    def _readable(self) -> None:
        assert self._sock is not None
        buffer = self._reactor.read_buffer
        try:
            size = self._sock.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as exc:
            self._finish(exc)
            return
        if size:
            ends, incoming = self._ends, self._incoming
            if (
                size > HEADER_BYTES
                and buffer[3] << 8 | buffer[4] == size - HEADER_BYTES
                and not ends.unfinished
                and not incoming.pending
            ):
                incoming.write(buffer[:size])
                self._read_one(size)
                return
            before = self.bytes_in
            if size > RECORD_BYTES:
                self._reactor.room = 0
            if size <= FEED_BYTES:
                self._feed(buffer[:size])
                self._decrypt()
            else:
                self._decrypt(buffer[:size])
            if self.bytes_in == before and not self._paused:
                self._count_barren(size)
        elif not self._eof_in:
            self.truncated = True
            self._ended_in()

    def _read_one(self, size: int) -> None:
        """The usual case, for every small message: one record of *size* bytes came, and nothing else."""
        plain = self._reactor.plain_buffer
        filled = 0
        try:
            filled = self._read(RECORD_BYTES, plain)
        except ssl.SSLWantReadError:
            self._answer_tls()
            self._count_barren(size)
            return
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as exc:
            self._broken(exc)
            return
        if not filled:
            self._ended_in()
            return
        self.bytes_in += filled
        receiver = self._receiver
        if receiver is not None and not self._closing:
            receiver.data_received(plain[:filled])

    def _feed(self, data: memoryview) -> None:
        self._ends.take(data)
        self._incoming.write(data)

    def _decrypt(self, rest: memoryview | None = None) -> None:
        """Decrypt and deliver all that came, unless the receiver stops us.

        Args:
            rest: Came too, and goes to the session piece by piece: it keeps for ever what room its largest
                piece took.
        """
        plain = self._reactor.plain_buffer
        room = len(plain)
        read, incoming, ends = self._read, self._incoming, self._ends
        filled = 0
        ended = False
        while True:
            try:
                while incoming.pending > ends.unfinished and not self._paused and self._sock is not None:
                    size = read(room - filled, plain[filled:] if filled else plain)
                    if not size:
                        ended = True
                        break
                    filled += size
                    if room - filled < RECORD_BYTES:
                        self._deliver(plain[:filled])
                        filled = 0
            except ssl.SSLWantReadError:
                pass  # The last record had nothing for us.
            except ssl.SSLZeroReturnError:
                ended = True
            except ssl.SSLError as exc:
                self._broken(exc, plain[:filled])
                return
            if not rest:
                break
            self._feed(rest[:FEED_BYTES])
            rest = rest[FEED_BYTES:]
        if filled:
            self._deliver(plain[:filled])
        self._answer_tls()
        if ended and self._sock is not None and not self._eof_in:
            self._ended_in()

    def _deliver(self, data: memoryview) -> None:
        if len(data) and self._sock is not None:
            self.bytes_in += len(data)
            if not self._closing:
                self._receiver_or_fail().data_received(data)

    def _count_barren(self, size: int) -> None:
        if self._barren_since != self.bytes_in:
            self._barren_since, self._barren = self.bytes_in, 0
        self._barren += size
        if self._barren > MAX_BARREN_BYTES:
            self.crashed(TlsError("flood", f"{self._barren} bytes of TLS without any data"))

    def _answer_tls(self) -> None:
        if self._outgoing.pending and self._sock is not None:
            self._mark_dirty()  # OpenSSL answered something of its own, such as a KeyUpdate.

    def _broken(self, exc: ssl.SSLError, last: memoryview | None = None) -> None:
        # OpenSSL encrypts nothing after its own alert: who is told of the last bytes cannot answer.
        self._eof_wanted = True
        self._gathered.clear()
        if last:
            self._deliver(last)
        self._write_out()  # The alert, if there is one.
        self.crashed(tls_error(exc))

    def flush(self) -> None:
        """Send what was encrypted; the reactor calls it."""
        self._dirty = False
        sock = self._sock
        if sock is None:
            return
        if self._out or self.full or self._eof_wanted:
            self._write_out()
            return
        # The usual case, for every small message: all of it fits, and nobody waits for room.
        if self._gathered:
            self._seal()
        data = self._outgoing.read()
        if data:
            self._send_sealed(sock, data)

    def _send_sealed(self, sock: socket.socket, data: bytes) -> None:
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._finish(exc)
            return
        if sent < len(data):
            self._queue(data[sent:], len(data) - sent)
            self._update()

    def _write_out(self) -> None:
        while self._sock is not None:
            if self._gathered:
                self._seal()
            if not self._out and self._outgoing.pending:
                pending = self._outgoing.pending
                self._queue(self._outgoing.read(), pending)
            super()._write_out()
            if self._out or not self._outgoing.pending:
                return

    def _backlog(self) -> int:
        return self._out_bytes + self._outgoing.pending + len(self._gathered)

    def _shut(self) -> None:
        # close_notify; unwrap then wants the peer's, which may come much later.
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        goodbye = self._outgoing.read()
        if goodbye and self._send([goodbye]) < len(goodbye):
            self._finish(ConnectionAbortedError("no room for the goodbye"))
        if self._sock is not None:
            super()._shut()


TlsDone: TypeAlias = Callable[["TlsChannel | Exception"], None]


def accept_tls(
    reactor: Reactor,
    sock: socket.socket,
    context: TlsContext,
    on_done: TlsDone,
    *,
    deadline: float | None = None,
) -> None:
    """Shake hands as the server; *sock* (connected, non-blocking) becomes the channel's to close.

    *on_done* gets a ``TlsChannel`` whose peer showed exactly one SPIFFE URI SAN of our trust domain,
    or a ``TlsError`` / ``OSError``, and then the socket is closed. Never calls back before it returns.
    """
    _Handshake(reactor, sock, context, None, on_done, deadline)


def connect_tls(
    reactor: Reactor,
    sock: socket.socket,
    context: TlsContext,
    expected: frozenset[SpiffeId],
    on_done: TlsDone,
    *,
    deadline: float | None = None,
) -> None:
    """Shake hands as the client; the peer must be one of *expected* (empty: none will do).

    The rest is as with ``accept_tls``. A client's handshake ends before the server has judged its
    certificate: a rejection arrives later, as the end of the channel.
    """
    _Handshake(reactor, sock, context, expected, on_done, deadline)


def tls_error(exc: ssl.SSLError) -> TlsError:
    """What OpenSSL said, with a stable reason."""
    reason = _REASONS.get(exc.reason or "", "protocol")
    detail = getattr(exc, "verify_message", "") or exc.reason or "TLS failed"
    return TlsError(reason, f"{detail}".lower().replace("_", " "))


class _Handshake:
    """One handshake under way: owns the socket until it hands it on or closes it."""

    __slots__ = (
        "_context", "_expected", "_incoming", "_mask", "_on_done", "_out", "_outgoing", "_reactor",
        "_received", "_sock", "_timer", "_tls",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        context: TlsContext,
        expected: frozenset[SpiffeId] | None,
        on_done: TlsDone,
        deadline: float | None,
    ) -> None:
        if deadline is None:
            deadline = reactor.limits.tls_handshake
        self._reactor = reactor
        self._sock = sock
        self._context = context
        self._expected = expected
        self._on_done: TlsDone | None = on_done
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap(self._incoming, self._outgoing)
        self._out = b""
        self._received = 0
        self._mask = IN
        reactor.add(sock.fileno(), IN, self._on_event, self._failed)
        late = TlsError("deadline", f"no TLS handshake within {deadline:g} s")
        self._timer = reactor.call_later(deadline, lambda: self._failed(late), self._failed)
        reactor.call_soon(self._advance, self._failed)

    def _on_event(self, events: int) -> None:
        if events & (IN | HANG_UP) and not self._receive():
            return
        self._advance()

    def _receive(self) -> bool:
        buffer = self._reactor.read_buffer
        try:
            size = self._sock.recv_into(buffer)
        except BlockingIOError:
            return True
        except OSError as exc:
            self._failed(exc)
            return False
        self._received += size
        if not size:
            self._failed(TlsError("closed", "the peer closed during the TLS handshake"))
        elif self._received > MAX_HANDSHAKE_BYTES:
            self._failed(TlsError("protocol", f"handshake over {MAX_HANDSHAKE_BYTES} bytes"))
        else:
            self._incoming.write(buffer[:size])
            return True
        return False

    def _advance(self) -> None:
        if self._on_done is None:
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except ssl.SSLError as exc:
            self._send()  # The alert.
            self._failed(tls_error(exc))
            return
        self._send()
        if self._on_done is not None and not self._out:
            self._verified()

    def _verified(self) -> None:
        context = self._context
        try:
            if self._tls.selected_alpn_protocol() not in context.alpn:
                raise TlsError("no_alpn", f"the peer speaks none of {', '.join(context.alpn)}")
            peer = verify_peer(self._tls.getpeercert(), context.identity, self._expected)
            leaf = self._tls.getpeercert(binary_form=True) or b""
            verify_leaf(leaf, client=context.server)
            lists = self._reactor.revocations
            if lists is not None and lists.is_revoked(leaf, context.roots):
                raise TlsError("revoked", f"the certificate of {peer} was revoked")
        except TlsError as exc:
            self._failed(exc)
            return
        self._timer.cancel()
        self._reactor.remove(self._sock.fileno())
        channel = TlsChannel(
            self._reactor,
            self._sock,
            self._tls,
            self._incoming,
            self._outgoing,
            identity=context.identity,
            peer_identity=peer,
        )
        self._answer(channel, channel)

    def _answer(self, answer: TlsChannel | Exception, channel: TlsChannel | None) -> None:
        on_done, self._on_done = self._on_done, None
        assert on_done is not None
        try:
            on_done(answer)
        except Exception as exc:
            self._reactor.record_failure(exc)
            if channel is not None:
                channel.crashed(exc)

    def _send(self) -> None:
        self._out += self._outgoing.read()
        try:
            sent = self._sock.send(self._out) if self._out else 0
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._failed(exc)
            return
        self._out = self._out[sent:]
        mask = IN | OUT if self._out else IN
        if mask != self._mask:
            self._mask = mask
            self._reactor.modify(self._sock.fileno(), mask)

    def _failed(self, exc: Exception) -> None:
        if self._on_done is None:
            return
        self._timer.cancel()
        self._reactor.remove(self._sock.fileno())
        self._sock.close()
        self._answer(exc, None)


def prepare_hbone(reactor: Reactor, sock: socket.socket) -> None:
    """Options of every TCP connection that carries HBONE."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    milliseconds = int(reactor.limits.user_timeout * 1000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _load_svid(context: ssl.SSLContext, svid: Svid) -> None:
    pem = b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in svid.chain) + svid.key
    fd = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
        context.load_verify_locations(cadata=b"".join(svid.roots))
    except (ssl.SSLError, OSError, ValueError) as exc:
        # ``from None``: nothing of the key may hang on the exception.
        raise ConfigError(f"certificate of {svid.identity} is not usable: {type(exc).__name__}") from None
    finally:
        os.close(fd)
