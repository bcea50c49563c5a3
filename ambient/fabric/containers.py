"""One container: start it, ask it, start it again when it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from signal import SIGKILL

import trio

from ambient.fabric import env_plan, probe_plan, probes
from ambient.fabric.daemons import note
from ambient.fabric.initclient import InitClient, LaunchFailed, Process
from ambient.fabric.launch import Launch
from ambient.fabric.restart_plan import Backoff
from ambient.fabric.table import Entry
from ambient.model.podspec import Container, Probe, ProbeKind

# The built-in workload without a containerPort; documented with its annotations.
BUILTIN_PORT = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a container runs.

    Attributes:
        pause: PID inside the mesh of the pod's pause process; 0 in the loopback fabric.
        probed_from: Descriptor of the network namespace that probes come from; None in the loopback fabric.
        probed_as_node: Whether that is the node's, and probes have the node's address.
        home: A directory of the pod's own.
        patience: Seconds from SIGTERM to SIGKILL.
    """

    pause: int
    probed_from: int | None
    probed_as_node: bool
    home: str
    patience: float


class ContainerRunner:
    """Keeps one container running, and knows whether it is ready.

    Args:
        changed: Called whenever ``entry``, ``ready`` or ``reason`` did.
    """

    def __init__(
        self,
        init: InitClient,
        container: Container,
        facts: env_plan.PodFacts,
        place: Place,
        entry: Entry,
        changed: Callable[[], None],
    ) -> None:
        self.container = container
        self.entry = entry
        self.ready = False
        self.reason = ""
        self._init = init
        self._facts = facts
        self._place = place
        self._changed = changed
        self._started_up = trio.Event()

    async def run(self) -> None:
        """Keep it running until cancelled; then stop it and return."""
        backoff = Backoff()
        while True:
            born = trio.current_time()
            self.reason = await self._live_once()
            self.ready = False
            backoff = backoff.ended(trio.current_time() - born)
            self._changed()
            note(f"{self.entry.name}: {self.reason}; next start in {backoff.delay:g} s")
            await trio.sleep(backoff.delay)
            self.entry.restarts += 1

    async def _live_once(self) -> str:
        """One life of the program; return how it ended."""
        try:
            process = self.entry.process = await self._init.start(self._launch())
        except LaunchFailed as exc:
            return f"cannot start: {exc}"
        self._started_up = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                self._probe(nursery, process)
                self._changed()
                status = await process.wait()
                nursery.cancel_scope.cancel()
            return f"ended by signal {-status}" if status < 0 else f"ended with {status}"
        finally:
            with trio.CancelScope(shield=True):
                if process.running:
                    await self._init.stop(process, self._place.patience)

    def _launch(self) -> Launch:
        container = self.container
        values = env_plan.environment(container, self._facts, self._place.home)
        return Launch(
            argv=env_plan.command_line(container, values) if container.command else self._builtin(values),
            env=values,
            log=self.entry.log,
            cwd=container.working_dir or self._place.home,
            pod=self._place.pause,
        )

    def _builtin(self, values: dict[str, str]) -> tuple[str, ...]:
        """The built-in workload, told by its environment what its annotations say."""
        values.update(env_plan.builtin_environment(self.container, self._facts, os.environ))
        return (sys.executable, "-P", "-m", "ambient.fabric.app", *self.container.args)

    # Probes ----------------------------------------------------------------------------------

    def _probe(self, nursery: trio.Nursery, process: Process) -> None:
        readiness = self.container.readiness or self._implied()
        if self.container.startup is None:
            self._started_up.set()
        else:
            nursery.start_soon(self._watch_startup, self.container.startup, process)
        if readiness is not None:
            nursery.start_soon(self._watch_readiness, readiness)
        else:
            nursery.start_soon(self._ready_when_started)
        if self.container.liveness is not None:
            nursery.start_soon(self._watch_liveness, self.container.liveness, process)

    def _implied(self) -> Probe | None:
        """We know when the built-in workload is ready: when it listens."""
        if self.container.command:
            return None
        port = next((each.number for each in self.container.ports), BUILTIN_PORT)
        return Probe(kind=ProbeKind.TCP, port=port)

    async def _ready_when_started(self) -> None:
        await self._started_up.wait()
        self._set_ready(True)

    async def _watch_startup(self, probe: Probe, process: Process) -> None:
        async def hear(passing: bool | None) -> bool:
            if passing is False:
                await self._give_up("startup", process)
            return bool(passing)

        await self._watch(probe, hear)
        self._started_up.set()

    async def _watch_readiness(self, probe: Probe) -> None:
        async def hear(passing: bool | None) -> bool:
            self._set_ready(bool(passing))
            return False

        await self._started_up.wait()
        await self._watch(probe, hear)

    async def _watch_liveness(self, probe: Probe, process: Process) -> None:
        async def hear(passing: bool | None) -> bool:
            if passing is False:
                await self._give_up("liveness", process)
            return False

        await self._started_up.wait()
        await self._watch(probe, hear)

    async def _give_up(self, which: str, process: Process) -> None:
        note(f"{self.entry.name}: {which} probe failed, stopping it")
        await self._init.stop(process, self._place.patience)

    async def _watch(self, probe: Probe, hear: Callable[[bool | None], Awaitable[bool]]) -> None:
        """Ask again and again; tell *hear* what the probe says, until it has heard enough."""
        await trio.sleep(probe.initial_delay)
        state = probe_plan.ProbeState()
        while True:
            ok = await self._ask(probe)
            state = probe_plan.answered(probe, state, ok, trio.current_time())
            if await hear(state.passing):
                return
            await trio.sleep(probe_plan.interval(probe, state))

    async def _ask(self, probe: Probe) -> bool:
        if probe.kind is ProbeKind.EXEC:
            return await self._ask_by_command(probe)
        place, address = self._place, self._facts.addresses[0]
        return await probes.ask(probe, place.probed_from, address, from_node=place.probed_as_node)

    async def _ask_by_command(self, probe: Probe) -> bool:
        values = env_plan.environment(self.container, self._facts, self._place.home)
        request = Launch(
            argv=probe.command,
            env=values,
            log=os.devnull,
            cwd=self.container.working_dir or self._place.home,
            pod=self._place.pause,
        )
        try:
            process = await self._init.start(request)
        except LaunchFailed:
            return False
        with trio.move_on_after(probe.timeout):
            return await process.wait() == 0
        with trio.CancelScope(shield=True):
            await self._init.signal(process, SIGKILL)
        return False

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._changed()
