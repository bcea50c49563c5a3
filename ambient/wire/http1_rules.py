"""What a proxy refuses in an HTTP/1.1 head, besides what llhttp refuses already.

Floor 1: pure functions over header values. Everything that two readers could understand differently is
refused here, because that is what request smuggling is made of.

Sources: RFC 9110, RFC 9112. llhttp 9.3 lets through, and we do not: versions other than 1.0 and 1.1,
``Transfer-Encoding`` other than exactly ``chunked`` or with HTTP/1.0, fragments and foreign forms of the
target, missing, repeated or odd ``Host``, blanks after values, and any bound at all.
"""

from __future__ import annotations

import re

from ambient.wire.http1_heads import Header, Refused

# Envoy's default for request headers is 60 KiB, nginx' large buffers are 4 x 8 KiB; 64 KiB is ours. It bounds
# everything that is not body: request line, headers, chunk extensions and trailers of one message.
MAX_HEAD_BYTES = 64 * 1024
# Envoy's default (max_headers_count).
MAX_HEADERS = 100
# A response may be preceded by 1xx heads; a peer that sends more than this is playing. Picked, not measured.
MAX_INFORMATIONAL = 16
# 2**63-1 has 19 digits: what other implementations can hold.
MAX_LENGTH_DIGITS = 18

# One hop's own business (RFC 9110 section 7.6.1): understood here, written anew or dropped. ``trailer`` and
# ``te`` go too, because trailers are dropped.
HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
SPECIAL = HOP | {b"content-length", b"host", b"expect"}
ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)([/?][^#]*)?")
_PLAIN_CONNECTION = frozenset((b"close", b"keep-alive", b"upgrade"))


class Refusal(Exception):
    """Leaves a parser callback; becomes the event ``Refused``."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.refused = Refused(status, reason)


def end_to_end(kept: list[Header], special: dict[bytes, bytes]) -> list[Header]:
    """The headers to forward: without those that ``Connection`` names as this hop's."""
    connection = special.get(b"connection")
    if connection is None or connection in _PLAIN_CONNECTION:
        return kept
    named = {token.strip(b" \t").lower() for token in connection.split(b",")}
    if named <= _PLAIN_CONNECTION:
        return kept
    return [header for header in kept if header[0] not in named]


def framing(special: dict[bytes, bytes], minor: int) -> tuple[int, bool]:
    """Return (content length or -1, chunked); refuse what can be read in two ways."""
    coding = special.get(b"transfer-encoding")
    if coding is not None:
        if minor == 0 or coding.lower() != b"chunked":
            raise Refusal(501, f"transfer-encoding {coding[:32]!r} in HTTP/1.{minor}")
        return -1, True
    length = special.get(b"content-length")
    if length is None:
        return -1, False
    # bytes.isdigit is ASCII only; int() alone would take "1_0" and "+1".
    if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        raise Refusal(400, f"content-length {length[:32]!r}")
    return int(length), False


def expects_continue(value: bytes, minor: int) -> bool:
    """Whether the client waits for ``100 Continue``; any other expectation is refused."""
    if value.lower() != b"100-continue":
        raise Refusal(417, f"expect {value[:32]!r}")
    return minor == 1


def origin_target(method: bytes, target: bytes, host: bytes | None, minor: int) -> tuple[bytes, bytes]:
    """Return (target in origin form, host); refuse every form that could name two places."""
    if method == b"CONNECT":
        raise Refusal(405, "CONNECT is for HBONE, not for HTTP/1.1")
    if host is None:
        if minor == 1:
            raise Refusal(400, "no host header")
        host = b""
    elif not _HOST.fullmatch(host):
        raise Refusal(400, f"host {host[:64]!r}")
    if b"#" in target:
        raise Refusal(400, "fragment in the request target")
    if target[:1] == b"/" or (target == b"*" and method == b"OPTIONS"):
        return target, host
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not _HOST.fullmatch(absolute[1]):
        raise Refusal(400, f"request target {target[:64]!r}")
    if host and host.lower() != absolute[1].lower():
        raise Refusal(400, "request target and host header name two hosts")
    path = absolute[2] or b"/"
    return (b"/" + path if path[:1] == b"?" else path), absolute[1]
