"""The rule sets in the words of iptables-legacy, for kernels without nf_tables. Pure.

Translated from the very plan that nf_tables gets, so that the two cannot say different things. What differs:

* IPv4 and IPv6 have a table each, and a rule with an address belongs to one of them;
* a transaction is one table: ``mangle`` first, since its rules alone capture nothing of the way out;
* TPROXY takes pure SYNs only: xt_TPROXY drops a packet whose socket it finds and that is not a proxy's,
  where nft's tproxy lets it pass. So a handshake completed by a SYN cookie is not captured here.

Every line is written as ``iptables-legacy-save`` prints it, so that what stands can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from ambient.wire.netlink import AF_INET, AF_INET6
from ambient.wire.nft import (
    L4,
    Accept,
    Address,
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

TABLES = ("mangle", "nat")
PREFIX = "AMBIENT_"
ALL = "0xffffffff"
_SYN = "--tcp-flags FIN,SYN,RST,ACK SYN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The rules of one chain, and from where they are reached."""

    table: str
    hook: str
    chain: str
    rules: tuple[str, ...]

    @property
    def jump(self) -> str:
        """The rule that leads to the chain."""
        return f"-A {self.hook} -j {self.chain}"


def translate(table: Table, family: int) -> tuple[Lines, ...]:
    """The chains of *table* for one family."""
    return tuple(_chain(chain, family) for chain in table.chains)


def install_text(chains: Sequence[Lines], present: str) -> str:
    """What ``iptables-legacy-restore --noflush`` reads to make *chains* stand, whatever stood there.

    Args:
        present: What ``iptables-legacy-save`` printed.
    """
    there = set(present.splitlines())
    text = ""
    for name in TABLES:
        mine = [each for each in chains if each.table == name]
        text += f"*{name}\n" + "".join(f":{each.chain} - [0:0]\n" for each in mine)
        for each in mine:
            text += "".join(f"{rule}\n" for rule in each.rules)
            # A chain that is there already is emptied by naming it; its jump stays.
            text += "" if each.jump in there else f"{each.jump}\n"
        text += "COMMIT\n"
    return text


def remove_text(chains: Sequence[Lines], present: str) -> str:
    """What removes *chains*; "" if none of them is there."""
    there = present.splitlines()
    text = ""
    for name in TABLES:
        mine = [
            each
            for each in chains
            if each.table == name and any(line.startswith(f":{each.chain} ") for line in there)
        ]
        jumps = [each.jump.replace("-A ", "-D ", 1) for each in mine if each.jump in there]
        lines = [*jumps, *(f"-F {each.chain}" for each in mine), *(f"-X {each.chain}" for each in mine)]
        text += f"*{name}\n{''.join(f'{line}{chr(10)}' for line in lines)}COMMIT\n" if mine else ""
    return text


def stands(chains: Sequence[Lines], present: str) -> bool:
    """Whether *present* has exactly the rules of *chains* in our chains, and the jumps to them."""
    lines = present.splitlines()
    ours = [line for line in lines if line.startswith(f"-A {PREFIX}")]
    meant = [rule for name in TABLES for each in chains if each.table == name for rule in each.rules]
    return sorted(ours) == sorted(meant) and all(
        [line for line in ours if line.startswith(f"-A {each.chain} ")] == list(each.rules)
        and each.jump in lines
        for each in chains
    )


def ours(chains: Sequence[Lines], present: str) -> list[str]:
    """What *present* has of ours: jumps and rules of *chains* in their order, then what is not theirs."""
    lines = present.splitlines()
    found: list[str] = []
    for each in chains:
        found += [f"-t {each.table} {each.jump}"] if each.jump in lines else []
        found += [line for line in lines if line.startswith(f"-A {each.chain} ")]
    named = {each.chain for each in chains}
    others = [line for line in lines if line.startswith(f"-A {PREFIX}") and line.split()[1] not in named]
    return found + others


def is_there(present: str) -> bool:
    """Whether *present* has a chain of ours."""
    return any(line.startswith(f":{PREFIX}") for line in present.splitlines())


def _chain(chain: Chain, family: int) -> Lines:
    if chain.base is None:
        raise ValueError(f"chain {chain.name} is reached from no hook")
    hook = "PREROUTING" if chain.base.hook is Hook.PREROUTING else "OUTPUT"
    name = f"{PREFIX}{chain.name.upper()}"
    rules = tuple(f"-A {name} {line}" for rule in chain.rules for line in _rule(rule, family))
    return Lines(table="nat" if chain.base.kind == "nat" else "mangle", hook=hook, chain=name, rules=rules)


def _rule(rule: Rule, family: int) -> Iterable[str]:
    if any(isinstance(term, Address) and _family(term.network) != family for term in rule):
        return
    targets = [target for term in rule if (target := _target(term, family))]
    if any(isinstance(term, ToProxy) for term in rule):
        targets = targets[:1]  # TPROXY accepts by itself.
    match = _match(rule)
    for target in targets:
        yield f"{match} -j {target}".strip()


def _match(rule: Rule) -> str:
    """The conditions, in the order in which iptables-save prints them."""
    addresses = [_address(term) for term in rule if isinstance(term, Address)]
    interfaces = [
        f"{'-i' if term.way is Way.IN else '-o'} {term.name}" for term in rule if isinstance(term, Interface)
    ]
    others = [text for term in rule if (text := _extension(term))]
    return " ".join([*addresses, *interfaces, *_transport(rule), *others])


def _transport(rule: Rule) -> list[str]:
    ports = [term for term in rule if isinstance(term, DestinationPort)]
    syn = any(isinstance(term, Syn | ToProxy) for term in rule)
    if not ports and not syn:
        return []
    protocol = L4(ports[0].protocol).name.lower() if ports else "tcp"
    words = [f"-p {protocol}", f"-m {protocol}"]
    words += [f"{'! ' if port.negated else ''}--dport {port.port}" for port in ports]
    return [*words, _SYN] if syn else words


def _extension(term: Term) -> str:
    match term:
        case PacketMark(value, mask):
            return f"-m mark --mark {value:#x}/{mask:#x}"
        case ConnectionMark(value, mask):
            return f"-m connmark --mark {value:#x}/{mask:#x}"
        case ToThisHost():
            return "-m addrtype --dst-type LOCAL"
        case _:
            return ""


def _target(term: Term, family: int) -> str:
    match term:
        case Accept():
            return "ACCEPT"
        case Drop():
            return "DROP"
        case MarkConnection(value, mask):
            return f"CONNMARK --set-xmark {value:#x}/{mask:#x}"
        case RestoreMark():
            return f"CONNMARK --restore-mark --nfmask {ALL} --ctmask {ALL}"
        case Redirect(port):
            return f"REDIRECT --to-ports {port}"
        case ToProxy(port):
            anywhere = "0.0.0.0" if family == AF_INET else "::"
            return f"TPROXY --on-port {port} --on-ip {anywhere} --tproxy-mark 0x0/0x0"
        case PacketMark() | ConnectionMark() | ToThisHost() | Syn() | Address() | Interface():
            return ""
        case DestinationPort():
            return ""
        case _:
            raise TypeError(f"no term of a pod's rules: {term!r}")


def _address(term: Address) -> str:
    return f"{'-s' if term.end is End.SOURCE else '-d'} {ip_network(term.network, strict=False)}"


def _family(network: str) -> int:
    return AF_INET6 if ":" in network else AF_INET
