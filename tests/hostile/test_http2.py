"""H1..H40 of reference/threats.md: HTTP/2 and CONNECT on a real :15008."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from ambient.engine.dial import dial_socket
from ambient.model.limits import Limits
from ambient.model.policy import Action, Match, MatchKind, Policy, Scope, StringMatch
from ambient.model.route import RESERVED_PORTS
from ambient.wire import hbone_budget as budget
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone_frames import ErrorCode as E
from ambient.wire.hbone_server import MAX_SERVER_STREAMS
from ambient.wire.hbone_streams import FIRST_WINDOW_BYTES
from tests.hostile.peers import Door, Wire
from tests.hostile.scene import APP_PORT, Attack, Case, Scene, play
from ztunnel.network import Address, Cancellable, OnDialled

ENDS = f.END_HEADERS | f.END_STREAM
CONNECT = b"\x02\x07CONNECT"


def lit(name: bytes, value: bytes) -> bytes:
    """A header field, literal, without Huffman coding."""
    return b"\x00" + h._string(name) + h._string(value)


def target(authority: str) -> bytes:
    """The smallest block of a CONNECT."""
    return h.encode_request(authority, ())


def dies(*frames: bytes, code: E | None = None, greet: bool = True, opened: bool = False) -> Attack:
    """The frames end the connection, with *code* in the GOAWAY."""

    def attack(door: Door) -> None:
        with door.http2(greet=greet) as wire:
            if opened:
                wire.connect(door.authority)
                assert wire.status() == 200
            wire.send(*frames)
            found = wire.end()
            assert wire.closed
            assert code is None or found == code, found

    return attack


def flood(frames: Callable[[int], bytes], count: int = 20_000) -> Attack:
    """So many at once as fast as they go; the connection must end, with the reason in the record."""

    def attack(door: Door) -> None:
        with door.http2() as wire:
            for start in range(0, count, 200):
                wire.send(*(frames(number) for number in range(start, start + 200)))
            assert wire.end() in (E.ENHANCE_YOUR_CALM, None)

    return attack


def answers(status: int, block: bytes | None = None, authority: str = "", flags: int = ENDS) -> Attack:
    """A request is answered *status*, and the connection lives."""

    def attack(door: Door) -> None:
        asked = target(authority.format(pod=door.pod)) if block is None else block
        with door.http2() as wire:
            wire.send(f.frame(f.HEADERS, flags, 1, asked))
            assert wire.status() == status
            wire.alive()

    return attack


def resets(block: bytes, code: E = E.PROTOCOL_ERROR) -> Attack:
    """A malformed request costs its stream; its neighbours on the connection live."""

    def attack(door: Door) -> None:
        with door.http2() as wire:
            wire.send(f.frame(f.HEADERS, f.END_HEADERS, 1, block))
            assert wire.reset() == code
            wire.alive()

    return attack


def on_open_stream(*frames: bytes, code: E) -> Attack:
    """On an open CONNECT, the frames cost the stream and nothing else."""

    def attack(door: Door) -> None:
        with door.http2() as wire:
            wire.connect(door.authority)
            assert wire.status() == 200
            wire.send(*frames)
            assert wire.reset() == code
            wire.alive()

    return attack


GET = b"\x82\x87\x84\x01\x01x"
POST = b"\x83\x87\x84\x01\x01x"
CALM = "ENHANCE_YOUR_CALM"

BAD_AUTHORITIES = [
    "10.0.0.5", ":80", "h:0", "h:65536", "h:-1", "h:+80", "h:8_0", "[::1", "[fe80::1%eth0]:80", "::1:80",
    "010.0.0.1:80", "0x7f.1:80", "2130706433:80", "user@h:80", "h:80/path", "h" * 10_240 + ":80",
]  # fmt: skip
NOT_OURS = [
    "127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "[::ffff:127.0.0.1]:80", "169.254.169.254:80", "224.0.0.1:80",
    "255.255.255.255:80",
]  # fmt: skip
PORTS = sorted(RESERVED_PORTS)


def rapid_reset(number: int) -> bytes:
    stream = number * 2 + 1
    return f.frame(f.HEADERS, f.END_HEADERS, stream, target("10.9.9.9:1")) + f.rst_stream(stream, E.CANCEL)


def unanswered_resets(door: Door) -> None:
    """CVE-2023-44487: CONNECTs that are under way when they are reset."""
    with door.http2() as wire:
        for number in range(400):
            stream = number * 2 + 1
            wire.send(f.frame(f.HEADERS, f.END_HEADERS, stream, target(f"{door.pod}:9")))
            wire.send(f.rst_stream(stream, E.CANCEL))
        assert wire.end() in (E.ENHANCE_YOUR_CALM, None)


def reset_then_broken(door: Door) -> None:
    """In one record: the stream under way is reset, and then the connection ends. Nothing of it may stay."""
    with door.http2() as wire:
        wire.connect(f"{door.pod}:9")
        wire.alive()
        wire.send(f.rst_stream(1, E.CANCEL) + f.frame(f.PING, 0, 1, bytes(8)))
        wire.end()


def made_you_reset(fault: Callable[[int], bytes], *, open_first: bool = True) -> Attack:
    """CVE-2025-8671: the peer provokes our resets."""

    def attack(door: Door) -> None:
        with door.http2() as wire:
            for number in range(budget.PREMATURE_RESETS + 20):
                stream = number * 2 + 1
                if open_first:
                    wire.send(f.frame(f.HEADERS, f.END_HEADERS, stream, GET))
                wire.send(fault(stream))
            assert wire.end() in (E.ENHANCE_YOUR_CALM, None)

    return attack


def silent_about_its_end(door: Door) -> None:
    """It neither reads nor answers: the PING finds out."""
    sock = door.tls()
    with Wire(sock) as wire:
        wire.send(f.PREFACE + f.settings(()))
        wire.connect(door.authority)
        assert wire.status() == 200
        while wire.frame() is not None:
            pass  # It reads, but says nothing, not even to a PING.


def without_request(door: Door) -> None:
    """A handshake, and then nothing."""
    with door.http2() as wire:
        wire.end()
        assert wire.closed


def early_data_of_the_denied(door: Door) -> None:
    """CVE-2025-64763: bytes before the 200 must not reach anybody if it does not come."""
    with door.http2() as wire:
        wire.send(
            f.frame(f.HEADERS, f.END_HEADERS, 1, target("10.9.9.9:80")), f.frame(f.DATA, 0, 1, b"x" * 1000)
        )
        assert wire.status() == 400
        wire.alive()


def early_data_is_held(door: Door) -> None:
    """They wait for the answer, and then they arrive."""
    with door.http2() as wire:
        wire.send(
            f.frame(f.HEADERS, f.END_HEADERS, 1, target(door.authority)), f.frame(f.DATA, 0, 1, b"early")
        )
        assert wire.status() == 200
        wire.send(f.frame(f.DATA, f.END_STREAM, 1))
        got = b""
        while got != b"early":
            got += wire.until(lambda frame: frame[0] == f.DATA)[3]
        wire.finished()


def too_many_streams(door: Door) -> None:
    """The 201st is refused, the other 200 live."""
    with door.http2() as wire:
        for number in range(MAX_SERVER_STREAMS + 1):
            wire.connect(door.authority, number * 2 + 1)
        assert wire.reset(MAX_SERVER_STREAMS * 2 + 1) == E.REFUSED_STREAM
        wire.send(f.frame(f.DATA, 0, 1, b"alive"))
        assert wire.until(lambda frame: frame[0] == f.DATA and frame[2] == 1)[3] == b"alive"
        for number in range(MAX_SERVER_STREAMS):
            wire.send(f.frame(f.DATA, f.END_STREAM, number * 2 + 1))
        for _ in range(MAX_SERVER_STREAMS):
            wire.until(lambda frame: frame[0] == f.DATA and bool(frame[1] & f.END_STREAM))
        wire.alive()


def no_window(door: Door) -> None:
    """A stream that can never be sent anything holds nothing but itself."""
    with door.http2((f.INITIAL_WINDOW_SIZE, 0)) as wire:
        wire.connect(door.authority)
        assert wire.status() == 200
        wire.send(f.frame(f.DATA, 0, 1, b"y" * 16_000))
        wire.alive()
        door.arrived(b"y" * 16_000)


def huge_settings(door: Door) -> None:
    """What a peer allows us we need not use."""
    with door.http2((f.MAX_FRAME_SIZE, f.LARGEST_MAX_FRAME), (f.HEADER_TABLE_SIZE, 2**32 - 1)) as wire:
        wire.connect(door.authority)
        assert wire.status() == 200
        wire.send(f.frame(f.DATA, 0, 1, b"z" * 60_000))
        got, longest = 0, 0
        while got < 60_000:
            size = len(wire.until(lambda frame: frame[0] == f.DATA)[3])
            got, longest = got + size, max(longest, size)
        assert longest <= 2**20
        wire.send(f.frame(f.DATA, f.END_STREAM, 1))
        wire.finished()


def goaway_then_more(door: Door) -> None:
    """A client's GOAWAY is about our streams, of which there are none: its own go on."""
    with door.http2() as wire:
        wire.connect(door.authority)
        assert wire.status() == 200
        wire.send(f.goaway(0, E.NO_ERROR), f.frame(f.DATA, 0, 1, b"bye"))
        assert wire.until(lambda frame: frame[0] == f.DATA)[3] == b"bye"
        wire.send(f.frame(f.DATA, f.END_STREAM, 1))
        wire.end()


