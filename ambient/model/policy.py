"""Who may talk to whom at layer 4: policies as values, and the decision.

Floor 0. The shape is that of Istio's ``authorization.proto`` as ztunnel evaluates it: rules are ORed,
the clauses of a rule ANDed, the matches of a clause ORed, the fields of a match ANDed, the values of
a field ORed. No rules never match; a rule without clauses and a clause without matches do; a match
without fields never does.

One difference, on the safe side: in an ALLOW policy, a negated condition on the identity does not
hold for a peer that has none (plaintext). ztunnel lets it pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from ambient.errors import ConfigError, Denied
from ambient.model.identity import SpiffeId
from ambient.model.network import contains


class Action(Enum):
    """What a policy does when it matches."""

    ALLOW = "ALLOW"
    DENY = "DENY"


class Scope(Enum):
    """Which workloads a policy guards."""

    GLOBAL = "GLOBAL"
    NAMESPACE = "NAMESPACE"
    WORKLOAD = "WORKLOAD"  # those that list it in Workload.authorization_policies


class MatchKind(Enum):
    """How a text is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENCE = "presence"  # any text but the empty one


@dataclass(frozen=True, slots=True)
class StringMatch:
    """One value of a text condition. Nothing in *value* is a wildcard."""

    kind: MatchKind
    value: str = ""

    @classmethod
    def parse(cls, text: str) -> StringMatch:
        """Read Istio's form: ``web``, ``web*``, ``*web``, ``*``.

        Raises:
            ConfigError: empty, or a star that is not the first or last character.
        """
        if text == "*":
            return cls(MatchKind.PRESENCE)
        if text.endswith("*"):
            match = cls(MatchKind.PREFIX, text[:-1])
        elif text.startswith("*"):
            match = cls(MatchKind.SUFFIX, text[1:])
        else:
            match = cls(MatchKind.EXACT, text)
        if not match.value or "*" in match.value:
            raise ConfigError(f"{text!r} is not a name, 'prefix*', '*suffix' or '*'")
        return match

    def matches(self, text: str) -> bool:
        """Whether *text* meets the condition."""
        match self.kind:
            case MatchKind.EXACT:
                return text == self.value
            case MatchKind.PREFIX:
                return text.startswith(self.value)
            case MatchKind.SUFFIX:
                return text.endswith(self.value)
            case _:  # PRESENCE
                return bool(text)

    def __str__(self) -> str:
        match self.kind:
            case MatchKind.PREFIX:
                return f"{self.value}*"
            case MatchKind.SUFFIX:
                return f"*{self.value}"
            case MatchKind.PRESENCE:
                return "*"
            case _:  # EXACT
                return self.value


