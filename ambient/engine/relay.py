"""Two channels joined: what one delivers, the other is given, and an end of file stays one-sided.

Floor 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ambient.engine.channel import Channel
from ambient.engine.reactor import Reactor


@dataclass(frozen=True, slots=True)
class RelayCounts:
    """How a relay ended.

    Attributes:
        a_to_b: Bytes that arrived at *a* and were given to *b*.
        b_to_a: The other way.
        error: None if both directions ended with an end of file.
    """

    a_to_b: int
    b_to_a: int
    error: Exception | None


class Relay:
    """A running relay; made by ``relay``."""

    def abort(self, reason: Exception) -> None:
        """End both channels now; ``on_done`` gets *reason*."""
        raise NotImplementedError

    def counts(self) -> tuple[int, int]:
        """(a_to_b, b_to_a) so far."""
        raise NotImplementedError


def relay(reactor: Reactor, a: Channel, b: Channel, on_done: Callable[[RelayCounts], None]) -> Relay:
    """Join two channels that were not started; *on_done* is called once, when both are closed."""
    raise NotImplementedError
