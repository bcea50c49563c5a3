"""Says when a pod is first captured, seen from outside: a process of its own, so that its clock is not late.

    python -m benchmarks.enrolling.probe <netns fd> [<patience>]    # "watch ADDRESS" a line; answers the time

It says "ready" first: an interpreter that starts is no part of what is measured.

Asks for a port on which nothing listens. Refused means that the pod's own kernel answered; connected, that
the rules of enrollment led to the proxy.
"""

from __future__ import annotations

import socket
import sys
import time

from ambient.engine.netns import socket_in

# Nothing in a pod of ours listens there (discard).
PORT = 9
PAUSE_SECONDS = 0.001
DEADLINE = 30.0


def first_captured(netns: int, address: str, patience: float = DEADLINE) -> float:
    """The monotonic time of the first captured connection from *netns* to *address*; 0 if none comes."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if is_captured(netns, address):
            return time.monotonic()
        time.sleep(PAUSE_SECONDS)
    return 0.0


def is_captured(netns: int, address: str) -> bool:
    """Whether a new connection is captured now."""
    with socket_in(netns, socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect((address, PORT))
        except (ConnectionRefusedError, TimeoutError):
            return False
        except ConnectionResetError:
            pass  # Connected, and told by the proxy that the pod has no such port.
        return True


def main() -> None:
    """Answer until stdin closes."""
    print("ready", flush=True)
    netns, patience = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else DEADLINE
    for line in sys.stdin:
        print(first_captured(netns, line.split()[1], patience), flush=True)


if __name__ == "__main__":
    main()