@dataclass(frozen=True, slots=True)
class Connection:
    """The facts about one inbound connection, as seen on the destination's node.

    Attributes:
        source_identity: From the peer's certificate; None for plaintext.
        source_ip: Canonical text.
        destination_ip: The pod's own address, canonical text.
        destination_port: The application's port, never 15008.
    """

    source_identity: SpiffeId | None
    source_ip: str
    destination_ip: str
    destination_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Conditions that must all hold.

    Attributes:
        principals: Compared without ``spiffe://``.
        service_accounts: ``namespace/account``; the trust domain is ignored.
        source_ips: Networks as canonical CIDR text, for example ``"10.0.0.0/8"``; so destination_ips.
    """

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[str, ...] = ()
    not_source_ips: tuple[str, ...] = ()
    destination_ips: tuple[str, ...] = ()
    not_destination_ips: tuple[str, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()

    def is_empty(self) -> bool:
        """Whether it has no condition at all, and so never matches."""
        return self == _EMPTY

    def matches(self, connection: Connection, *, needs_identity: bool) -> bool:
        """Whether every condition holds.

        Args:
            connection: The facts.
            needs_identity: Negated identity conditions fail for a peer without identity.
        """
        if self.is_empty():
            return False
        return (
            self._port_matches(connection.destination_port)
            and self._identity_matches(connection.source_identity, needs_identity)
            and _address_matches(self.source_ips, self.not_source_ips, connection.source_ip)
            and _address_matches(self.destination_ips, self.not_destination_ips, connection.destination_ip)
        )

    def _port_matches(self, port: int) -> bool:
        if self.destination_ports and port not in self.destination_ports:
            return False
        return port not in self.not_destination_ports

    def _identity_matches(self, identity: SpiffeId | None, needs_identity: bool) -> bool:
        if identity is None:
            if self.namespaces or self.service_accounts or self.principals:
                return False
            negated = self.not_namespaces or self.not_service_accounts or self.not_principals
            return not (needs_identity and negated)
        account = f"{identity.namespace}/{identity.service_account}"
        if self.service_accounts and account not in self.service_accounts:
            return False
        return (
            account not in self.not_service_accounts
            and _text_matches(self.namespaces, self.not_namespaces, identity.namespace)
            and _text_matches(self.principals, self.not_principals, identity.principal)
        )


_EMPTY = Match()

Clause = tuple[Match, ...]
Rule = tuple[Clause, ...]

# A rule that always matches: no clause limits it.
ANYTHING: Rule = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy, ready to be evaluated.

    Attributes:
        key: ``namespace/name``.
        rules: ORed. Empty: never matches, so an ALLOW policy without rules lets nobody in.
    """

    key: str
    namespace: str
    action: Action
    scope: Scope
    rules: tuple[tuple[tuple[Match, ...], ...], ...] = ()

    def matches(self, connection: Connection) -> bool:
        """Whether any rule holds for *connection*."""
        needs_identity = self.action is Action.ALLOW
        return any(
            all(
                not clause or any(m.matches(connection, needs_identity=needs_identity) for m in clause)
                for clause in rule
            )
            for rule in self.rules
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome with its reason. It has no truth value on purpose: ask for ``allowed``."""

    allowed: bool
    reason: str
    policy: str = ""


def deny_all(key: str) -> Policy:
    """The policy that stands in for one that is named but not known: what is unknown is refused."""
    namespace = key.partition("/")[0]
    return Policy(key=key, namespace=namespace, action=Action.DENY, scope=Scope.WORKLOAD, rules=(ANYTHING,))


def decide(policies: Iterable[Policy], connection: Connection) -> Verdict:
    """Decide whether *connection* may reach the workload that *policies* guard.

    The order of *policies* changes nothing: among several that match, the smallest key is reported.

    Returns:
        The verdict, for whoever explains it. Code that guards a door calls ``enforce``.
    """
    denying: list[str] = []
    allowing: list[str] = []
    guarded = False
    for policy in policies:
        guarded = guarded or policy.action is Action.ALLOW
        if policy.matches(connection):
            (denying if policy.action is Action.DENY else allowing).append(policy.key)
    if denying:
        return Verdict(False, f"explicitly denied by: {min(denying)}", min(denying))
    if not guarded:
        return Verdict(True, "no allow policy guards the workload")
    if allowing:
        return Verdict(True, f"allowed by: {min(allowing)}", min(allowing))
    return Verdict(False, "allow policies exist, but none allowed")


def enforce(policies: Iterable[Policy], connection: Connection) -> None:
    """Return if *connection* may pass; there is no result to forget to check.

    Raises:
        Denied: it may not; ``Denied.reason`` is the access-record sentence.
    """
    verdict = decide(policies, connection)
    if not verdict.allowed:
        raise Denied(verdict.reason)


def _text_matches(wanted: tuple[StringMatch, ...], unwanted: tuple[StringMatch, ...], text: str) -> bool:
    if wanted and not any(match.matches(text) for match in wanted):
        return False
    return not any(match.matches(text) for match in unwanted)


def _address_matches(wanted: tuple[str, ...], unwanted: tuple[str, ...], ip: str) -> bool:
    if wanted and not any(contains(block, ip) for block in wanted):
        return False
    return not any(contains(block, ip) for block in unwanted)
