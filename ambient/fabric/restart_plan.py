"""When a program that ended is started again. Pure: time is an argument.

Kubernetes' shape: at once, then after a delay that doubles up to a bound, forgotten after a long
enough life. Its delays (10 s to 300 s) are for clusters; on a desk people wait for the restart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Picked, not measured.
FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
HEALTHY_AFTER = 120.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often in a row a program has ended soon after its start.

    Attributes:
        first, longest: The delay after the second end in a row, and its bound, in seconds.
        healthy_after: A life that long is forgiven.
    """

    failures: int = 0
    first: float = FIRST_DELAY
    longest: float = LONGEST_DELAY
    healthy_after: float = HEALTHY_AFTER

    def ended(self, lived: float) -> Backoff:
        """The program ended after *lived* seconds."""
        return replace(self, failures=1 if lived >= self.healthy_after else self.failures + 1)

    @property
    def delay(self) -> float:
        """Seconds to wait before the next start."""
        if self.failures <= 1:
            return 0.0
        # The exponent is bounded for the same reason as the delay: a crash loop runs for days.
        return min(self.longest, self.first * 2.0 ** min(self.failures - 2, 16))


# A node's daemon that served for seconds and died is wanted back at once; one that dies while it starts is
# not. Picked, not measured.
NODE_RESTART = Backoff(first=0.05, longest=5.0, healthy_after=1.0)
