"""When a program that ended is started again. Pure: time is an argument.

Kubernetes' shape: at once, then after a delay that doubles up to a bound, forgotten after a long
enough life. Its delays (10 s to 300 s) are for clusters; on a desk people wait for the restart.
"""

from __future__ import annotations

from dataclasses import dataclass

# Picked, not measured.
FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
HEALTHY_AFTER = 120.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often in a row a program has ended soon after its start."""

    failures: int = 0

    def ended(self, lived: float) -> Backoff:
        """The program ended after *lived* seconds."""
        return Backoff(1) if lived >= HEALTHY_AFTER else Backoff(self.failures + 1)

    @property
    def delay(self) -> float:
        """Seconds to wait before the next start."""
        if self.failures <= 1:
            return 0.0
        # The exponent is bounded for the same reason as the delay: a crash loop runs for days.
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.failures - 2, 16))
