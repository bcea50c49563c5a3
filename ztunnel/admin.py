"""What ztunnel shows of itself and may be told: ports 15000 and 15021.

No key, token or environment is ever in an answer: each is built from public values, field by field.
Large answers are made in steps, because the thread that makes them moves everybody's bytes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import trio

from ambient.engine.pages import JSON, Answer, Query, Routes
from ambient.engine.reactor import Reactor
from ambient.errors import ConfigError
from ambient.model.mesh import Mesh
from ambient.model.release import VERSION
from ztunnel import dump, profiling
from ztunnel.levels import Levels, parse_levels
from ztunnel.proxies import Proxies
from ztunnel.settings import Settings

# Objects between two looks at what else is to be done: about a millisecond. Picked, not measured.
STEP = 50

Certificates = Callable[[], Mapping[str, tuple[tuple[bytes, ...], tuple[bytes, ...], str]]]


@dataclass(slots=True)
class Inside:
    """What the admin port looks at.

    Attributes:
        stop: Begins the drain, as SIGTERM does.
    """

    settings: Settings
    mesh: Mesh
    proxies: Proxies
    certificates: Certificates
    reactor: Reactor
    levels: Levels
    stop: Callable[[], None]


def admin_routes(inside: Inside) -> Routes:
    """Port 15000, for people on the node."""
    profiler = Profiler()
    dumping = trio.Lock()

    async def config_dump(query: Query) -> Answer:
        async with dumping:  # One at a time: a dump is megabytes.
            return Answer(200, await write_dump(inside), JSON)

    def logging(query: Query) -> Answer:
        return Answer(200, f"current log level is {inside.levels}\n")

    def set_logging(query: Query) -> Answer:
        return change_levels(inside.levels, query)

    def quit_(query: Query) -> Answer:
        inside.stop()
        return Answer(200, "shutdown now\n")

    routes: dict[str, Any] = {
        "/config_dump": {"GET": config_dump},
        "/logging": {"GET": logging, "POST": set_logging},
        "/quitquitquit": {"POST": quit_},
        "/debug/connections": {"GET": lambda query: _json(connections(inside.proxies))},
        "/debug/reactor": {"GET": lambda query: _json(reactor_state(inside.reactor))},
        "/debug/pprof/profile": {"GET": profiler.answer},
    }
    index = "ztunnel\n" + "".join(f"{' '.join(methods)} {path}\n" for path, methods in routes.items())
    return {"/": {"GET": lambda query: Answer(200, index)}, **routes}


def change_levels(levels: Levels, query: Query) -> Answer:
    """``level=``: what is to be logged from now on; ``reset=true``: what was at the start."""
    match dict(query):
        case {"level": text, **rest} if not rest:
            try:
                levels.apply(parse_levels(text))
            except ConfigError as exc:
                return Answer(400, f"{exc}\n")
        case {"reset": "true", **rest} if not rest:
            levels.reset()
        case nothing if not nothing:
            pass  # ztunnel answers it like a GET.
        case _:
            return Answer(400, "level=SCOPE:LEVEL,LEVEL or reset=true is understood here\n")
    return Answer(200, f"current log level is {levels}\n")


def _json(value: object) -> Answer:
    return Answer(200, json.dumps(value, indent=1) + "\n", JSON)


async def write_dump(inside: Inside) -> bytes:
    """Everything that decides what this process does, under ztunnel's names."""
    settings = inside.settings
    parts = [b"{"]
    for name, steps in dump.sections(inside.mesh).items():
        parts.append(b'\n"%s": [' % name.encode())
        parts += await _items(steps)
        parts.append(b"],")
    certificates = [dump.certificate_dump(name, *each) for name, each in inside.certificates().items()]
    rest = {
        "certificates": certificates,
        "workloadState": inside.proxies.dump(),
        "config": {
            "node": settings.node,
            "clusterId": settings.cluster,
            "inpodUds": settings.inpod_uds,
            "drainSeconds": settings.drain_seconds,
            "dnsCapture": settings.dns_capture,
        },
        "version": VERSION,
    }
    parts.append(json.dumps(rest, indent=1).removeprefix("{").encode() + b"\n")
    return b"".join(parts)


async def _items(steps: Iterator[Callable[[], object]]) -> list[bytes]:
    parts: list[bytes] = []
    for number, step in enumerate(steps):
        parts.append((b",\n" if number else b"\n") + json.dumps(step()).encode())
        if number % STEP == STEP - 1:
            await trio.lowlevel.checkpoint()
    return parts


def connections(proxies: Proxies) -> dict[str, object]:
    """Every proxied connection that is open, by workload."""
    return {proxy.context.uid: [each.dump() for each in proxy.context.open.all()] for proxy in proxies.all()}


def reactor_state(reactor: Reactor) -> dict[str, object]:
    """The loop's counts, and of its latest failures what kind they were: their texts may hold a peer's."""
    return {
        **asdict(reactor.statistics()),
        "recent_failures": [type(exc).__name__ for exc in reactor.failures],
    }


class Profiler:
    """One profile at a time; the loop goes on meanwhile."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._busy = False

    async def answer(self, query: Query) -> Answer:
        """``seconds=N``: what the loop did in that time."""
        text = query.get("seconds", str(profiling.DEFAULT_SECONDS))
        bounds = f"seconds is a whole number from {profiling.MIN_SECONDS} to {profiling.MAX_SECONDS}\n"
        if set(query) - {"seconds"} or not (text.isascii() and text.isdecimal() and len(text) < 6):
            return Answer(400, bounds)
        if not profiling.MIN_SECONDS <= int(text) <= profiling.MAX_SECONDS:
            return Answer(400, bounds)
        if self._busy:
            return Answer(409, "a profile is being taken\n")
        self._busy = True
        stop = threading.Event()
        try:
            return Answer(
                200,
                await trio.to_thread.run_sync(
                    profiling.profile, self._thread, int(text), stop, abandon_on_cancel=True
                ),
            )
        finally:
            stop.set()
            self._busy = False


def ready_routes(pending: Callable[[], list[str]]) -> Routes:
    """Port 15021, for probes."""

    def ready(query: Query) -> Answer:
        waiting = pending()
        if waiting:
            return Answer(500, f"not ready, pending: {', '.join(waiting)}\n")
        return Answer(200, "ready\n")

    return {"/healthz/ready": {"GET": ready}}
