"""Single looks of attestation at pods that only a kernel knows: no agent, no ztunnel, no clock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
import trio

from ambient.engine.netns import in_netns, listen_in
from ambient.redirect import attestation, backend
from ambient.redirect.attestation import Attestor, RulesAsked
from ambient.redirect.attestation_plan import GiveUp, Repair, What
from ambient.redirect.backends import Backend, IptablesLegacy
from ambient.redirect.plan import DNS_CAPTURE_PORT, Capture
from ambient.redirect.pod_capture import Existing
from ambient.redirect.sockets import PROXY_PORTS
from tests.lab import DEADLINE, POD_SYSCTLS, in_namespaces, make_netns
from tests.netns.test_agent import wait_for
from ztunnel.network import NAME_HOSTS, name_sockets


class Pod:
    """A captured pod; its listeners are opened when the test says so."""

    attestable, wanted, lost, opened = True, True, False, 1

    def __init__(self, capture: Capture, rules: Backend = backend) -> None:
        self.netns = make_netns(POD_SYSCTLS)
        self.path = f"/proc/{os.getpid()}/fd/{self.netns}"
        self.capture, self.existing = capture, Existing()
        self.verdicts: list[Repair | GiveUp] = []
        self.listeners: list[socket.socket] = []
        self.names: list[socket.socket] = []
        rules.install(self.netns, capture)

    def listen(self) -> None:
        """As ztunnel would."""
        self.listeners = [listen_in(self.netns, port, transparent=True) for port in PROXY_PORTS]

    def answer_names(self) -> None:
        """As ztunnel would."""
        self.names = [
            each for pair in name_sockets(self.netns, NAME_HOSTS, DNS_CAPTURE_PORT) for each in pair
        ]

    def judged(self, verdict: Repair | GiveUp) -> None:
        """Noted."""
        self.verdicts.append(verdict)

    def retry(self) -> None:
        """Nothing is lost here."""

    def close(self) -> None:
        """Everything it has."""
        for each in (*self.listeners, *self.names):
            each.close()
        os.close(self.netns)


class Ztunnel:
    """One that is there; its sockets are this process's."""

    connected = True

    def held(self, uid: str) -> frozenset[int]:
        """None: it is asked itself."""
        return frozenset()

    def pids(self) -> frozenset[int]:
        """This process."""
        return frozenset({os.getpid()})


@contextmanager
def attesting(pods: Sequence[Pod], rules: RulesAsked | None = None) -> Iterator[Attestor]:
    """Whoever looks at them."""
    with ExitStack() as stack:
        for pod in pods:
            stack.callback(pod.close)
        made = Attestor({f"pod-{number}": pod for number, pod in enumerate(pods)}, Ztunnel(), rules)
        stack.callback(made.close)
        yield made


class Counting(IptablesLegacy):
    """How often rules were read by the program."""

    reads = 0

    def stand(self, netns: int, capture: Capture) -> bool:
        """Counted."""
        self.reads += 1
        return super().stand(netns, capture)


def iptables(netns: int, *arguments: str, family: str = "") -> None:
    """What somebody does by hand."""
    with in_netns(netns):
        subprocess.run((f"ip{family}tables-legacy", "-w", *arguments), check=True, timeout=DEADLINE)


@pytest.mark.iptables
@pytest.mark.parametrize("family", ["", "6"])
@in_namespaces
def test_rules_of_iptables_are_looked_at_every_time(family: str) -> None:
    """The kernel rings no bell for them, and nothing else of the pod has changed."""
    rules = Counting()
    pod = Pod(Capture(), rules)
    pod.listen()
    with attesting([pod], rules) as attestor:
        attestor.look_at_all()
        assert pod.verdicts == []

        iptables(pod.netns, "-t", "nat", "-I", "AMBIENT_OUT", "-j", "ACCEPT", family=family)
        attestor.look_at_all()

        assert pod.verdicts == [Repair(What.RULES, "somebody changed its redirection rules")]
        rules.install(pod.netns, pod.capture)
        attestor.look_at_all()
        assert len(pod.verdicts) == 1


