"""nf_tables values as netlink messages: expressions, and batches that are one transaction.

Floor 1: sans-IO. A batch sent as one datagram takes effect as a whole or not at all. Only its first
message asks for an acknowledgement; refusals are answered in any case.

Source: Linux ``nf_tables.h`` (attribute numbers), checked against ``nft list ruleset``. Numbers are in
network order (``be32``) but for the contents of registers, where marks are in the machine's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from ambient.wire.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Request,
    attribute,
    be32,
    encode,
    nested,
    string,
)
from ambient.wire.nft import (
    Accept,
    Address,
    Chain,
    Chance,
    ConnectionMark,
    Count,
    DestinationPort,
    Drop,
    End,
    Goto,
    Interface,
    MarkConnection,
    Masquerade,
    PacketMark,
    Redirect,
    Reject,
    RestoreMark,
    Rule,
    Syn,
    Table,
    Term,
    ToProxy,
    ToThisHost,
    Translate,
    Translated,
    Transport,
    Way,
)

NFPROTO_UNSPEC, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 0, 1, 2, 10
_SUBSYSTEM = 10 << 8
NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE = _SUBSYSTEM | 0, _SUBSYSTEM | 2
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, NFT_MSG_DELCHAIN = _SUBSYSTEM | 3, _SUBSYSTEM | 4, _SUBSYSTEM | 5
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = _SUBSYSTEM | 6, _SUBSYSTEM | 7, _SUBSYSTEM | 8
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
_NFNL_SUBSYS_NFTABLES = 10

NFTA_TABLE_NAME, NFTA_TABLE_FLAGS = 1, 2
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 3, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 1, 2

# Registers of 16 bytes; 0 takes verdicts.
_VERDICT, _FIRST, _SECOND = 0, 1, 2
_EQUAL, _UNEQUAL = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_MARK, _META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 3, 6, 7, 15, 16
_CT_STATUS, _CT_MARK = 2, 3
_IPS_DST_NAT = 1 << 5
_FIB_RESULT_ADDRTYPE, _FIB_F_DADDR, _RTN_LOCAL = 3, 2, 2
_NAT_DESTINATION, _NAT_PORT_GIVEN = 1, 2
_NUMGEN_RANDOM = 1
_REJECT_TCP_RESET, _REJECT_ICMPX, _ICMPX_PORT_UNREACHABLE = 1, 2, 1
_NF_DROP, _NF_ACCEPT, _NFT_GOTO = 0, 1, -4 & 0xFFFFFFFF
# Byte 13 of a TCP header: FIN 1, SYN 2, RST 4, ACK 16.
_FLAGS_OFFSET, _FLAGS_MASK, _SYN = 13, b"\x17", b"\x02"
_INTERFACE_NAME_BYTES = 16
# (offset, length) of an address in its header: source and destination.
_OFFSETS = {
    (4, End.SOURCE): 12,
    (4, End.DESTINATION): 16,
    (6, End.SOURCE): 8,
    (6, End.DESTINATION): 24,
}


def create(table: Table) -> list[Request]:
    """A batch that makes *table*; refused with EEXIST, nothing changed, if it stands.

    By far the fastest way (0.3 ms against 15): nothing is deleted, so the kernel need not wait until
    nobody looks at the old rules any more.
    """
    return _batch([_table(table.name, NLM_F_CREATE | NLM_F_EXCL), *_contents(table)])


def refill(table: Table) -> list[Request]:
    """A batch that gives a standing *table* these rules; its base chains stay registered all the while.

    That is what keeps translated connections alive: conntrack's entries die with their last NAT chain.
    Chains that *table* does not name stay as they are.
    """
    chains = [_chain(table.name, chain) for chain in table.chains]
    flushes = [_flush(table.name, chain.name) for chain in table.chains]
    rules = [_rule(table.name, chain.name, rule) for chain in table.chains for rule in chain.rules]
    return _batch([_table(table.name, NLM_F_CREATE), *chains, *flushes, *rules])


def replace(table: Table) -> list[Request]:
    """A batch that puts *table* in the place of whatever bears its name."""
    bare = _table(table.name, NLM_F_CREATE)
    return _batch([bare, _delete_table(table.name), bare, *_contents(table)])


def delete(name: str) -> list[Request]:
    """A batch after which there is no table *name*, whether or not there was."""
    return _batch([_table(name, NLM_F_CREATE), _delete_table(name)])


def slices(batch: Sequence[Request], max_bytes: int) -> list[list[Request]]:
    """*batch* as several, each of about *max_bytes*: for a kernel that does not take it in one piece.

    Each is a transaction of its own, in order, so in between the first rules stand without the last.
    """
    parts: list[list[Request]] = [[]]
    size = 0
    for request in batch[1:-1]:
        size += len(encode(request, 0))
        if parts[-1] and size > max_bytes:
            parts.append([])
            size = len(encode(request, 0))
        parts[-1].append(request)
    return [_batch(part) for part in parts]


def dump_rules(table: str) -> Request:
    """Ask for all rules of a table; none if there is no such table."""
    body = _family(NFPROTO_INET) + string(NFTA_RULE_TABLE, table)
    return Request(NFT_MSG_GETRULE, body, f"list rules of {table}", NLM_F_DUMP)


def dump_chains(family: int = NFPROTO_INET) -> Request:
    """Ask for all chains of *family*; ``NFPROTO_UNSPEC`` is every one."""
    return Request(NFT_MSG_GETCHAIN, _family(family), "list chains", NLM_F_DUMP)


def expressions(rule: Rule) -> list[tuple[str, bytes]]:
    """The kernel expressions that *rule* means, as names and attributes."""
    return [each for term in rule for each in _expressions(term)]


def _contents(table: Table) -> list[Request]:
    chains = [_chain(table.name, chain) for chain in table.chains]
    return chains + [_rule(table.name, chain.name, rule) for chain in table.chains for rule in chain.rules]


def _batch(requests: Sequence[Request]) -> list[Request]:
    # With one acknowledgement the caller knows that the kernel has answered at all.
    first = requests[0]
    asking = Request(first.kind, first.body, first.what, first.flags | NLM_F_ACK)
    mark = _family(0, _NFNL_SUBSYS_NFTABLES)
    return [
        Request(NFNL_MSG_BATCH_BEGIN, mark, first.what, 0),
        asking,
        *requests[1:],
        Request(NFNL_MSG_BATCH_END, mark, first.what, 0),
    ]


def _family(family: int, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)


def _table(name: str, flags: int) -> Request:
    body = _family(NFPROTO_INET) + string(NFTA_TABLE_NAME, name) + be32(NFTA_TABLE_FLAGS, 0)
    return Request(NFT_MSG_NEWTABLE, body, f"create table inet {name}", flags)


def _delete_table(name: str) -> Request:
    body = _family(NFPROTO_INET) + string(NFTA_TABLE_NAME, name)
    return Request(NFT_MSG_DELTABLE, body, f"delete table inet {name}", 0)


def _chain(table: str, chain: Chain) -> Request:
    body = _family(NFPROTO_INET) + string(NFTA_CHAIN_TABLE, table) + string(NFTA_CHAIN_NAME, chain.name)
    if chain.base is not None:
        priority = attribute(NFTA_HOOK_PRIORITY, struct.pack("!i", chain.base.priority))
        body += nested(NFTA_CHAIN_HOOK, be32(NFTA_HOOK_HOOKNUM, chain.base.hook), priority)
        body += be32(NFTA_CHAIN_POLICY, _NF_ACCEPT) + string(NFTA_CHAIN_TYPE, chain.base.kind)
    return Request(NFT_MSG_NEWCHAIN, body, f"create chain {chain.name} in {table}", NLM_F_CREATE)


def _flush(table: str, chain: str) -> Request:
    body = _family(NFPROTO_INET) + string(NFTA_RULE_TABLE, table) + string(NFTA_RULE_CHAIN, chain)
    return Request(NFT_MSG_DELRULE, body, f"empty chain {chain} in {table}", 0)


def _rule(table: str, chain: str, rule: Rule) -> Request:
    listed = nested(NFTA_RULE_EXPRESSIONS, *(_element(*each) for each in expressions(rule)))
    body = _family(NFPROTO_INET) + string(NFTA_RULE_TABLE, table) + string(NFTA_RULE_CHAIN, chain) + listed
    flags = NLM_F_CREATE | NLM_F_APPEND
    return Request(NFT_MSG_NEWRULE, body, f"add a rule to chain {chain} in {table}", flags)


def _element(name: str, values: bytes) -> bytes:
    return nested(NFTA_LIST_ELEM, string(NFTA_EXPR_NAME, name), nested(NFTA_EXPR_DATA, values))


def _expressions(term: Term) -> Iterable[tuple[str, bytes]]:
    match term:
        case PacketMark(value, mask):
            return [_meta(_META_MARK), _and(_host(mask)), _compare(_host(value))]
        case ConnectionMark(value, mask):
            return [_ct_mark(), _and(_host(mask)), _compare(_host(value))]
        case Translated():
            status = ("ct", be32(1, _FIRST) + be32(2, _CT_STATUS))
            return [status, _and(_host(_IPS_DST_NAT)), _compare(_host(0), _UNEQUAL)]
        case Interface(way, name):
            key = _META_IIFNAME if way is Way.IN else _META_OIFNAME
            return [_meta(key), _compare(name.encode().ljust(_INTERFACE_NAME_BYTES, b"\0"))]
        case Address(end, network):
            return _address(end, ip_network(network))
        case Transport(protocol):
            return _protocol(protocol)
        case DestinationPort(protocol, port, negated):
            compared = _compare(_port(port), _UNEQUAL if negated else _EQUAL)
            return [*_protocol(protocol), _payload(_TRANSPORT_HEADER, 2, 2), compared]
        case Syn():
            flags = _payload(_TRANSPORT_HEADER, _FLAGS_OFFSET, 1)
            return [*_protocol(6), flags, _and(_FLAGS_MASK), _compare(_SYN)]
        case ToThisHost():
            return [_fib_type(), _compare(_host(_RTN_LOCAL))]
        case Chance(of):
            return [_random(of), _compare(_host(0))]
        case _:
            return _statement(term)


def _statement(term: Term) -> Iterable[tuple[str, bytes]]:
    match term:
        case Accept():
            return [_verdict(_NF_ACCEPT)]
        case Drop():
            return [_verdict(_NF_DROP)]
        case Goto(chain):
            return [_verdict(_NFT_GOTO, chain)]
        case Count():
            return [("counter", b"")]
        case MarkConnection(value, mask):
            kept = _and(_host(~mask & 0xFFFFFFFF), _host(value))
            return [_ct_mark(), kept, ("ct", be32(2, _CT_MARK) + be32(4, _FIRST))]
        case RestoreMark():
            return [_ct_mark(), ("meta", be32(2, _META_MARK) + be32(3, _FIRST))]
        case ToProxy(port):
            return [_immediate(_port(port)), ("tproxy", be32(1, 0) + be32(3, _FIRST))]
        case Redirect(port):
            return [_immediate(_port(port)), ("redir", be32(1, _FIRST) + be32(3, _NAT_PORT_GIVEN))]
        case Translate(ip, port):
            return _translate(ip, port)
        case Masquerade():
            return [("masq", b"")]
        case Reject(reset):
            code = attribute(2, bytes((0 if reset else _ICMPX_PORT_UNREACHABLE,)))
            return [("reject", be32(1, _REJECT_TCP_RESET if reset else _REJECT_ICMPX) + code)]
        case _:
            raise TypeError(f"not a term of a rule: {term!r}")


def _address(end: End, network: IPv4Network | IPv6Network) -> list[tuple[str, bytes]]:
    family = NFPROTO_IPV4 if network.version == 4 else NFPROTO_IPV6
    raw = network.network_address.packed
    # As nft does it, so that each reads the other's rules as its own: of whole bytes only those are compared.
    size = network.prefixlen // 8 if network.prefixlen and network.prefixlen % 8 == 0 else len(raw)
    found = [
        _meta(_META_NFPROTO),
        _compare(bytes((family,))),
        _payload(_NETWORK_HEADER, _OFFSETS[network.version, end], size),
    ]
    if network.prefixlen < network.max_prefixlen and size == len(raw):
        found.append(_and(network.netmask.packed))
    return [*found, _compare(raw[:size])]


def _translate(ip: str, port: int) -> list[tuple[str, bytes]]:
    address = ip_address(ip)
    family = NFPROTO_IPV4 if address.version == 4 else NFPROTO_IPV6
    values = be32(1, _NAT_DESTINATION) + be32(2, family) + be32(3, _FIRST) + be32(5, _SECOND)
    return [_immediate(address.packed), _immediate(_port(port), _SECOND), ("nat", values)]


def _protocol(number: int) -> list[tuple[str, bytes]]:
    return [_meta(_META_L4PROTO), _compare(bytes((number,)))]


def _meta(key: int) -> tuple[str, bytes]:
    return "meta", be32(2, key) + be32(1, _FIRST)


def _ct_mark() -> tuple[str, bytes]:
    return "ct", be32(1, _FIRST) + be32(2, _CT_MARK)


def _fib_type() -> tuple[str, bytes]:
    return "fib", be32(1, _FIRST) + be32(2, _FIB_RESULT_ADDRTYPE) + be32(3, _FIB_F_DADDR)


def _random(of: int) -> tuple[str, bytes]:
    return "numgen", be32(1, _FIRST) + be32(2, of) + be32(3, _NUMGEN_RANDOM) + be32(4, 0)


def _payload(header: int, offset: int, length: int) -> tuple[str, bytes]:
    return "payload", be32(1, _FIRST) + be32(2, header) + be32(3, offset) + be32(4, length)


def _compare(raw: bytes, operator: int = _EQUAL) -> tuple[str, bytes]:
    return "cmp", be32(1, _FIRST) + be32(2, operator) + nested(3, attribute(1, raw))


def _and(mask: bytes, then_xor: bytes = b"") -> tuple[str, bytes]:
    values = be32(1, _FIRST) + be32(2, _FIRST) + be32(3, len(mask))
    values += nested(4, attribute(1, mask)) + nested(5, attribute(1, then_xor or bytes(len(mask))))
    return "bitwise", values


def _immediate(raw: bytes, register: int = _FIRST) -> tuple[str, bytes]:
    return "immediate", be32(1, register) + nested(2, attribute(1, raw))


def _verdict(code: int, chain: str = "") -> tuple[str, bytes]:
    inner = be32(1, code) + (string(2, chain) if chain else b"")
    # The kernel dumps the inner nest without its flag; so do we, for byte-wise comparison.
    return "immediate", be32(1, _VERDICT) + nested(2, attribute(2, inner))


def _host(value: int) -> bytes:
    return struct.pack("=I", value)


def _port(port: int) -> bytes:
    return struct.pack("!H", port)
