"""What went wrong, in the words of the access record."""

from __future__ import annotations

import errno

import pytest

from ambient.engine.failure import describe, is_ordinary_end, may_go_elsewhere, status_of
from ambient.engine.tls import TlsError
from ambient.engine.tunnel import TunnelLost, TunnelRefused
from ambient.errors import Denied, Unavailable
from ambient.model.record import Flag

REFUSED = OSError(errno.ECONNREFUSED, "Connection refused")


@pytest.mark.parametrize(
    ("exc", "hbone", "text", "flag"),
    [
        (Denied("explicitly denied by: a/b"), False, "explicitly denied by: a/b", Flag.DENY),
        (TunnelRefused(403), True, "http status: 403", Flag.DENY),
        (TunnelRefused(503), True, "http status: 503", Flag.CONNECT),
        (TlsError("wrong_identity", "got x"), True, "identity error: got x", Flag.IDENTITY_ERROR),
        (TlsError("not_tls", "got GET"), True, "tls failure: not_tls: got GET", Flag.TLS_FAILURE),
        (Unavailable("asked"), True, "no certificate yet: asked", Flag.IDENTITY_ERROR),
        (TimeoutError(), False, "connection timed out", Flag.CONNECT),
        (
            TimeoutError(),
            True,
            "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",
            Flag.NETWORK_POLICY,
        ),
        (REFUSED, True, "connection failed: Connection refused", Flag.CONNECT),
        (OSError("odd"), False, "connection failed: odd", Flag.CONNECT),
        (TunnelLost("goaway"), True, "goaway", Flag.CONNECT),
        (ValueError(), False, "ValueError", Flag.CONNECT),
    ],
)
def test_each_failure_has_its_words(exc: Exception, hbone: bool, text: str, flag: Flag) -> None:
    """An operator acts on the sentence, a dashboard on the flag."""
    assert describe(exc, hbone=hbone) == (text, flag)


def test_a_dial_that_took_too_long_is_a_gateway_timeout() -> None:
    """interfaces.md: 503 refused, 504 timed out."""
    assert status_of(REFUSED) == 503
    assert status_of(TimeoutError()) == 504


def test_a_reset_by_an_application_is_no_error() -> None:
    """Browsers do it all day."""
    assert is_ordinary_end(ConnectionResetError(errno.ECONNRESET, "reset"))
    assert not is_ordinary_end(TimeoutError())
    assert not is_ordinary_end(ValueError())


@pytest.mark.parametrize(
    ("exc", "may"),
    [
        (TunnelLost("goaway", retryable=True), True),
        (TunnelLost("cut"), False),
        (REFUSED, True),
        (TimeoutError(errno.ETIMEDOUT, "late"), False),
        (TunnelRefused(503), False),
    ],
    ids=["not-acted-on", "perhaps-acted-on", "nobody-listens", "late", "answered"],
)
def test_only_what_nobody_acted_on_goes_elsewhere(exc: Exception, may: bool) -> None:
    """A request must never be carried out twice."""
    assert may_go_elsewhere(exc) is may
