"""Every way of putting rules in keeps one contract, and the kernel ends up with one rule set."""

from __future__ import annotations

import subprocess

import pytest

from ambient.engine.netns import in_netns, listen_in, original_destination
from ambient.model.exclusions import Exclusions
from ambient.redirect import backend, backends, listing
from ambient.redirect.backend import Standing
from ambient.redirect.backends import Backend, IptablesLegacy, NftText, Nowhere
from ambient.redirect.plan import INBOUND_PORT, OUTBOUND_PORT, Capture, capture_plan, closed_plan, drain_plan
from ambient.redirect.survey import survey
from ambient.wire.xds import NodePod
from tests.lab import DEADLINE, POD_SYSCTLS, Lab, in_namespaces, make_netns

CAPTURE = Capture()
FULL = Capture(
    dns=True,
    exclusions=Exclusions(
        inbound_ports=(9000,),
        outbound_ports=(5432,),
        inbound_ranges=("192.0.2.0/24", "192.0.2.128/25", "2001:db8::/32", "fd00::/9"),
        outbound_ranges=("198.51.100.7/32",),
    ),
)
KNOWN = (capture_plan(CAPTURE), drain_plan())

everyone = pytest.mark.parametrize(
    "rules",
    [
        pytest.param(backend, id="netlink"),
        pytest.param(NftText(), id="nft", marks=pytest.mark.nft),
        pytest.param(IptablesLegacy(), id="iptables", marks=pytest.mark.iptables),
        pytest.param(Nowhere(), id="loopback"),
    ],
)
with_kernel = pytest.mark.parametrize(
    "rules",
    [
        pytest.param(backend, id="netlink"),
        pytest.param(NftText(), id="nft", marks=pytest.mark.nft),
        pytest.param(IptablesLegacy(), id="iptables", marks=pytest.mark.iptables),
    ],
)


@everyone
@in_namespaces
def test_the_contract(rules: Backend) -> None:
    """Idempotent, in any order, and nothing is left: whatever is chosen, the agent need not know."""
    netns = make_netns(POD_SYSCTLS)
    assert rules.standing(netns) is Standing.NONE
    rules.drain(netns)
    rules.remove(netns)
    assert rules.standing(netns) is Standing.NONE

    for capture in (CAPTURE, CAPTURE, Capture(dns=True), FULL):
        rules.install(netns, capture)
        assert rules.standing(netns, capture) is Standing.CAPTURED
    rules.put(netns, closed_plan(FULL))
    assert rules.standing(netns, FULL) is Standing.CLOSED
    for _ in range(2):
        rules.drain(netns)
        assert rules.standing(netns) is Standing.DRAINING
    rules.install(netns, CAPTURE)
    assert rules.standing(netns) is Standing.CAPTURED
    for _ in range(2):
        rules.remove(netns)
        assert rules.standing(netns) is Standing.NONE


@everyone
@in_namespaces
def test_what_it_shows_is_what_it_planned(rules: Backend) -> None:
    """``ambient redirect show --diff`` is silent about a healthy pod."""
    netns = make_netns(POD_SYSCTLS)
    assert rules.planned(None) == rules.present(netns, KNOWN) == []

    rules.install(netns, CAPTURE)
    assert listing.difference(rules.planned(KNOWN[0]), rules.present(netns, KNOWN)) == []
    rules.drain(netns)
    assert listing.difference(rules.planned(KNOWN[1]), rules.present(netns, KNOWN)) == []
    rules.remove(netns)
    assert rules.present(netns, KNOWN) == []


@pytest.mark.nft
@in_namespaces
def test_by_netlink_and_by_nft_the_kernel_has_the_same() -> None:
    """A program that is not ours lists both."""
    ours, theirs = make_netns(POD_SYSCTLS), make_netns(POD_SYSCTLS)

    def listed(netns: int) -> list[str]:
        done = backends.run(netns, ("nft", "list", "ruleset"))
        return sorted(done.splitlines())

    for act in (
        lambda rules, netns: rules.install(netns, Capture(dns=True)),
        lambda rules, netns: rules.drain(netns),
    ):
        act(backend, ours)
        act(NftText(), theirs)
        assert listed(ours) == listed(theirs)
        assert len(listed(ours)) > 5