def every_reset_code(door: Door) -> None:
    """Known and unknown codes alike end one stream."""
    with door.http2() as wire:
        for number, code in enumerate((*range(14), 99, 2**32 - 1)):
            wire.connect(door.authority, number * 2 + 1)
            assert wire.status(number * 2 + 1) == 200
            wire.send(f.rst_stream(number * 2 + 1, code))
        wire.alive()


def last_stream_id(door: Door) -> None:
    """After 2^31-1 there is no other: a new connection, and the old one loses nothing."""
    with door.http2() as wire:
        wire.connect(door.authority, f.MAX_STREAM_ID)
        assert wire.status(f.MAX_STREAM_ID) == 200
        wire.send(f.frame(f.DATA, f.END_STREAM, f.MAX_STREAM_ID, b"last"))
        assert wire.until(lambda frame: frame[0] == f.DATA)[3] == b"last"
        wire.finished(f.MAX_STREAM_ID)
    with door.http2() as wire:
        wire.connect(door.authority)
        assert wire.status() == 200
        wire.send(f.frame(f.DATA, f.END_STREAM, 1))
        wire.finished()


def forged_headers(door: Door) -> None:
    """H37: what a peer says of itself decides nothing, and cannot break a log line."""
    said = (
        ("forwarded", 'for="6.6.6.6:1";host=\x1b[31mking'),
        ("x-forwarded-for", "6.6.6.6"),
        ("baggage", "k8s.pod.name=king" + "x" * 8000),
        ("traceparent", "00-nonsense"),
    )
    with door.http2() as wire:
        wire.connect(door.authority, 1, *said)
        assert wire.status() == 200
        wire.send(f.frame(f.DATA, f.END_STREAM, 1))
        wire.finished()


