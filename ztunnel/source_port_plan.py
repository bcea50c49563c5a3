"""Which source port a connection to the application takes when it carries the client's address.

Pure. The kernel may not choose: inside the pod it knows nothing of the client's own live ports, and a
second connection with the same four numbers resets the client's. So the port comes from above the range
from which clients take theirs (``net.ipv4.ip_local_port_range``, by default up to 60999), and from below
it when those above are used up (each is taken for a minute by TIME_WAIT).

Source: measured (the collision, and that 61000 and above avoid it); the second range follows from the first.
"""

from __future__ import annotations

FIRST_PORT, LAST_PORT = 61000, 65535
SPARE_FIRST_PORT, SPARE_LAST_PORT = 10000, 32767

# Ports tried in the first range before the second is used, and in all before we give up.
FIRST_ATTEMPTS = 16
MAX_ATTEMPTS = 64


class SourcePorts:
    """The next port to try, going round; one for each pod.

    Args:
        start: Where to begin, any number; a new process should not begin where the last one did.
    """

    def __init__(self, start: int) -> None:
        self._next = start
        self._next_spare = start

    def candidate(self, attempt: int, taken: int) -> int:
        """The port for the *attempt*-th try (from 0) of one connection.

        Args:
            taken: The client's own port, which is certainly live.
        """
        if attempt < FIRST_ATTEMPTS:
            self._next, port = _step(self._next, FIRST_PORT, LAST_PORT)
            if port == taken:
                self._next, port = _step(self._next, FIRST_PORT, LAST_PORT)
            return port
        self._next_spare, port = _step(self._next_spare, SPARE_FIRST_PORT, SPARE_LAST_PORT)
        if port == taken:
            self._next_spare, port = _step(self._next_spare, SPARE_FIRST_PORT, SPARE_LAST_PORT)
        return port


def _step(number: int, first: int, last: int) -> tuple[int, int]:
    return number + 1, first + number % (last - first + 1)