@with_kernel
@in_namespaces
def test_it_captures_both_ways_and_both_families(rules: Backend) -> None:
    """Outbound with its destination, inbound with its client; a connection older than the rules lives on."""
    lab = Lab()
    client, server, other = lab.pod("client"), lab.pod("server", node=2), lab.pod("other")
    with server.listen(80) as application, client.connect(server.ip, 80) as older:
        answering, _ = application.accept()
        with answering:
            rules.install(client.netns, CAPTURE)
            rules.install(server.netns, CAPTURE)
            outbound = listen_in(client.netns, OUTBOUND_PORT, transparent=True)
            inbound = listen_in(server.netns, INBOUND_PORT, transparent=True)
            with outbound, inbound:
                outbound.settimeout(DEADLINE)
                inbound.settimeout(DEADLINE)
                for theirs in (server.ip, server.ip6):
                    with client.connect(theirs, 80):
                        taken, _ = outbound.accept()
                        with taken:
                            assert original_destination(taken) == (theirs, 80)
                    with other.connect(theirs, 80):
                        taken, _ = inbound.accept()
                        with taken:
                            assert original_destination(taken) == (theirs, 80)
            older.sendall(b"older")
            answering.settimeout(DEADLINE)
            assert answering.recv(5) == b"older"


@with_kernel
@pytest.mark.parametrize("version", [4, 6])
@in_namespaces
def test_nobody_is_let_past_a_proxy_that_is_not_there(rules: Backend, version: int) -> None:
    """It died with everybody who held its listeners: who comes in waits for the next one."""
    lab = Lab()
    client, server = lab.pod("client"), lab.pod("server", node=2)
    address = server.ip if version == 4 else server.ip6
    with server.listen(80) as application, client.connect(address, 80) as older:
        taken, _ = application.accept()
        with taken:
            rules.install(server.netns, CAPTURE)
            with pytest.raises(OSError, match="timed out"):
                client.connect(address, 80, deadline=0.3)
            older.sendall(b"older")
            taken.settimeout(DEADLINE)
            assert taken.recv(5) == b"older"
        application.setblocking(False)
        with pytest.raises(BlockingIOError):
            application.accept()
        with listen_in(server.netns, INBOUND_PORT, transparent=True) as inbound:
            inbound.settimeout(DEADLINE)
            with client.connect(address, 80):
                taken, _ = inbound.accept()
                taken.close()


@with_kernel
@in_namespaces
def test_a_survey_is_told_in_the_words_of_whoever_put_the_rules_in(rules: Backend) -> None:
    """A pod captured by iptables is captured; asked by netlink it would have no rules at all."""
    lab = Lab()
    host = lab.pod("web")
    pod = NodePod(
        uid="web",
        namespace="shop",
        name="web",
        service_account="web",
        addresses=(host.ip,),
        netns=host.netns_path,
    )

    assert survey(pod, frozenset(), rules)["standing"] == "none"
    rules.install(host.netns, CAPTURE)
    found = survey(pod, frozenset(), rules)

    assert (found["standing"], found["blocker"]) == ("captured", "")
    assert found["rules"].splitlines() == rules.present(host.netns, KNOWN)


@pytest.mark.iptables
@in_namespaces
def test_iptables_notices_what_somebody_changed() -> None:
    """A rule too many, one too few, a jump that is gone: each is damage, and mended."""
    rules, netns = IptablesLegacy(), make_netns(POD_SYSCTLS)
    rules.install(netns, CAPTURE)

    for change in (
        ("-t", "nat", "-I", "AMBIENT_OUT", "-j", "ACCEPT"),
        ("-t", "mangle", "-D", "AMBIENT_PRE", "1"),
        ("-t", "nat", "-F", "OUTPUT"),
    ):
        with in_netns(netns):
            subprocess.run(("iptables-legacy", "-w", *change), check=True, timeout=DEADLINE)
        assert rules.standing(netns) is Standing.DAMAGED
        assert listing.difference(rules.planned(KNOWN[0]), rules.present(netns, KNOWN))
        rules.install(netns, CAPTURE)
        assert rules.standing(netns) is Standing.CAPTURED


@in_namespaces
def test_a_missing_program_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "No such file or directory: 'nft'" in a log that nobody understands."""
    netns = make_netns(POD_SYSCTLS)
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(OSError, match="no program nft; AMBIENT_REDIRECT=netlink"):
        NftText().install(netns, CAPTURE)


@pytest.mark.nft
@in_namespaces
def test_a_refused_program_says_why() -> None:
    """Its first line, which names the place."""
    netns = make_netns(POD_SYSCTLS)

    with pytest.raises(OSError, match=r"nft: .*syntax error"):
        backends.run(netns, ("nft", "-f", "-"), "table inet {\n")