def header_injection(door: Door) -> None:
    """CR and LF in a value are malformed, not a new line."""
    resets(target(door.authority) + lit(b"baggage", b"a\r\nx: y"))(door)


def many_connections(door: Door) -> None:
    """The third of an identity that may have two is not let in."""
    wires = [door.http2() for _ in range(2)]
    for wire in wires:
        wire.connect(door.authority)
        assert wire.status() == 200
    with door.http2() as third:
        third.end()
        assert third.closed
    for wire in wires:
        wire.alive()
        wire.send(f.frame(f.DATA, f.END_STREAM, 1))
        wire.until(lambda frame: frame[0] == f.DATA and frame[1] == f.END_STREAM)
        wire.sock.close()


def other_identity(door: Door) -> None:
    """H40: a header that names another identity leaves the certificate's in force."""
    with door.http2() as wire:
        wire.connect(
            door.authority,
            1,
            ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/shop/sa/friend"),
            ("forwarded", 'by="spiffe://cluster.local/ns/shop/sa/friend"'),
        )
        assert wire.status() == 403
        wire.alive()


def only_the_neighbour(scene: Scene) -> None:
    """A policy that lets nobody else in."""
    principal = StringMatch(MatchKind.EXACT, str(scene.friend.identity).removeprefix("spiffe://"))
    rule = ((Match(principals=(principal,)),),)
    scene.mesh.policies(
        Policy(
            key="shop/friends",
            namespace="shop",
            action=Action.ALLOW,
            scope=Scope.NAMESPACE,
            rules=(rule,),
        )
    )