@pytest.mark.iptables
@in_namespaces
def test_counters_are_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every packet moves them; running the program for each would cost milliseconds a second and pod."""
    rules = Counting()
    pod = Pod(Capture(), rules)
    pod.listen()
    with attesting([pod], rules) as attestor:
        attestor.look_at_all()
        with in_netns(pod.netns):
            inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for _ in range(3):
            with inside.dup() as talking:
                talking.sendto(b"counted", ("127.0.0.1", 9))
            attestor.look_at_all()
        inside.close()

        assert (rules.reads, pod.verdicts) == (1, [])


@in_namespaces
def test_whoever_answers_captured_lookups_is_attested() -> None:
    """A pod whose lookups lead nowhere is not what its report says, though its connections are captured."""
    pod = Pod(Capture(dns=True))
    pod.listen()
    with attesting([pod]) as attestor:
        attestor.look_at_all()
        missing = "nobody answers lookups on tcp port 15053 of 127.0.0.1"
        assert pod.verdicts == [Repair(What.LISTENERS, missing)]

        pod.answer_names()
        attestor.look_at_all()
        attestor.look_at_all()
        assert len(pod.verdicts) == 1

        for kind in range(len(pod.names)):
            pod.names[kind].close()
            attestor.look_at_all()
            assert "nobody answers lookups on" in pod.verdicts.pop().reason
            for each in pod.names:
                each.close()
            pod.answer_names()


@in_namespaces
def test_lookups_that_are_not_captured_are_nobodys_business() -> None:
    """The port is the pod's own then."""
    pod = Pod(Capture(dns=False))
    pod.listen()
    with attesting([pod]) as attestor:
        attestor.look_at_all()
        assert pod.verdicts == []


# Binds, says so, and stays.
STRANGER = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 15053))
print("bound", flush=True)
sys.stdin.read()
"""


@in_namespaces
def test_a_stranger_who_would_answer_lookups_is_named() -> None:
    """It would say who everybody is."""
    pod = Pod(Capture(dns=True))
    pod.listen()
    with attesting([pod]) as attestor:
        with in_netns(pod.netns):
            stranger = subprocess.Popen(
                [sys.executable, "-c", STRANGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        with stranger:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == b"bound\n"
            attestor.look_at_all()
            stranger.kill()

        (verdict,) = pod.verdicts
        assert isinstance(verdict, GiveUp)
        assert verdict.reason.startswith("udp port 15053 of 127.0.0.1 is taken by python")
        assert str(stranger.pid) in verdict.reason


@in_namespaces
def test_listeners_opened_between_two_looks_are_not_a_strangers() -> None:
    """What we hold is listed once a round; a pod that is enrolled during the round was not in the list."""
    pods = [Pod(Capture()), Pod(Capture(dns=True))]
    pods[0].listen()
    with attesting(pods) as attestor:
        looks = attestor._looks()
        next(looks)
        pods[1].listen()
        pods[1].answer_names()
        next(looks)

        assert [each.verdicts for each in pods] == [[], []]


@in_namespaces
async def test_a_round_is_spread_over_its_second() -> None:
    """All at once they would be in the way of whoever is enrolled meanwhile."""
    pods = [Pod(Capture()) for _ in range(2 * attestation.TOGETHER)]
    for pod in pods:
        pod.listen()
    with attesting(pods) as attestor:
        late = pods[-1]
        late.attestable = False
        attestor.look_at_all()
        before = attestor.statistics().checks
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attestor._every_second)
            await wait_for(lambda: attestor.statistics().checks > before)
            assert attestor.statistics().checks - before == attestation.TOGETHER
            # Its place in the round is at the end, but nothing is known of it yet.
            late.attestable = True
            await wait_for(lambda: f"pod-{len(pods) - 1}" in attestor._watched)
            nursery.cancel_scope.cancel()
