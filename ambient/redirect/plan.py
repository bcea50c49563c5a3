"""The rules that send a pod's traffic to its proxy: pure, and the same for ztunnel and for a sidecar.

The hybrid of two ways: outbound connections are REDIRECTed (the proxy asks conntrack where they were
to go), inbound ones are TPROXYed (nothing is rewritten, the proxy's socket has the real address).

Why each part::

    pre        mark 0x539   the proxy's packets on their way to the application, which arrive by lo:
                            remember the connection, because the application's answer goes to a client's
                            address that is not here, and has to come back to the proxy
               lo           the application talks to itself
               probes       kubelet's, by their source, see the application itself
               excluded     ports and networks that the pod's owner wants left alone
               tcp          whatever is for an address of this namespace; a packet of a connection that
                            has a socket already is left alone by nft's tproxy, which is how connections
                            older than the rules live on. Not only SYN: a handshake completed by a SYN
                            cookie begins, for the kernel, with an ACK
               SYN          what comes here found no proxy: it has died with everybody who held its
                            listeners. Nobody is let past it; who waits is served by the next one
    out_route  mark 0x111   that answer: routed by table 100, which says "local" for every address
    out        0x539        the proxy's own connections
               excluded     as above
               SYN          only a connection's first packet is rewritten: conntrack, switched on by
                            these very rules, takes the next packet of an old connection for a new one

No interface but lo is named: any CNI will do.

Source: reference measurements of the rule set (50 enrollments under load without a loss) and Istio's
in-pod rules, from which the ports, marks and the probe's source address are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from ambient.model.exclusions import NO_EXCLUSIONS, Exclusions
from ambient.wire.netlink import AF_INET, AF_INET6
from ambient.wire.netlink_route import Rule as RoutingRule
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
    Drop,
    End,
    Hook,
    Interface,
    MarkConnection,
    PacketMark,
    Redirect,
    RestoreMark,
    Rule,
    Syn,
    Table,
    Term,
    ToProxy,
    ToThisHost,
    Way,
)

TABLE = "ambient"
# The same rules where a sidecar holds them, so that the node's agent never takes them for its own.
SIDECAR_TABLE = "ambient_sidecar"

# Istio's ports.
OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_CAPTURE_PORT = 15001, 15006, 15008, 15053
DNS_PORT = 53
# Istio's marks: 1337 on the proxy's sockets, 273 on connections that have to come back to it.
PROXY_MARK, RETURN_MARK, MARK_MASK = 0x539, 0x111, 0xFFF
# Istio's source of kubelet's probes (HOST_PROBE_SNAT_IP).
PROBE_SOURCES = ("169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
# Istio's routing table and rule priority.
ROUTING_TABLE, RULE_PRIORITY = 100, 32764

ROUTING_RULES = tuple(
    RoutingRule(family, RULE_PRIORITY, RETURN_MARK, MARK_MASK, ROUTING_TABLE)
    for family in (AF_INET, AF_INET6)
)
LOCAL_ROUTES = ("0.0.0.0/0", "::/0")

_PRE = Base("filter", Hook.PREROUTING, MANGLE)
_OUT_ROUTE = Base("route", Hook.OUTPUT, MANGLE)
_OUT = Base("nat", Hook.OUTPUT, DSTNAT)

_REMEMBER: Rule = (PacketMark(PROXY_MARK, MARK_MASK), MarkConnection(RETURN_MARK, MARK_MASK), Accept())


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What is captured of a pod.

    Attributes:
        dns: Its DNS queries too.
        exclusions: What its owner wants left alone.
        table: Whose rules they are: ``TABLE`` (the agent's) or ``SIDECAR_TABLE``.
    """

    dns: bool = False
    table: str = TABLE
    exclusions: Exclusions = NO_EXCLUSIONS


def capture_plan(capture: Capture) -> Table:
    """The rules of an enrolled pod. Install them only when every port they lead to has a listener."""
    return Table(
        capture.table,
        (
            Chain("pre", _inbound(capture), _PRE),
            Chain("out_route", ((ConnectionMark(RETURN_MARK, MARK_MASK), RestoreMark()),), _OUT_ROUTE),
            Chain("out", _outbound(capture), _OUT),
        ),
    )


def drain_plan() -> Table:
    """The rules of a pod that is leaving: nothing new is captured, what was captured goes on.

    The chain ``out`` stays although it is empty: without a NAT chain conntrack forgets the addresses of
    the connections that it redirected.
    """
    return Table(
        TABLE,
        (
            Chain("pre", (_REMEMBER,), _PRE),
            Chain("out_route", ((ConnectionMark(RETURN_MARK, MARK_MASK), RestoreMark()),), _OUT_ROUTE),
            Chain("out", (), _OUT),
        ),
    )


def closed_plan(capture: Capture) -> Table:
    """The rules of a pod that takes no plaintext and cannot be captured: nobody new comes in but probes.

    Its own connections out go as they are: policy is enforced where they arrive.
    """
    return Table(
        capture.table,
        (
            Chain("pre", (*_spared(capture), (Syn(), ToThisHost(), Drop())), _PRE),
            Chain("out_route", ((ConnectionMark(RETURN_MARK, MARK_MASK), RestoreMark()),), _OUT_ROUTE),
            Chain("out", (), _OUT),
        ),
    )


def _spared(capture: Capture) -> tuple[Rule, ...]:
    """What comes in and is nobody else's business."""
    return (
        _REMEMBER,
        (Interface(Way.IN, "lo"), Accept()),
        *((Address(End.SOURCE, probe), Accept()) for probe in PROBE_SOURCES),
        *((DestinationPort(L4.TCP, port), Accept()) for port in capture.exclusions.inbound_ports),
        *((Address(End.SOURCE, network), Accept()) for network in capture.exclusions.inbound_ranges),
    )


def _inbound(capture: Capture) -> tuple[Rule, ...]:
    captured: Rule = (
        DestinationPort(L4.TCP, HBONE_PORT, negated=True),
        ToThisHost(),
        ToProxy(INBOUND_PORT),
        Accept(),
    )
    # tproxy lets pass what it finds no listener for.
    peers: Rule = (DestinationPort(L4.TCP, HBONE_PORT), Accept())
    nobody_there: Rule = (Syn(), ToThisHost(), Drop())
    return (*_spared(capture), captured, peers, nobody_there)


def _outbound(capture: Capture) -> tuple[Rule, ...]:
    exempt: tuple[tuple[Term, ...], ...] = (
        (PacketMark(PROXY_MARK, MARK_MASK),),
        (PacketMark(RETURN_MARK, MARK_MASK),),
        (Interface(Way.OUT, "lo"),),
        *((Address(End.DESTINATION, probe),) for probe in PROBE_SOURCES),
        *((DestinationPort(L4.TCP, port),) for port in capture.exclusions.outbound_ports),
        *((Address(End.DESTINATION, network),) for network in capture.exclusions.outbound_ranges),
    )
    dns: tuple[Rule, ...] = tuple(
        (DestinationPort(protocol, DNS_PORT), Redirect(DNS_CAPTURE_PORT)) for protocol in L4 if capture.dns
    )
    return (*((*terms, Accept()) for terms in exempt), *dns, (Syn(), Redirect(OUTBOUND_PORT)))