def unknown_types(door: Door) -> None:
    """A few are ignored, as RFC 9113 5.5 says."""
    with door.http2() as wire:
        wire.send(*(f.frame(200, 255, number, os.urandom(50)) for number in range(50)))
        wire.alive()


def padding_counts(door: Door) -> None:
    """DATA of nothing but padding uses the window up, and is given back: no stall, no gift."""
    with door.http2() as wire:
        wire.connect(door.authority)
        assert wire.status() == 200
        padded = f.frame(f.DATA, f.PADDED, 1, b"\xff" + bytes(255))
        for _ in range(20 * FIRST_WINDOW_BYTES // 256):
            wire.send(padded)
        wire.send(f.frame(f.DATA, f.END_STREAM, 1, b"end"))
        assert wire.until(lambda frame: frame[0] == f.DATA)[3] == b"end"
        wire.finished()


def blackhole(scene: Scene) -> None:
    """An application whose machine is gone: nobody takes the connection."""

    nowhere = scene.unanswered()

    def dial(address: Address, on_done: OnDialled, **how: object) -> Cancellable | None:
        return dial_socket(scene.mesh.reactor, nowhere, on_done)

    real = scene.network.dial

    def choose(address: Address, on_done: OnDialled, **how: Any) -> Cancellable | None:
        return (dial if address[1] == 9 else real)(address, on_done, **how)

    scene.network.dial = choose  # type: ignore[method-assign]


def stopped_upstream(door: Door) -> None:
    """504 after the dial's deadline."""
    with door.http2() as wire:
        wire.connect(f"{door.pod}:9")
        assert wire.status() == 504
        wire.alive()


def beyond_window(door: Door) -> None:
    """DATA beyond what was granted costs the stream."""
    with door.http2() as wire:
        wire.send(f.frame(f.HEADERS, f.END_HEADERS, 1, target(f"{door.pod}:9")))
        wire.send(*(f.frame(f.DATA, 0, 1, bytes(16_384)) for _ in range(5)))
        assert wire.reset() == E.FLOW_CONTROL_ERROR
        wire.alive()


# Literal with incremental indexing, name "cookie" of the static table; then the same again and again.
COOKIES = target("h:80") + b"\x60\x03a=b" + b"\xbe" * 20_000
BOMB = b"\x40\x01a" + h._string(bytes(3000).replace(b"\0", b"b")) + b"\xbe" * 13_000
HUGE = b"".join(lit(b"x-%d" % n, b"") for n in range(500))
FIRST = target("10.9.9.9:80")
OPEN = Limits(dial=0.3)
SHORT = Limits(ping_interval=0.3, ping_timeout=0.3, first_connect=0.5)


def block(payload: bytes, flags: int = f.END_HEADERS, stream: int = 1) -> bytes:
    """A HEADERS frame."""
    return f.frame(f.HEADERS, flags, stream, payload)


# fmt: off
CASES = [
    Case("H1", "wrong-preface", dies(b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", greet=False), "not HTTP/2"),
    Case("H2", "no-settings", dies(f.PREFACE + f.frame(f.PING, 0, 0, bytes(8)), code=E.PROTOCOL_ERROR,
                                   greet=False), "first frame is not SETTINGS"),
    Case("H3", "get", answers(405, GET), "405: only CONNECT"),
    Case("H3", "post-without-end", answers(405, POST, flags=f.END_HEADERS), "405: only CONNECT"),
    Case("H4", "no-authority", resets(CONNECT), "malformed request: CONNECT without :authority"),
    *(Case("H5", name[:24], answers(400, authority=name), "bad authority") for name in BAD_AUTHORITIES),
    Case("H5", "full-width", answers(400, CONNECT + b"\x01" + h._string("h:０８".encode())), "bad authority"),
    Case("H6", "foreign-ip", answers(400, authority="10.9.9.9:80"), "ip mismatch"),
    *(Case("H7", name, answers(400, authority=name), "ip mismatch") for name in NOT_OURS),
    *(Case("H8", str(port), answers(503, authority=f"{{pod}}:{port}"), "attempted recursive call")
      for port in PORTS),
    Case("H9", "unknown-name", answers(404, authority="unknown.shop.svc.cluster.local:80"), "no service"),
    Case("H9", "not-served-here", answers(400, authority="other.shop.svc.cluster.local:80"), "not served by",
         prepare=lambda scene: (scene.mesh.service("other", 80), None)[1]),
    Case("H10", "denied", answers(403, authority=f"{{pod}}:{APP_PORT}"), "none allowed",
         prepare=only_the_neighbour),
    Case("H11", "nobody-listens", answers(503, authority="{pod}:1"), "Connection refused"),
    Case("H12", "blackhole", stopped_upstream, "connection timed out", limits=OPEN, prepare=blackhole),
    Case("H13", "websocket", answers(501, CONNECT + b"\x87\x84\x01\x01x" + lit(b":protocol", b"websocket")),
         "malformed|501: extended CONNECT"),
    Case("H14", "scheme", resets(CONNECT + b"\x87" + b"\x01\x01h"), "malformed request"),
    Case("H14", "path", resets(CONNECT + b"\x84" + b"\x01\x01h"), "malformed request"),
    Case("H15", "doubled", resets(CONNECT + CONNECT + b"\x01\x01h"), "malformed request"),
    Case("H15", "unknown", resets(CONNECT + b"\x01\x01h" + lit(b":what", b"x")), "malformed request"),
    Case("H15", "late", resets(CONNECT + lit(b"a", b"b") + b"\x01\x01h"), "malformed request"),
    Case("H15", "upper-case", resets(CONNECT + b"\x01\x01h" + lit(b"Abc", b"b")), "malformed request"),
    Case("H15", "connection-field", resets(CONNECT + b"\x01\x01h" + lit(b"connection", b"x")), "malformed"),
    Case("H16", "list-too-large", answers(431, target("h:80") + HUGE), "431: header block too large"),
    Case("H16", "frame-too-large", dies(block(bytes(16_385)), code=E.FRAME_SIZE_ERROR), "FRAME_SIZE_ERROR"),
    Case("H17", "cookie-crumbs", dies(block(COOKIES[:16_000]), code=E.ENHANCE_YOUR_CALM), CALM),
    Case("H18", "table-bomb", dies(block(BOMB), code=E.ENHANCE_YOUR_CALM), CALM),
    Case("H18", "table-over-limit", dies(block(b"\x3f\xe2\x1f" + FIRST), code=E.COMPRESSION_ERROR),
         "COMPRESSION_ERROR"),
    Case("H18", "index-0", dies(block(b"\x80"), code=E.COMPRESSION_ERROR), "COMPRESSION_ERROR"),
    Case("H18", "index-unknown", dies(block(b"\xff\xff\x01"), code=E.COMPRESSION_ERROR), "COMPRESSION_ERROR"),
    Case("H18", "overlong-integer", dies(block(b"\x7f" + b"\xff" * 20 + b"\x01"), code=E.COMPRESSION_ERROR),
         "COMPRESSION_ERROR"),
    Case("H18", "huffman-eos", dies(block(b"\x00\x84\xff\xff\xff\xff\x01a"), code=E.COMPRESSION_ERROR),
         "COMPRESSION_ERROR"),
    Case("H19", "endless", dies(block(FIRST, 0), *(f.frame(f.CONTINUATION, 0, 1, b"\x00\x01a\x01b")
                                                  for _ in range(5000)), code=E.ENHANCE_YOUR_CALM), CALM),
    Case("H19", "empty", dies(block(FIRST, 0), *(f.frame(f.CONTINUATION, 0, 1) for _ in range(5000)),
                              code=E.ENHANCE_YOUR_CALM), CALM),
    Case("H19", "interleaved", dies(block(FIRST, 0), f.frame(f.PING, 0, 0, bytes(8)), code=E.PROTOCOL_ERROR),
         "a header block was interrupted"),
    Case("H19", "other-stream", dies(block(FIRST, 0), f.frame(f.CONTINUATION, 4, 3), code=E.PROTOCOL_ERROR),
         "a header block was interrupted"),
    Case("H19", "alone", dies(f.frame(f.CONTINUATION, f.END_HEADERS, 1, FIRST), code=E.PROTOCOL_ERROR),
         "CONTINUATION without HEADERS"),
    Case("H20", "answered", flood(rapid_reset, 400), "flood of resets|without effect", others=True),
    Case("H20", "under-way", unanswered_resets, "flood of resets", others=True, limits=Limits(dial=60),
         prepare=blackhole),
    Case("H20", "reset-then-broken", reset_then_broken, "http2 failure: PROTOCOL_ERROR: PING", others=True,
         limits=Limits(dial=60), prepare=blackhole),
    Case("H21", "window-update-zero", made_you_reset(lambda n: f.window_update(n, 0)), "flood of resets",
         others=True),
    Case("H21", "window-overflow", made_you_reset(lambda n: f.window_update(n, f.MAX_WINDOW)),
         "flood of resets|WINDOW_UPDATE", others=True),
    Case("H21", "headers-again", made_you_reset(lambda n: block(GET, f.END_HEADERS, n)), "flood of resets",
         others=True),
    Case("H21", "malformed", made_you_reset(lambda n: block(CONNECT, f.END_HEADERS, n), open_first=False),
         "flood of resets", others=True),
    Case("H21", "wrong-length", made_you_reset(lambda n: block(
        POST + lit(b"content-length", b"1"), ENDS, n), open_first=False), "flood of resets", others=True),
    Case("H21", "data-on-closed", made_you_reset(lambda n: block(GET, ENDS, n) + f.frame(f.DATA, 0, n, b"x"),
                                                 open_first=False), "flood of resets", others=True),
    Case("H22", "empty-data", dies(*(f.frame(f.DATA, 0, 1) for _ in range(1000)), code=E.ENHANCE_YOUR_CALM,
                                   opened=True), "http2 failure: .*flood of empty DATA", others=True),
    Case("H22", "ping", flood(lambda n: f.frame(f.PING, 0, 0, b"%08d" % n)), "flood of PING"),
    Case("H22", "settings", flood(lambda n: f.settings(())), "flood of SETTINGS"),
    Case("H22", "settings-ack", flood(lambda n: f.frame(f.SETTINGS, f.ACK, 0)), "frames without effect"),
    Case("H22", "priority", flood(lambda n: f.frame(f.PRIORITY, 0, 3, b"\0\0\0\x01\x10")), "of PRIORITY"),
    Case("H22", "window-update", flood(lambda n: f.window_update(0, 1)), "flood of WINDOW_UPDATE"),
    Case("H22", "rst-on-closed", dies(block(GET, ENDS), *(f.rst_stream(1, 8) for _ in range(3000)),
                                      code=E.ENHANCE_YOUR_CALM), "frames without effect", others=True),
    Case("H22", "goaway", flood(lambda n: f.goaway(0, 0)), "flood of frames without effect"),
    Case("H23", "connection-overflow", dies(f.window_update(0, f.MAX_WINDOW), code=E.FLOW_CONTROL_ERROR),
         "connection window over"),
    Case("H23", "connection-zero", dies(f.window_update(0, 0), code=E.PROTOCOL_ERROR), "WINDOW_UPDATE of 0"),
    Case("H23", "stream-overflow", on_open_stream(f.window_update(1, 2**31 - 1), code=E.FLOW_CONTROL_ERROR),
         "FLOW_CONTROL_ERROR"),
    Case("H23", "stream-zero", on_open_stream(f.window_update(1, 0), code=E.PROTOCOL_ERROR), "UPDATE of 0"),
    Case("H23", "settings-overflow", dies(f.settings(((f.INITIAL_WINDOW_SIZE, 2**31),)),
                                          code=E.FLOW_CONTROL_ERROR), "INITIAL_WINDOW_SIZE of"),
    Case("H24", "stream", beyond_window, "FLOW_CONTROL_ERROR|closed by the source", limits=Limits(dial=60),
         prepare=blackhole),
    Case("H24", "one-huge-frame", on_open_stream(
        f.FRAME_HEADER.pack(2**20 << 8 | f.DATA, 0, 1) + bytes(2**20), code=E.FLOW_CONTROL_ERROR),
        "FLOW_CONTROL_ERROR"),
    Case("H25", "stream-0", dies(f.frame(f.DATA, 0, 0, b"x"), code=E.PROTOCOL_ERROR), "DATA on stream 0"),
    Case("H25", "idle", dies(f.frame(f.DATA, 0, 5, b"x"), code=E.PROTOCOL_ERROR), "DATA on idle stream"),
    Case("H25", "closed", on_open_stream(f.frame(f.DATA, f.END_STREAM, 1), f.frame(f.DATA, 0, 1, b"x"),
                                         code=E.STREAM_CLOSED), "DATA after END_STREAM"),
    Case("H26", "even", dies(block(FIRST, stream=2), code=E.PROTOCOL_ERROR), "a client opened stream 2"),
    Case("H26", "decreasing", dies(block(GET, ENDS, 5), block(GET, ENDS, 3), code=None),
         "STREAM_CLOSED: HEADERS on closed stream 3", others=True),
    Case("H26", "stream-0", dies(block(FIRST, stream=0), code=E.PROTOCOL_ERROR), "HEADERS on stream 0"),
    Case("H26", "exhausted", last_stream_id, None, app_bytes=b"last"),
    Case("H27", "too-large", dies(f.FRAME_HEADER.pack(0xFFFFFF << 8 | f.DATA, 0, 1), code=E.FRAME_SIZE_ERROR),
         "FRAME_SIZE_ERROR"),
    Case("H27", "short-ping", dies(f.frame(f.PING, 0, 0, bytes(7)), code=E.FRAME_SIZE_ERROR), "not 8"),
    Case("H27", "some-unknown", unknown_types, None),
    Case("H27", "unknown-flood", flood(lambda n: f.frame(99, 0, n, b"?")), "flood of unknown frames"),
    Case("H28", "push-promise", dies(f.frame(f.PUSH_PROMISE, 4, 1, bytes(8)), code=E.PROTOCOL_ERROR),
         "PUSH_PROMISE"),
    Case("H29", "over-length", dies(f.frame(f.DATA, 8, 1, b"\x09abc"), code=E.PROTOCOL_ERROR, opened=True),
         "http2 failure: PROTOCOL_ERROR: padding over", others=True),
    Case("H29", "headers", dies(block(b"\xff" + FIRST, f.END_HEADERS | f.PADDED), code=E.PROTOCOL_ERROR),
         "padding over"),
    Case("H29", "padding-only", padding_counts, None, app_bytes=b"end"),
    Case("H30", "trailers", on_open_stream(block(lit(b"x-a", b"b"), ENDS), code=E.PROTOCOL_ERROR),
         "PROTOCOL_ERROR"),
    Case("H31", "denied", early_data_of_the_denied, "ip mismatch"),
    Case("H31", "held", early_data_is_held, None, app_bytes=b"early"),
    Case("H32", "201st", too_many_streams, "over 200 streams", app_bytes=b"alive"),
    Case("H33", "no-window", no_window, "closed the connection|lost|reset", app_bytes=b"y" * 16_000),
    Case("H34", "huge-settings", huge_settings, None, app_bytes=b"z" * 60_000),
    Case("H35", "goaway", goaway_then_more, None, app_bytes=b"bye"),
    Case("H36", "every-code", every_reset_code, "stream reset", records=16),
    Case("H37", "forged", forged_headers, None),
    Case("H37", "injected", header_injection, "malformed request"),
    Case("H38", "silent", silent_about_its_end, "no sign of life", limits=SHORT),
    Case("H38", "without-request", without_request, "no CONNECT within", limits=SHORT),
    Case("H39", "third", many_connections, "over 2 connections of", limits=Limits(tunnels_per_identity=2)),
    Case("H40", "other-identity", other_identity, "none allowed", prepare=only_the_neighbour),
]
# fmt: on


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_http2(case: Case) -> None:
    """The outcome named, under the oracle."""
    play(case)
