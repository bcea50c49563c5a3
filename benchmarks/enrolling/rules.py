"""Istio's published in-pod rules in our words, to run beside our own under the same proxy.

Facts, not text: chains, matches, marks and order as Istio 1.25 to 1.29 document them for iptables (DNS
capture off, no exclusions). A match that our vocabulary has only the other way round ("not to 127.0.0.1,
redirect") is said as an exemption in front ("to 127.0.0.1, accept"), which decides the same for every packet.
Two things are kinder than the original: IPv4 and IPv6 change together, in one transaction, and so do all
chains.
"""

from __future__ import annotations

from ambient.redirect.plan import (
    HBONE_PORT,
    INBOUND_PORT,
    MARK_MASK,
    OUTBOUND_PORT,
    PROBE_SOURCES,
    PROXY_MARK,
    RETURN_MARK,
    TABLE,
    Capture,
)
from ambient.wire.nft import (
    DSTNAT,
    L4,
    MANGLE,
    Accept,
    Address,
    Base,
    Chain,
    ConnectionMark,
    DestinationPort,
    End,
    Hook,
    Interface,
    MarkConnection,
    PacketMark,
    Redirect,
    RestoreMark,
    Rule,
    Table,
    Transport,
    Way,
)

_LOOPBACKS = ("127.0.0.1/32", "::1/128")


def published(_capture: Capture) -> Table:
    """The rules of an enrolled pod: connections are not told from packets in the middle of one."""
    return _table(_inbound(), _outbound())


def published_drained() -> Table:
    """What is left of them if a pod is let go in our order: the marks, and NAT chains without a rule.

    Istio knows no such state: it deletes. Here so that order and rules can be judged apart.
    """
    return _table((), ())


def _table(inbound: tuple[Rule, ...], outbound: tuple[Rule, ...]) -> Table:
    remember: Rule = (PacketMark(PROXY_MARK, MARK_MASK), MarkConnection(RETURN_MARK, MARK_MASK))
    restore: Rule = (ConnectionMark(RETURN_MARK, MARK_MASK), RestoreMark())
    return Table(
        TABLE,
        (
            Chain("mangle_pre", (remember,), Base("filter", Hook.PREROUTING, MANGLE)),
            Chain("mangle_out", (restore,), Base("route", Hook.OUTPUT, MANGLE)),
            Chain("nat_pre", inbound, Base("nat", Hook.PREROUTING, DSTNAT)),
            Chain("nat_out", outbound, Base("nat", Hook.OUTPUT, DSTNAT)),
        ),
    )


def _inbound() -> tuple[Rule, ...]:
    return (
        *((Address(End.SOURCE, probe), Transport(L4.TCP), Accept()) for probe in PROBE_SOURCES),
        *((Address(End.DESTINATION, own), Accept()) for own in _LOOPBACKS),
        (PacketMark(PROXY_MARK, MARK_MASK), Accept()),
        (DestinationPort(L4.TCP, HBONE_PORT, negated=True), Redirect(INBOUND_PORT)),
    )


def _outbound() -> tuple[Rule, ...]:
    return (
        *((Address(End.DESTINATION, probe), Transport(L4.TCP), Accept()) for probe in PROBE_SOURCES),
        (PacketMark(RETURN_MARK, MARK_MASK), Transport(L4.TCP), Accept()),
        *((Address(End.DESTINATION, own), Accept()) for own in _LOOPBACKS),
        (Interface(Way.OUT, "lo"), Accept()),
        (PacketMark(PROXY_MARK, MARK_MASK), Accept()),
        (Transport(L4.TCP), Redirect(OUTBOUND_PORT)),
    )
