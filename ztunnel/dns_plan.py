"""What a captured pod is told when it looks up a name: an answer from the mesh, or "ask upstream".

Pure. One question is tried under several names, because a resolver completes short names with its search
list before it asks for what the application wrote; whoever sees through that saves it the round trips.

Source: Istio's ztunnel ``src/dns/server.rs``. Two differences: pods are found under the names of the
Kubernetes DNS specification too (there they are asked upstream), and addresses are turned, not shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ambient.model.mesh import Mesh
from ambient.model.names import addresses_of, addresses_of_service, of_family
from ambient.model.service import CLUSTER_DOMAIN, Service
from ambient.model.workload import Workload
from ambient.wire.dns import CLASS_IN, TYPE_A, TYPE_AAAA, Answer, Query, Rcode

# resolv.conf(5): MAXNS.
MAX_NAMESERVERS = 3


@dataclass(frozen=True, slots=True)
class Alias:
    """A name under which the question may be known.

    Attributes:
        target: What was left after a search domain was taken off, or "" if none was.
    """

    name: str
    target: str = ""


def resolve(
    mesh: Mesh, me: Workload | None, query: Query, chance: float, preferred_namespace: str = ""
) -> Answer | None:
    """Answer *query* of the pod *me*; None: it is not ours to answer, forward it.

    Args:
        chance: In [0, 1): at which address a service with several begins.
        preferred_namespace: Whose services win over others' of the same name, after the pod's own.
    """
    if query.opcode != 0:
        return Answer(Rcode.NOTIMP)
    if me is None:
        return Answer(Rcode.SERVFAIL)
    if query.kind not in (TYPE_A, TYPE_AAAA) or query.kind_class != CLASS_IN:
        return None
    namespaces = (me.namespace, preferred_namespace)
    for alias, found in _known(mesh, query.name, namespaces):
        own = of_family(found, ipv6=query.kind == TYPE_AAAA)
        return Answer(Rcode.NOERROR, turned(own, chance), alias.target if own else "")
    return None


def _known(mesh: Mesh, name: str, namespaces: tuple[str, str]) -> Iterator[tuple[Alias, tuple[str, ...]]]:
    """What *name* may mean, the best first."""
    candidates = tuple(aliases(name, namespaces[0]))
    for alias in candidates:
        if (found := _addresses(mesh, alias.name, namespaces)) is not None:
            yield alias, found
    for alias in candidates:
        for wildcard in wildcards(alias.name):
            if (found := _addresses(mesh, wildcard, namespaces)) is not None:
                # The name that was asked has the address: a CNAME to a wildcard would be none.
                yield Alias(name), found


def aliases(name: str, namespace: str) -> Iterator[Alias]:
    """*name*; what Kubernetes lets one write short; and both of it without the pod's search domains."""
    yield Alias(name)
    for full in _expansions(name, namespace):
        yield Alias(full)
    for domain in search_domains(namespace):
        short = name.removesuffix(f".{domain}")
        if short not in (name, ""):
            yield Alias(short, short)
            for full in _expansions(short, namespace):
                if full != name:
                    yield Alias(full, full)


def search_domains(namespace: str) -> tuple[str, ...]:
    """What kubelet writes into a pod's resolv.conf."""
    return f"{namespace}.svc.{CLUSTER_DOMAIN}", f"svc.{CLUSTER_DOMAIN}", CLUSTER_DOMAIN


def _expansions(name: str, namespace: str) -> tuple[str, ...]:
    match name.split("."):
        case [_]:
            return (f"{name}.{namespace}.svc.{CLUSTER_DOMAIN}",)
        case [_, _]:
            return f"{name}.svc.{CLUSTER_DOMAIN}", f"{name}.{namespace}.svc.{CLUSTER_DOMAIN}"
        case [_, _, "svc"]:
            return (f"{name}.{CLUSTER_DOMAIN}",)
        case [_, _, "svc", first] if CLUSTER_DOMAIN.startswith(f"{first}."):
            return (f"{name}.{CLUSTER_DOMAIN.removeprefix(f'{first}.')}",)
        case _:
            return ()


def wildcards(name: str) -> Iterator[str]:
    """``*.b.c`` and ``*.c`` for ``a.b.c``, the most specific first."""
    rest = name.partition(".")[2]
    while rest:
        yield f"*.{rest}"
        rest = rest.partition(".")[2]


def turned(addresses: tuple[str, ...], chance: float) -> tuple[str, ...]:
    """The same addresses, beginning elsewhere: most clients take the first."""
    start = int(chance * len(addresses))
    return addresses[start:] + addresses[:start]


def _addresses(mesh: Mesh, name: str, namespaces: tuple[str, str]) -> tuple[str, ...] | None:
    services = mesh.services_named(name)
    if not services:
        return addresses_of(mesh, name)
    service = min(services, key=lambda each: _rank(each, namespaces))
    if not service.addresses and not name.endswith(f".svc.{CLUSTER_DOMAIN}"):
        return None  # Headless, and its name somebody else's: its addresses are there.
    return addresses_of_service(mesh, service)


def _rank(service: Service, namespaces: tuple[str, str]) -> tuple[int, str]:
    own, preferred = namespaces
    order = 0 if service.namespace == own else 1 if service.namespace == preferred else 2
    return order, service.key


def nameservers(resolv_conf: str) -> tuple[str, ...]:
    """The servers that a resolv.conf names; the resolver's default is left out: it is this very port."""
    found = [line.split()[1:2] for line in resolv_conf.splitlines() if line.split()[:1] == ["nameserver"]]
    # A scope (fe80::1%eth0) means an interface of this process's network, not of the pod's.
    return tuple(each[0] for each in found if each and "%" not in each[0])[:MAX_NAMESERVERS]
