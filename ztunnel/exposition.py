"""Port 15020: all metrics of the process as Prometheus text.

The page is made in steps, because the thread that makes it moves everybody's bytes, and shared, so that a
crowd of scrapers costs the memory and the time of one.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import trio

from ambient.engine.follow import Heard
from ambient.engine.pages import Answer, Query, Routes
from ambient.model.record import Direction
from ambient.model.release import VERSION
from ztunnel.dns_metrics import DnsMetrics
from ztunnel.metrics import TcpMetrics
from ztunnel.proxies import Proxies

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Lines between two looks at what else is to be done: under a millisecond. Picked, not measured.
STEP = 100
# Pages of 2,000 series are megabytes: who asks beyond this gets the last one. Picked, not measured.
PAGES_A_SECOND = 4
_BUILD = f'{{component="ztunnel",tag="{VERSION}"}}'


def metrics_routes(
    metrics: TcpMetrics, proxies: Proxies, dns: DnsMetrics | None = None, heard: Heard | None = None
) -> Routes:
    """Port 15020, for Prometheus."""
    page = Page(lambda: exposition(metrics, proxies, dns, heard))

    async def answer(query: Query) -> Answer:
        return Answer(200, await page.get(), METRICS_TYPE)

    return {"/metrics": {"GET": answer}, "/stats/prometheus": {"GET": answer}}


class Page:
    """A page of many lines, made in steps; who asks while one is made shares the next, and a crowd shares."""

    def __init__(self, lines: Callable[[], Iterable[str]]) -> None:
        self._lines = lines
        self._body = b""
        self._began: deque[float] = deque([float("-inf")], maxlen=PAGES_A_SECOND)
        self._making = trio.Lock()

    async def get(self) -> bytes:
        """The page as it is now; at most a second old if many ask."""
        asked = trio.current_time()
        async with self._making:
            now = trio.current_time()
            crowded = len(self._began) == PAGES_A_SECOND and self._began[0] > now - 1
            if self._began[-1] < asked and not crowded:
                self._began.append(now)
                self._body = await _made(self._lines())
            return self._body


async def _made(lines: Iterable[str]) -> bytes:
    done: list[bytes] = []
    step: list[str] = []
    for line in lines:
        step.append(line)
        if len(step) == STEP:
            # Encoded piece by piece: a page of 8 MB at once takes 50 ms.
            done.append("".join(step).encode())
            step.clear()
            await trio.lowlevel.checkpoint()
    return b"".join((*done, "".join(step).encode()))


def exposition(
    metrics: TcpMetrics, proxies: Proxies, dns: DnsMetrics | None = None, heard: Heard | None = None
) -> Iterator[str]:
    """All metrics of the process as Prometheus text, in pieces of a few lines."""
    yield _family("istio_build", "gauge", "Istio component build info", {_BUILD: 1})
    for proxy in proxies.all():
        proxy.count()
        yield ""
    yield from metrics.lines()
    if dns is not None:
        yield from dns.lines()
    if heard is not None:
        yield from xds_metrics(heard)
    yield from unstable_metrics(proxies)
    yield from own_metrics(proxies)


def unstable_metrics(proxies: Proxies) -> Iterator[str]:
    """What Istio's ztunnel counts without a promise; its help texts say so."""
    open_ = Counter(each.direction for proxy in proxies.all() for each in proxy.context.open.all())
    sockets = {f'{{reporter="{way.reporter}"}}': open_[way] for way in Direction}
    yield _family("istio_tcp_sockets_open", "gauge", "Open proxied connections (unstable)", sockets)
    for name, kind, text, value in (
        ("active_proxy_count", "gauge", "Workloads with a proxy (unstable)", len(proxies.running())),
        ("proxies_started_total", "counter", "Proxies that were started (unstable)", proxies.started),
        ("proxies_stopped_total", "counter", "Proxies that have ended (unstable)", proxies.ended),
    ):
        yield _family(f"workload_manager_{name}", kind, text, {"": value})
    descriptors = {"": len(os.listdir("/proc/self/fd"))}
    yield _family("process_open_fds", "gauge", "Open file descriptors (unstable)", descriptors)


def xds_metrics(heard: Heard) -> Iterator[str]:
    """Istio's names for what came from control; bytes of all kinds are one number."""
    ends = {'{reason="Complete"}': heard.closed, '{reason="Error"}': heard.failed}
    kinds = {"istio.workload.Address": heard.addresses, "istio.security.Authorization": heard.authorizations}
    messages = {f'{{url="type.googleapis.com/{kind}"}}': count for kind, count in kinds.items()}
    for name, text, values in (
        ("connection_terminations", "Connections to control that have ended (unstable)", ends),
        ("message", "Updates received from control (unstable)", messages),
        ("message_bytes", "Bytes received from control (unstable)", {"": heard.received}),
    ):
        yield _family(f"istio_xds_{name}_total", "counter", text, values)


def own_metrics(proxies: Proxies) -> Iterator[str]:
    """What Istio has no name for."""
    now = [proxy.statistics() for proxy in proxies.all()]
    connections = sum(each.connections for each in now)
    tunnels = sum(each.inbound_tunnels for each in now), sum(each.outbound_tunnels for each in now)
    for name, kind, text, values in (
        ("proxies", "gauge", "Workloads served, draining ones included", {"": len(now)}),
        ("connections_open", "gauge", "Proxied connections without a record yet", {"": connections}),
        ("tunnels_open", "gauge", "HBONE connections", _by_role(tunnels)),
        ("handshakes_total", "counter", "TLS handshakes", _by_role(proxies.handshakes())),
    ):
        yield _family(f"ambient_{name}", kind, text, values)


def _by_role(values: tuple[int, int]) -> dict[str, int]:
    return {'{role="server"}': values[0], '{role="client"}': values[1]}


def _family(name: str, kind: str, text: str, values: Mapping[str, int]) -> str:
    samples = "".join(f"{name}{labels} {value}\n" for labels, value in values.items())
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{samples}"
