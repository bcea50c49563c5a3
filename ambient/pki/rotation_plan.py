"""When a certificate is renewed. Pure: times are unix seconds that the caller passes in.

Floor 1. Source: ztunnel's secret manager: renew at half of the lifetime, back off from 0.5 s by doubling
to 150 s with a fifth of jitter, and keep a certificate that still holds (reference/ztunnel.md section 5).
"""

from __future__ import annotations

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 150.0
JITTER = 0.2


def renew_at(not_before: float, not_after: float) -> float:
    """The half of its life: always before *not_after*."""
    return not_before + (not_after - not_before) / 2


def renewal_delay(not_before: float, not_after: float, now: float) -> float:
    """Seconds from *now* until the certificate is to be renewed; 0.0 if that is past."""
    return max(0.0, renew_at(not_before, not_after) - now)


def retry_delay(failures: int, chance: float) -> float:
    """Seconds to wait after the *failures*-th failure in a row (1, 2, ...).

    Args:
        chance: From 0 to 1; spreads the nodes of a mesh so that they do not ask all at once.
    """
    doublings = min(max(failures - 1, 0), 16)
    base: float = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**doublings)
    return base * (1 - JITTER + 2 * JITTER * chance)


def is_usable(not_before: float, not_after: float, now: float) -> bool:
    """Whether the certificate holds at *now*."""
    return not_before <= now < not_after
