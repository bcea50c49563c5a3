"""``Limits`` from the environment: Istio's names where its ztunnel has one, ours for the rest.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ambient.errors import ConfigError
from ambient.model.limits import Limits

# What an operator may set, by the field of ``Limits``.
SECONDS = {
    "tls_handshake": "AMBIENT_TLS_HANDSHAKE_TIMEOUT",
    "connect_answer": "AMBIENT_CONNECT_TIMEOUT",
    "dial": "AMBIENT_DIAL_TIMEOUT",
    "first_connect": "AMBIENT_FIRST_CONNECT_TIMEOUT",
    "ping_interval": "AMBIENT_PING_INTERVAL",
    "ping_timeout": "AMBIENT_PING_TIMEOUT",
    "user_timeout": "AMBIENT_TCP_USER_TIMEOUT",
    "pool_idle": "POOL_UNUSED_RELEASE_TIMEOUT",
    "pool_max_age": "AMBIENT_POOL_MAX_AGE",
}
COUNTS = {
    "streams_per_tunnel": "POOL_MAX_STREAMS_PER_CONNECTION",
    "tunnels_per_identity": "AMBIENT_TUNNELS_PER_IDENTITY",
}
# Istio's switch; there it is off by default, and on an application's sockets as well.
USER_TIMEOUT = "USER_TIMEOUT_ENABLED"

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_COUNT = re.compile(r"[1-9][0-9]{0,5}")
# A day: whoever writes more means "never", which is no deadline.
LONGEST_SECONDS = 86_400.0


def read_limits(environ: Mapping[str, str]) -> Limits:
    """The limits of this process; what is not set keeps its default.

    Raises:
        ConfigError: a value means nothing; the message names the variable.
    """
    seconds = {
        field: duration(name, text, zero=field == "user_timeout")
        for field, name in SECONDS.items()
        if (text := environ.get(name, ""))
    }
    counts = {field: _count(name, text) for field, name in COUNTS.items() if (text := environ.get(name, ""))}
    if environ.get(USER_TIMEOUT, "").lower() == "false":
        seconds["user_timeout"] = 0.0
    return Limits(**seconds, **counts)  # type: ignore[arg-type]


def duration(name: str, text: str, *, zero: bool = False) -> float:
    """Seconds of ``10``, ``10s``, ``1.5s``, ``500ms``, ``5m`` or ``1h``, the value of *name*.

    Raises:
        ConfigError: it is none of these, over a day, or nothing at all unless *zero*.
    """
    found = _DURATION.fullmatch(text)
    seconds = float(found[1]) * _UNITS[found[2] or ""] if found else -1.0
    if not (seconds >= 0 if zero else seconds > 0) or seconds > LONGEST_SECONDS:
        raise ConfigError(f"{name} is {text!r}, must be a duration such as 500ms, 10s or 5m, at most a day")
    return seconds


def _count(name: str, text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ConfigError(f"{name} is {text!r}, must be a number from 1 to 999999")
    return int(text)
