"""Requests: routed by host, sent on, recorded and counted. The same for a sidecar and a waypoint."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeAlias

from ambient.engine.http_forward import Answer, Forward, Forwarder, Upstream
from ambient.engine.http_server import HttpServer, ServerConnection
from ambient.model.address import format_hostport
from ambient.model.policy import decide
from ambient.model.route import Pass, Refuse, Route, route_request
from ambient.model.workload import Workload
from ambient.wire.http1_heads import Refused, RequestHead
from waypoint.client import Client
from waypoint.context import Context
from waypoint.journal import quoted
from waypoint.metrics import Requests, Series
from waypoint.upstreams import Kind, Target, Upstreams

# Envoy's header about the peer's certificate: an upstream believes it, so only we may write it.
CLIENT_CERTIFICATE = b"x-forwarded-client-cert"
# Upgrades that a server may ignore by answering in HTTP/1.1 (RFC 9110 section 7.8).
# Hosts are a client's to make up; beyond this many the memory starts anew. Picked, not measured.
MAX_KNOWN_HOSTS = 1024

_IGNORED_UPGRADES = frozenset((b"h2c", b"tls/1.0"))

Deciding: TypeAlias = Callable[[Client, RequestHead], "Route | Answer"]


class HttpProxy:
    """Carries the requests of one kind of client connection.

    Args:
        route: Where a request goes; asked once per attempt.
    """

    def __init__(self, context: Context, upstreams: Upstreams, route: Deciding) -> None:
        self._context = context
        self._upstreams = upstreams
        self._route = route
        self._nowhere: dict[tuple[object, ...], Series] = {}
        forwarder = Forwarder(context.reactor.now, upstreams.http, self._decide, self._record)
        self.server = HttpServer(context.reactor, forwarder.on_request, on_refused=self._refused)

    def _decide(self, forward: Forward) -> Upstream | Answer:
        head = forward.head
        if head.upgrade and head.upgrade.lower() not in _IGNORED_UPGRADES:
            return Answer(501, "upgrade is not carried here", "NR")
        client: Client = forward.connection.context
        route = self._route(client, head)
        if isinstance(route, Refuse):
            return Answer(503, route.reason, "UH")
        if isinstance(route, Answer):
            return route
        target = self._upstreams.target(route)
        return Upstream(target, _own_headers(head, client), target)

    def _record(self, forward: Forward) -> None:
        client: Client = forward.connection.context
        upstream = forward.upstream
        target: Target | None = upstream.target if upstream is not None else None
        table = target.series if target is not None else self._nowhere
        key = (client.name, forward.status, forward.flag)
        series = table.get(key)
        if series is None:
            series = table[key] = self._series(client, target, forward.status, forward.flag)
        series.observe(forward.duration)
        journal = self._context.journal
        if journal.lines:
            journal.line(_line(client, target, forward))

    def _series(self, client: Client, target: Target | None, status: int, flag: str) -> Series:
        inbound = client.reporter == "destination"
        me = self._context.me
        reached = target.workload if target is not None else None
        own = me.identity if me is not None and client.identity is not None else None
        return self._context.journal.metrics.series(
            Requests(
                reporter=client.reporter,
                source=client.workload,
                destination=me if inbound else reached,
                source_identity=client.identity,
                destination_identity=own if inbound else (target.identity if target is not None else None),
                service=target.hostname if target is not None else "",
                status=status,
                flag=flag,
                mutual_tls=client.identity is not None
                if client.reporter != "source"
                else target is not None and target.kind is not Kind.PLAIN,
            )
        )

    def _refused(self, connection: ServerConnection, refused: Refused) -> None:
        """A request that broke a rule never became one; it is counted and written all the same."""
        client: Client = connection.context
        self._series(client, None, refused.status, "DPE").observe(0.0)
        if self._context.journal.lines:
            reason = quoted(refused.reason.encode("latin-1", "replace"))
            self._context.journal.line(f'{client.text} status={refused.status} flags="DPE" error={reason}')


class HostRoutes:
    """Routes by the request's host, else by the address that the client connected to.

    ``route_request`` is asked once for each endpoint and remembered until the mesh changes.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[tuple[bytes, str, int], tuple[Route, ...]] = {}
        self._version = -1

    def __call__(self, client: Client, head: RequestHead) -> Route | Answer:
        """For ``HttpProxy(route=...)``."""
        me = self._context.me
        if me is None:
            return Answer(503, "our own workload is not known yet", "UH")
        return self.route(me, head.host, client.ip, client.port)

    def route(self, me: Workload, host: bytes, ip: str, port: int) -> Route:
        """One of the routes to *host*, by chance."""
        mesh = self._context.mesh
        if self._version != mesh.version or len(self._known) > MAX_KNOWN_HOSTS:
            self._known.clear()
            self._version = mesh.version
        known = self._known.get((host, ip, port))
        if known is None:
            known = self._known[host, ip, port] = tuple(self._ask(me, host.decode("latin-1"), ip, port))
        return known[int(self._context.chance() * len(known))]

    def _ask(self, me: Workload, host: str, ip: str, port: int) -> Iterator[Route]:
        mesh = self._context.mesh
        first = route_request(mesh, me, ip, port, host, 0.0)
        yield first
        if isinstance(first, Refuse) or not first.service:
            return
        # The same service on whichever of its ports leads to this endpoint: as many routes as endpoints.
        count = len(mesh.targets(first.service, port))
        for index in range(1, count):
            yield route_request(mesh, me, ip, port, host, (index + 0.5) / count)


def to_application(context: Context) -> Deciding:
    """Deliver to our own pod, if policy (still) allows the client."""

    def route(client: Client, head: RequestHead) -> Route | Answer:
        mesh, me = context.mesh, context.named
        if me is None:
            return Answer(503, "our own workload is not known yet", "UH")
        if client.checked != mesh.version:
            verdict = decide(mesh.policies_for(me), client.facts)
            if not verdict.allowed:
                return Answer(403, f"RBAC: access denied: {verdict.reason}", "UAEX")
            client.checked = mesh.version
        return Pass(client.ip, client.port)

    return route


def _own_headers(head: RequestHead, client: Client) -> bytes:
    """The lines that a proxy adds; what only a proxy may say is taken from the client's headers."""
    names = [name for name, _value in head.headers]
    extra = b""
    if CLIENT_CERTIFICATE in names:
        head.headers = [each for each in head.headers if each[0] != CLIENT_CERTIFICATE]
    if b"x-request-id" not in names:
        extra = b"x-request-id: %032x\r\n" % random.getrandbits(128)
    if b"x-forwarded-proto" not in names:
        extra += b"x-forwarded-proto: http\r\n"
    if client.identity is not None and client.reporter == "destination":
        extra += b"x-forwarded-client-cert: URI=%b\r\n" % str(client.identity).encode()
    return extra


def _line(client: Client, target: Target | None, forward: Forward) -> str:
    """The fields of one access line."""
    head = forward.head
    where = target.text if target is not None else f"dst.addr={format_hostport(client.ip, client.port)}"
    error = f" error={quoted(forward.error.encode('latin-1', 'replace'))}" if forward.error else ""
    # Method and host cannot hold a quote: the parser knows every method, and what a host is made of.
    return (
        f'{client.text} {where} method="{head.method.decode()}" path={quoted(head.target)} '
        f'host="{head.host.decode()}" status={forward.status} flags="{forward.flag}" '
        f"bytes_sent={forward.bytes_sent} bytes_recv={forward.bytes_received} "
        f'duration="{forward.duration * 1000:.1f}ms"{error}'
    )
