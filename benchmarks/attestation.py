"""What attestation costs: CPU of the checks alone, for so many idle enrolled pods, in real namespaces.

    python benchmarks/attestation.py --pods 250 --rounds 20 [--dns] [--iptables]

A round is what the agent does once a second; the share is of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ambient.engine.netns import listen_in
from ambient.redirect.attestation import Attestor
from ambient.redirect.attestation_plan import GiveUp, Repair
from ambient.redirect.backends import Backend, attestable, choose
from ambient.redirect.plan import DNS_CAPTURE_PORT, Capture
from ambient.redirect.pod_capture import Existing
from ambient.redirect.sockets import PROXY_PORTS
from tests.lab import enter_namespaces, make_netns
from ztunnel.network import NAME_HOSTS, name_sockets


class Pod:
    """An enrolled pod in which nothing happens."""

    attestable, wanted, lost, opened, existing = True, True, False, 1, Existing()

    def __init__(self, capture: Capture, rules: Backend) -> None:
        self.capture = capture
        self.netns = make_netns({})
        self.path = f"/proc/{os.getpid()}/fd/{self.netns}"
        self._listeners = [listen_in(self.netns, port, transparent=True) for port in PROXY_PORTS]
        names = name_sockets(self.netns, NAME_HOSTS, DNS_CAPTURE_PORT) if capture.dns else []
        self._listeners += [each for pair in names for each in pair]
        rules.install(self.netns, self.capture)

    def judged(self, verdict: Repair | GiveUp) -> None:
        """Nothing is wrong here."""
        raise AssertionError(verdict)

    def retry(self) -> None:
        """Nothing is lost here."""


class Ztunnel:
    """One that is there; its sockets are this process's."""

    connected = True

    def pids(self) -> frozenset[int]:
        """This process."""
        return frozenset({os.getpid()})

    def held(self, _uid: str) -> frozenset[int]:
        """Nothing: whose the listeners are is read from /proc."""
        return frozenset()


def main() -> int:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description="what attestation costs")
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dns", action="store_true", help="with captured lookups")
    parser.add_argument("--iptables", action="store_true", help="with rules of the legacy iptables")
    options = parser.parse_args()
    enter_namespaces(nested=False)
    rules = choose("iptables" if options.iptables else "netlink")
    pods = [Pod(Capture(dns=options.dns), rules) for _ in range(options.pods)]
    subjects = {f"pod-{number}": pod for number, pod in enumerate(pods)}
    attestor = Attestor(subjects, Ztunnel(), attestable(rules))
    first = _round(attestor)
    rounds = [_round(attestor) for _ in range(options.rounds)]
    middle = statistics.median(rounds)
    print(
        json.dumps(
            {
                "kind": "AttestationCost",
                "pods": options.pods,
                "rounds": options.rounds,
                "dns": options.dns,
                "rules": "iptables" if options.iptables else "netlink",
                "first_round_ms": round(first * 1000, 2),
                "round_ms": round(middle * 1000, 2),
                "us_per_pod": round(middle / options.pods * 1e6, 1),
                "percent_of_a_core": round(middle * 100, 2),
                # The round that others on the machine disturbed least.
                "least_percent_of_a_core": round(min(rounds) * 100, 2),
            }
        )
    )
    return 0


def _round(attestor: Attestor) -> float:
    started = time.process_time()
    attestor.look_at_all()
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
