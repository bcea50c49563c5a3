"""What an exception means: the sentence and flag of the access record, and the answer to a CONNECT.

Pure.
"""

from __future__ import annotations

import errno

from ambient.engine.tls import TlsError
from ambient.engine.tunnel import TunnelLost, TunnelRefused
from ambient.errors import Denied, RemoteProtocolError, Unavailable
from ambient.model.record import Flag

# Ends of a connection that an application causes every day; a record of them is no error.
_ORDINARY_ENDS = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)


def describe(exc: Exception, *, hbone: bool = False) -> tuple[str, Flag]:
    """The error of the access record.

    Args:
        hbone: The failure was met while opening a tunnel.
    """
    match exc:
        case Denied():
            return exc.reason, Flag.DENY
        case TunnelRefused(status=403):
            return str(exc), Flag.DENY
        case TlsError(reason="wrong_identity"):
            return f"identity error: {exc}", Flag.IDENTITY_ERROR
        case TlsError():
            return f"tls failure: {exc.reason}: {exc}", Flag.TLS_FAILURE
        case Unavailable():
            return f"no certificate yet: {exc}", Flag.IDENTITY_ERROR
        case TimeoutError() if hbone:
            text = f"connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {exc}"
            return text.removesuffix(": "), Flag.NETWORK_POLICY
        case TimeoutError():
            return "connection timed out", Flag.CONNECT
        case OSError():
            return f"connection failed: {exc.strerror or exc}", Flag.CONNECT
        case _:
            return str(exc) or type(exc).__name__, Flag.CONNECT


def status_of(exc: OSError) -> int:
    """The answer to a CONNECT whose target could not be dialled."""
    return 504 if isinstance(exc, TimeoutError) else 503


def rejection(status: int, reason: str) -> str:
    """What is recorded of a request that was answered *status* without asking anybody; 0: it was reset."""
    return f"http status {status}: {reason}" if status else reason


def fault(exc: Exception | None) -> tuple[str, Flag] | None:
    """What is recorded of a tunnel that ended with *exc*, beside its streams; None if nothing is.

    An ordinary end, or a lost connection, says nothing: what the tunnel carried has its own records.
    """
    match exc:
        case TlsError():
            return describe(exc)
        case RemoteProtocolError():
            return f"http2 failure: {exc}", Flag.H2_HANDSHAKE_FAILURE
        case _:
            return None


def is_ordinary_end(exc: Exception) -> bool:
    """Whether a relay that ended with *exc* is to be recorded as one that ended well."""
    return isinstance(exc, OSError) and exc.errno in _ORDINARY_ENDS


def may_go_elsewhere(exc: Exception) -> bool:
    """Whether nobody can have acted on the request, so that another route may be tried."""
    match exc:
        case TunnelLost():
            return exc.retryable
        case OSError():
            return exc.errno == errno.ECONNREFUSED
        case _:
            return False
