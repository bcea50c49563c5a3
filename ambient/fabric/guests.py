"""Guests: network namespaces that somebody else made, taken into the mesh while they live.

Nothing of ours had to be there before: a container of any runtime, a process under ``unshare -n``, an
``ip netns add``. Whoever asks sends the namespace as a descriptor, so that it does not matter whose
mounts and processes the mesh sees; we bind it to a file in the run directory, which exists in the
mesh's own mount namespace alone and so goes with the mesh.

A guest has vanished when the process that was named has ended, no other one is in the namespace, and the
path that was named is not it any more. If that path means another one within a minute, it is the guest's
successor (``departed``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import netns_identity
from ambient.engine.rpc import AdminClient, Call
from ambient.errors import AmbientError, ConfigError
from ambient.fabric import guestbook, procfs, syscalls
from ambient.fabric.daemons import note
from ambient.fabric.departed import WaitingRoom, is_network
from ambient.fabric.guests_plan import (
    Guest,
    Identity,
    check_name,
    default_name,
    reachable,
    refuse_known,
)
from ambient.fabric.syscalls import MountFlag
from ambient.redirect.backends import BACKEND_NAME, Backend
from ambient.redirect.survey import survey
from ambient.wire.xds import NodePod

# How often guests are looked after; picked, not measured: reading one /proc/PID/stat each costs microseconds.
WATCH_SECONDS = 1.0
UNMOUNT_DETACHED = 2  # MNT_DETACH


@dataclass(slots=True)
class Guests:
    """The guests of one mesh.

    Args:
        machine: The network namespace that the mesh was started from.
        rules: How the agents put rules into pods, and how they are taken out again.
        refusal: Why this mesh can have none; "" if it can.
        ours: Returns the namespaces of the mesh itself and what they are.
        nodes: Names of the nodes; the first is where guests go that name none.
    """

    run_dir: str
    control: AdminClient
    nodes: tuple[str, ...]
    ours: Callable[[], Mapping[Identity, str]]
    machine: Identity
    rules: Backend
    refusal: str = ""
    _known: dict[Identity, Guest] = field(default_factory=dict)
    _roots: dict[Identity, int] = field(default_factory=dict)
    _departed: WaitingRoom = field(default_factory=WaitingRoom)
    _made: int = 0
    _turn: trio.Lock = field(default_factory=trio.Lock)

    async def adopt(self, call: Call) -> dict[str, Any]:
        """Take in the namespace that came as the first descriptor; the second is the caller's root directory.

        Raises:
            ConfigError: it cannot be a guest, and why.
        """
        with self._presented(call) as (netns, root):
            async with self._turn:
                guest = self._known.get(netns_identity(netns))
                if guest is None:
                    guest = await self._take_in(netns, root, call.params)
                else:
                    await self._welcome(guest, netns, call.params)
            return {"namespace": guest.namespace, "name": guest.name, "uid": guest.uid}

    async def examine(self, call: Call) -> dict[str, Any]:
        """How taking in and enrolling a namespace would go; nothing is changed. Descriptors as for ``adopt``.

        Answers ``{"known": NAME}`` for one that is a guest already.

        Raises:
            ConfigError: it cannot be a guest, and why.
        """
        with self._presented(call) as (netns, _root):
            guest = self._known.get(netns_identity(netns))
            if guest is not None:
                return {"known": {"namespace": guest.namespace, "name": guest.name}}
            draft = self._draft(netns, call.params, netns_path=f"/proc/self/fd/{netns}")
            told = self._told(draft, netns, call.params)
            pod = NodePod(
                uid="",
                namespace=draft.namespace,
                name=draft.name,
                service_account=told["service_account"],
                addresses=tuple(told["addresses"]),
                netns=draft.netns,
                mode="none",
            )
            found = await trio.to_thread.run_sync(survey, pod, frozenset[int](), self.rules)
            existing = str(call.params.get("existing") or "keep")
            return dict(await self.control.call("foresee", survey=found, existing=existing, **told))

    async def find(self, call: Call) -> dict[str, Any]:
        """Who the namespace is that came as the one descriptor.

        Raises:
            ConfigError: no guest of this mesh.
        """
        try:
            self._require_possible()
            guest = self._known.get(netns_identity(call.fds[0])) if call.fds else None
        finally:
            for fd in call.fds:
                os.close(fd)
        if guest is None:
            raise ConfigError("it is not enrolled in this mesh; see: ambient get pods -A")
        return {"namespace": guest.namespace, "name": guest.name, "uid": guest.uid}

    async def dismiss(self, call: Call) -> dict[str, Any]:
        """Forget the guest of that name when its last proxied connection has ended."""
        key = (call.params.get("namespace"), call.params.get("name"))
        guest = next((each for each in self._known.values() if (each.namespace, each.name) == key), None)
        if guest is None:
            raise ConfigError(f"no guest {key[0]}/{key[1]}; see: ambient get pods -A")
        await self.control.call("dismiss", namespace=guest.namespace, name=guest.name, vanished=False)
        return {}

    async def watch(self) -> None:
        """Look after the guests until cancelled: those that vanish leave the mesh."""
        try:
            while True:
                await trio.sleep(WATCH_SECONDS)
                async with self._turn:
                    for guest in tuple(self._known.values()):
                        await self._look_after(guest)
                    await self._welcome_successors()
        finally:
            for guest in self._known.values():
                with suppress(OSError), self._entered(guest) as netns:
                    self.rules.drain(netns)

    def leave(self) -> None:
        """Let go of every guest: no rule of ours stays, since no proxy does."""
        for guest in tuple(self._known.values()):
            with _noted(guest), self._entered(guest) as netns:
                self.rules.remove(netns)
            self._release(guest)
        self._departed.close()

    def departed(self) -> list[dict[str, Any]]:
        """Those that have vanished and are still waited for, for ``status``."""
        return self._departed.told(trio.current_time())

    @contextmanager
    def _presented(self, call: Call) -> Iterator[tuple[int, int]]:
        """The namespace and the root directory that came with *call*, which are closed in the end.

        Raises:
            ConfigError: there can be no guests, or it cannot be one.
        """
        try:
            self._require_possible()
            netns, root = _two(call.fds)
            _require_network(netns)
            yield netns, root
        finally:
            for fd in call.fds:
                os.close(fd)

    def _require_possible(self) -> None:
        if self.refusal:
            raise ConfigError(self.refusal)

    # Coming -----------------------------------------------------------------------------------

    async def _take_in(self, netns: int, root: int, params: Mapping[str, Any]) -> Guest:
        self._made += 1
        guest = self._draft(netns, params, netns_path=f"{self.run_dir}/guests/{self._made}")
        _bind(netns, guest.netns)
        try:
            guest = await self._welcome(guest, netns, params)
        except BaseException:
            _unbind(guest.netns)
            raise
        self._roots[guest.identity] = os.dup(root)
        self._write_down()
        where = f"pid {guest.pid or 'unknown'} {guest.path}".rstrip()
        note(f"guest {guest.namespace}/{guest.name}: taken in, {where}")
        return guest

    def _draft(self, netns: int, params: Mapping[str, Any], *, netns_path: str) -> Guest:
        """What the namespace would be as a guest.

        Raises:
            ConfigError: it is none, or cannot be called so.
        """
        identity = netns_identity(netns)
        refuse_known(identity, self.ours(), self.machine)
        pid = int(params.get("pid", 0))
        path = str(params.get("path", ""))
        if not pid:
            pid = next(iter(_inhabitants(identity)), 0)
        name = str(params.get("name") or "") or default_name(_program(pid), int(params.get("pid", 0)), path)
        return Guest(
            uid="",
            namespace=str(params["namespace"]),
            name=check_name(name),
            identity=identity,
            pid=pid,
            started=procfs.start_ticks(pid),
            path=path,
            netns=netns_path,
        )

    async def _welcome(self, guest: Guest, netns: int, params: Mapping[str, Any]) -> Guest:
        answer = await self.control.call("welcome", **self._told(guest, netns, params))
        known = self._known[guest.identity] = replace(guest, uid=answer["uid"])
        return known

    def _told(self, guest: Guest, netns: int, params: Mapping[str, Any]) -> dict[str, Any]:
        """What control is told of a guest."""
        with NetlinkSocket(netns) as nl:
            addresses = reachable(each.cidr for each in nl.addresses())
        return {
            "node": str(params.get("node") or self.nodes[0]),
            "namespace": guest.namespace,
            "name": guest.name,
            "service_account": str(params.get("service_account") or "default"),
            "container": _program(guest.pid) or guest.name,
            "addresses": list(addresses),
            "dataplane_mode": str(params.get("dataplane_mode") or ""),
            **_status(guest),
        }

    # Going ------------------------------------------------------------------------------------

    @contextmanager
    def _entered(self, guest: Guest) -> Iterator[int]:
        """Its namespace, by whichever way still leads there: whoever loses our directory loses our own.

        Raises:
            OSError: none does.
        """
        ways = (
            (guest.netns, None),
            (f"/proc/{guest.pid}/ns/net", None),
            (guest.path.lstrip("/"), self._roots.get(guest.identity)),
        )
        found = next((fd for path, root in ways if (fd := _opened(path, root, guest.identity)) >= 0), -1)
        if found < 0:
            raise FileNotFoundError(errno.ENOENT, "its network namespace is out of reach", guest.netns)
        try:
            yield found
        finally:
            os.close(found)

    def _bind_again(self, guest: Guest) -> None:
        """Agents find a guest by a file of the run directory; that may have been tidied away."""
        if _is_at(guest.netns, guest.identity):
            return
        with suppress(OSError), self._entered(guest) as netns:
            _bind(netns, guest.netns)
            self._write_down()
            note(f"guest {guest.namespace}/{guest.name}: {guest.netns} was gone, and is bound again")

    async def _look_after(self, guest: Guest) -> None:
        self._bind_again(guest)
        if procfs.is_alive(guest.pid, guest.started) and _lives_in(guest.pid, guest.identity):
            return
        pid = next(iter(_inhabitants(guest.identity)), 0)
        if pid == 0 and not self._is_bound(guest):
            note(f"guest {guest.namespace}/{guest.name}: its network namespace has vanished")
            with _noted(guest):
                last = await self.control.call(
                    "dismiss", namespace=guest.namespace, name=guest.name, vanished=True
                )
                if guest.path:
                    root = os.dup(self._roots[guest.identity])
                    self._departed.expect(guest, root, last, trio.current_time())
            self._release(guest)
        elif pid != guest.pid:
            now = self._known[guest.identity] = replace(guest, pid=pid, started=procfs.start_ticks(pid))
            self._write_down()
            with _noted(guest):
                await self.control.call("pod_status", uid=guest.uid, **_status(now))

    async def _welcome_successors(self) -> None:
        for each in self._departed.expected(trio.current_time()):
            with each.successor() as netns:
                if netns is None:
                    each.reason = ""
                    continue
                if netns_identity(netns) not in self._known:
                    try:
                        await self._take_in(netns, each.root, each.params)
                    except (AmbientError, OSError) as exc:
                        each.reason = str(exc)  # It may have no address yet: asked again the next time.
                        continue
                self._departed.drop(each)

    def _write_down(self) -> None:
        """For ``clean``: rules of ours in namespaces that outlive a crashed mesh."""
        guestbook.write(self.run_dir, self._known.values(), os.environ.get(BACKEND_NAME, ""))

    def _is_bound(self, guest: Guest) -> bool:
        """Whether its path still means it, in the view of whoever named it."""
        if not guest.path:
            return False
        try:
            found = os.stat(guest.path.lstrip("/"), dir_fd=self._roots[guest.identity])
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == guest.identity

    def _release(self, guest: Guest) -> None:
        self._known.pop(guest.identity, None)
        self._write_down()
        if (root := self._roots.pop(guest.identity, None)) is not None:
            os.close(root)
        _unbind(guest.netns)


def _status(guest: Guest) -> dict[str, Any]:
    containers = [{"name": _program(guest.pid) or guest.name, "pid": guest.pid, "ready": True, "restarts": 0}]
    return {
        "phase": "Running",
        "ready": True,
        "pid": guest.pid,
        "netns": guest.netns,
        "started": procfs.started(guest.pid) if guest.pid else 0.0,
        "containers": containers,
    }


def _two(fds: list[int]) -> tuple[int, int]:
    if len(fds) != 2:
        raise ConfigError(f"adopt needs a namespace and a root directory, got {len(fds)} descriptors")
    return fds[0], fds[1]


def _require_network(fd: int) -> None:
    if not is_network(fd):
        raise ConfigError("that file is no network namespace")


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() if pid else ""
    except OSError:
        return ""


def _lives_in(pid: int, identity: Identity) -> bool:
    return _is_at(f"/proc/{pid}/ns/net", identity)


def _is_at(path: str, identity: Identity) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == identity


def _opened(path: str, root: int | None, identity: Identity) -> int:
    """A descriptor of the namespace at *path*, seen from the directory *root*; -1 if it is not that one."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
        if netns_identity(fd) == identity:
            return fd
        os.close(fd)
    return -1


def _inhabitants(identity: Identity) -> Iterable[int]:
    """Host PIDs of the processes in a namespace, oldest number first."""
    everybody = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return (pid for pid in everybody if _lives_in(pid, identity))


def _bind(netns: int, path: str) -> None:
    for directory in (Path(path).parent.parent, Path(path).parent):
        directory.mkdir(mode=0o700, exist_ok=True)
    Path(path).touch(mode=0o600)
    try:
        syscalls.mount(f"/proc/self/fd/{netns}", path, flags=MountFlag.BIND)
    except OSError:
        Path(path).unlink()
        raise


def _unbind(path: str) -> None:
    with suppress(OSError):
        syscalls.unmount(path, UNMOUNT_DETACHED)
    with suppress(OSError):
        Path(path).unlink()


@contextmanager
def _noted(guest: Guest) -> Iterator[None]:
    """Control may be going down, or the namespace be broken: one guest's trouble is its own."""
    try:
        yield
    except (AmbientError, OSError) as exc:
        note(f"guest {guest.namespace}/{guest.name}: {exc}")
