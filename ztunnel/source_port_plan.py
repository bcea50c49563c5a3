"""Which source port a connection to the application takes when it carries the client's address.

Pure. The kernel may not choose: inside the pod it knows nothing of the client's own live ports, and a
second connection with the same four numbers resets the client's. So the port comes from above the range
from which clients take theirs (``net.ipv4.ip_local_port_range``, by default up to 60999), and from below
it when those above are used up (each is taken for a minute by TIME_WAIT).

Source: measured (the collision, and that 61000 and above avoid it); the second range follows from the first.
"""

from __future__ import annotations

from collections.abc import Container

FIRST_PORT, LAST_PORT = 61000, 65535
SPARE_FIRST_PORT, SPARE_LAST_PORT = 10000, 32767

# Ports tried in the first range before the second is used, and in all before we give up.
FIRST_ATTEMPTS = 16
MAX_ATTEMPTS = 64

# Live ports stepped over in one try; a client with more neighbours than this is tried all the same.
MAX_SKIPS = 256


class SourcePorts:
    """The next port to try, going round; one for each pod.

    Args:
        start: Where to begin, any number; a new process should not begin where the last one did.
    """

    def __init__(self, start: int) -> None:
        self._first = _Round(FIRST_PORT, LAST_PORT, start)
        self._spare = _Round(SPARE_FIRST_PORT, SPARE_LAST_PORT, start)

    def candidate(self, attempt: int, ip: str, live: Container[tuple[str, int]]) -> int:
        """The port for the *attempt*-th try (from 0) of one connection that carries the address *ip*.

        Args:
            live: Addresses and ports of clients that are connected now: none of theirs is taken. (A
                client whose own range is not the default one may hold ports of ours.)
        """
        ports = self._first if attempt < FIRST_ATTEMPTS else self._spare
        for _ in range(MAX_SKIPS):
            port = ports.step()
            if (ip, port) not in live:
                return port
        return port


class _Round:
    """All ports of a range, one after the other."""

    def __init__(self, first: int, last: int, start: int) -> None:
        self._first = first
        self._count = last - first + 1
        self._next = start % self._count

    def step(self) -> int:
        port = self._first + self._next
        self._next = (self._next + 1) % self._count
        return port
