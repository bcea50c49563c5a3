"""Rule sets as the text that ``nft -f`` reads: for people, and as a second opinion in tests."""

from __future__ import annotations

from ambient.wire.nft import (
    L4,
    Accept,
    Address,
    Base,
    Chain,
    Chance,
    ConnectionMark,
    Count,
    DestinationPort,
    Drop,
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
)

TRANSPORT_GUARD = "meta l4proto { tcp, udp }"


def format_table(table: Table) -> str:
    """The table as one block; loading it adds to a standing table of that name."""
    # Chains that others lead to come first: nft resolves names in order.
    ordered = sorted(table.chains, key=lambda chain: chain.base is not None)
    return f"table inet {table.name} {{\n{''.join(map(_chain, ordered))}}}\n"


def format_replacement(table: Table) -> str:
    """Text that puts *table* in the place of whatever bears its name, in one transaction."""
    return f"{format_deletion(table.name)}{format_table(table)}"


def format_refill(table: Table) -> str:
    """Text that empties the standing chains of *table* and fills them anew, in one transaction."""
    flushes = (f"flush chain inet {table.name} {chain.name}\n" for chain in table.chains)
    return f"{format_table(Table(table.name, _bare(table)))}{''.join(flushes)}{format_table(table)}"


def format_deletion(name: str) -> str:
    """Text after which there is no table *name*, whether or not there was."""
    return f"table inet {name}\ndelete table inet {name}\n"


def format_rule(rule: Rule) -> str:
    """One rule on one line."""
    words = " ".join(map(_term, rule))
    # Which protocol it is was asked by the rule that led here; nft wants to read it in this one too.
    unasked = any(isinstance(term, Translate) for term in rule) and not any(
        isinstance(term, DestinationPort) for term in rule
    )
    return f"{TRANSPORT_GUARD} {words}" if unasked else words


def _bare(table: Table) -> tuple[Chain, ...]:
    return tuple(Chain(chain.name, (), chain.base) for chain in table.chains)


def _chain(chain: Chain) -> str:
    lines = [_base(chain.base)] if chain.base is not None else []
    lines += map(format_rule, chain.rules)
    return f"  chain {chain.name} {{\n{''.join(f'    {line}{chr(10)}' for line in lines)}  }}\n"


def _base(base: Base) -> str:
    return f"type {base.kind} hook {base.hook.name.lower()} priority {base.priority}; policy accept;"


def _term(term: Term) -> str:
    match term:
        case PacketMark(value, mask):
            return f"meta mark & {mask:#x} == {value:#x}"
        case ConnectionMark(value, mask):
            return f"ct mark & {mask:#x} == {value:#x}"
        case Translated():
            return "ct status dnat"
        case Interface(way, name):
            return f'{way.value} "{name}"'
        case Address(end, network):
            return f"{_family(network)} {end.value} {network}"
        case Transport(protocol):
            return f"meta l4proto {L4(protocol).name.lower()}"
        case DestinationPort(protocol, port, negated):
            return f"{L4(protocol).name.lower()} dport {'!= ' if negated else ''}{port}"
        case Syn():
            return "tcp flags & (fin|syn|rst|ack) == syn"
        case ToThisHost():
            return "fib daddr type local"
        case Chance(of):
            return f"numgen random mod {of} 0"
        case _:
            return _statement(term)


def _statement(term: Term) -> str:
    match term:
        case Accept():
            return "accept"
        case Drop():
            return "drop"
        case Goto(chain):
            return f"goto {chain}"
        case Count():
            return "counter"
        case MarkConnection(value, mask):
            return f"ct mark set ct mark & {~mask & 0xFFFFFFFF:#x} | {value:#x}"
        case RestoreMark():
            return "meta mark set ct mark"
        case ToProxy(port):
            return f"tproxy to :{port}"
        case Redirect(port):
            return f"redirect to :{port}"
        case Translate(ip, port):
            return f"dnat {_family(ip)} to {f'[{ip}]' if ':' in ip else ip}:{port}"
        case Masquerade():
            return "masquerade"
        case Reject(reset):
            return f"reject with {'tcp reset' if reset else 'icmpx type port-unreachable'}"
        case _:
            raise TypeError(f"not a term of a rule: {term!r}")


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"
