"""The agent's end of ZDS: a socket that ztunnels dial, and the requests that go out to them.

While a node's ztunnel is replaced, two are connected for a time. Then the newest gets what is added
and all are told what is removed; a removed workload is drained when every one has said so. The newest
gets the listeners and keys of the one before it; when it has everything, the others are told to retire.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import trio

from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId
from ambient.redirect.fd_store import NODE, FdStore, close_all
from ambient.redirect.zds_link import ZtunnelLink
from ambient.wire.zds import KeyPassed, ListenersPassed, WorkloadInfo

log = logging.getLogger("agent")

# Istio's CNI agent waits 5 s for any ack.
ACK_DEADLINE = 5.0
# An ``add`` waits at ztunnel for the mesh to name the workload (5 s) and for its certificate (10 s); its own
# reason is worth more than our impatience.
ADD_DEADLINE = 17.0
# How long a request waits for a ztunnel that is not there; picked, not measured.
CONNECT_DEADLINE = 10.0
BACKLOG = 8
# Pods that a new ztunnel is told of at once. Each comes with up to seven descriptors, and what is on its way
# counts against the limit of descriptors (256 at the least). Picked, not measured.
NAMED_AT_ONCE = 32
# How often it is looked whether ztunnels can still find us; picked, not measured.
PATH_SECONDS = 1.0

# A ztunnel that has lost its agent dials it again after 1.2 s at the most; before that it is not known
# whether it still carries connections of a pod that drains. Picked.
RETURN_SECONDS = 2.0
# How often it is looked who has not come back; picked, not measured.
LOOK_SECONDS = 0.5

Named: TypeAlias = tuple[WorkloadInfo, int]


class ZdsServer:
    """Speaks to the ztunnels of a node.

    Args:
        path: Where to listen.
        snapshot: Waits until the node's pods are known and returns what is captured: whom, and the
            descriptor of the namespace. A workload missing here is drained by ztunnel.

    Attributes:
        on_drained: Told the uid of a removed workload when nothing of it is left.
        on_refused: Told (uid, reason) when a ztunnel cannot serve a workload of the snapshot.
    """

    def __init__(self, path: str, snapshot: Callable[[], Awaitable[Iterable[Named]]]) -> None:
        self.on_drained: Callable[[str], None] = lambda uid: None
        self.on_refused: Callable[[str, str], None] = lambda uid, reason: None
        self._path = path
        self._snapshot = snapshot
        self._links: list[ZtunnelLink] = []
        self._latest: ZtunnelLink | None = None
        self._arrived = trio.Event()
        self._draining: dict[str, set[ZtunnelLink]] = {}
        # Drained as far as those say who are here, and when it is so: who may come back may have more of it.
        self._perhaps_drained: dict[str, float] = {}
        self._all_are_back = 0.0
        self._store = FdStore()
        self._served: dict[str, SpiffeId] = {}

    @property
    def connected(self) -> bool:
        """Whether a ztunnel has its snapshot."""
        return self._latest is not None

    def pids(self) -> frozenset[int]:
        """The processes of the ztunnels."""
        return frozenset(link.pid for link in self._links)

    def held(self, uid: str) -> frozenset[int]:
        """Inodes of the listeners of *uid* that are held here, and so are our own."""
        return self._store.inodes(uid)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled.

        Raises:
            OSError: the path cannot be bound, another agent listens there, or others may write there.
        """
        listener = _listen(self._path)
        try:
            async with trio.open_nursery() as nursery:
                self._all_are_back = trio.current_time() + RETURN_SECONDS
                nursery.start_soon(self._miss_nobody)
                task_status.started()
                while True:
                    with trio.move_on_after(PATH_SECONDS):
                        sock, _ = await listener.accept()
                        nursery.start_soon(self._serve, sock)
                        continue
                    # Gone, not replaced: whoever has put another one there is not to be fought.
                    if not os.path.lexists(self._path):
                        log.warning("%s is gone; listening there again", self._path)
                        listener.close()
                        listener = _listen(self._path)
        finally:
            listener.close()
            self._store.close()
            Path(self._path).unlink(missing_ok=True)

    async def ready(self) -> None:
        """Return when a ztunnel serves this node and has let go of what is not captured.

        Only then it is known which sockets in a pod are ours: those of one that has lost its agent look like
        a stranger's until it is back, and those that its last agent asked for in vain it closes then.

        Raises:
            Unavailable: none comes.
        """
        with trio.move_on_after(CONNECT_DEADLINE):
            while True:
                link = await self._newest()
                await link.settled.wait()
                if link is self._latest:
                    return
        raise Unavailable("no ztunnel of this node has taken its snapshot")

    async def add(self, workload: WorkloadInfo, netns: int) -> None:
        """Have *workload* served; returns when its listeners are open.

        Raises:
            Unavailable: ztunnel cannot, is not there, or does not answer.
        """
        link = await self._newest()
        self._draining.pop(workload.uid, None)
        self._served[workload.uid] = workload.identity
        try:
            error = await link.request(lambda: link.wire.add(workload), [netns], ADD_DEADLINE)
            if error:
                raise Unavailable(error)
        except BaseException:
            self._serve_no_more(workload.uid)
            raise

    async def delete(self, uid: str) -> None:
        """Have *uid* drained; returns when no listener of it is left. ``on_drained`` follows in its time.

        Without a ztunnel there is nobody to ask: the next one to come is asked.
        """
        # First of all: who empties the queue and closes must be the last to hold it.
        self._serve_no_more(uid)
        links = tuple(self._links)
        # All of them before the first is asked: its word that nothing is left must not be the last.
        self._draining.setdefault(uid, set()).update(links)
        for link in links:
            await self._ask_to_delete(link, uid)

    async def _ask_to_delete(self, link: ZtunnelLink, uid: str) -> None:
        try:
            error = await link.request(lambda: link.wire.delete(uid), (), ACK_DEADLINE)
        except Unavailable as exc:
            error = str(exc)
        if error:
            log.warning("ztunnel %d was to drop %s: %s", link.pid, uid, error)

    async def _newest(self) -> ZtunnelLink:
        with trio.move_on_after(CONNECT_DEADLINE):
            while self._latest is None:
                await self._arrived.wait()
            return self._latest
        raise Unavailable("no ztunnel is connected to this node's agent")

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        link = ZtunnelLink(sock, self._drained, self._passed)
        if link.uid not in (0, os.geteuid()):
            log.error("refused a ztunnel of uid %d", link.uid)
            sock.close()
            return
        self._links.append(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.read, nursery.cancel_scope)
                nursery.start_soon(self._introduce, link)
        finally:
            sock.close()
            self._forget(link)

    async def _introduce(self, link: ZtunnelLink) -> None:
        """Say hello back with everything that is captured; then the link is the newest."""
        try:
            with trio.fail_after(ACK_DEADLINE):
                await link.greeted.wait()
            if not link.retired:
                await self._take_over(link)
        except (Unavailable, trio.TooSlowError) as exc:
            log.error("ztunnel %d did not take its snapshot: %r", link.pid, exc)
            link.cancel()
            return
        for uid in tuple(self._draining):
            self._draining[uid].add(link)
            await self._ask_to_delete(link, uid)

    async def _take_over(self, link: ZtunnelLink) -> None:
        """Give *link* everything, make it the newest, and let those before it retire."""
        named: set[str] = set()
        await self._pass_listeners(link, NODE)
        await self._name_all(link, named)
        # From here on whatever is enrolled goes to this link, so that nothing falls between.
        self._latest = link
        self._arrived.set()
        await link.request(link.wire.snapshot_sent, (), ACK_DEADLINE)
        link.settled.set()
        log.info("ztunnel %d serves this node; %d pods were captured before it came", link.pid, len(named))
        await self._retire_others(link)
        # What was under way at one of those then is served by nobody now.
        await self._name_all(link, named)

    async def _name_all(self, link: ZtunnelLink, named: set[str]) -> None:
        while todo := [each for each in await self._snapshot() if each[0].uid not in named]:
            for start in range(0, len(todo), NAMED_AT_ONCE):
                await self._name_some(link, todo[start : start + NAMED_AT_ONCE], named)

    async def _name_some(self, link: ZtunnelLink, some: Sequence[Named], named: set[str]) -> None:
        """Have them served, all at once: nobody's connections wait for the answers about another."""
        for workload, _ in some:
            named.add(workload.uid)
            self._served[workload.uid] = workload.identity
        # What the last ztunnel had of them comes first: it is taken up when they are added.
        passing = [functools.partial(self._pass_key, link, each) for each in {w.identity for w, _ in some}]
        passing += [functools.partial(self._pass_listeners, link, workload.uid) for workload, _ in some]
        await _side_by_side(passing)
        await _side_by_side([functools.partial(self._add_named, link, *each) for each in some])

    async def _add_named(self, link: ZtunnelLink, workload: WorkloadInfo, netns: int) -> None:
        error = await link.request(lambda: link.wire.add(workload), [netns], ADD_DEADLINE)
        if error and trio.current_time() < self._all_are_back:
            # The one before it may listen there still, and has not come yet to hand that over.
            await trio.sleep_until(self._all_are_back)
            await self._pass_listeners(link, workload.uid)
            error = await link.request(lambda: link.wire.add(workload), [netns], ADD_DEADLINE)
        if error:
            self.on_refused(workload.uid, error)

    async def _retire_others(self, newest: ZtunnelLink) -> None:
        # Those that came before: one that came after *newest* is about to retire it.
        for link in self._links[: self._links.index(newest)]:
            if not link.retired:
                link.retired = True
                with suppress(Unavailable):
                    await link.request(link.wire.retire, (), ACK_DEADLINE)

    async def _pass_key(self, link: ZtunnelLink, identity: SpiffeId) -> None:
        key = self._store.key(identity)
        if key is not None:
            await link.request(lambda: link.wire.key(identity), [key], ACK_DEADLINE)

    async def _pass_listeners(self, link: ZtunnelLink, uid: str) -> None:
        held = self._store.listeners(uid)
        if held:
            packet = functools.partial(link.wire.listeners, uid, tuple(held))
            await link.request(packet, tuple(held.values()), ACK_DEADLINE)

    def _passed(self, link: ZtunnelLink, passed: ListenersPassed | KeyPassed) -> None:
        """Hold it, if it is of somebody who is served, and of the ztunnel that serves."""
        match passed:
            case ListenersPassed(uid, sockets) if not link.retired and (uid == NODE or uid in self._served):
                kept = self._store.keep_listeners(uid, sockets)
            case KeyPassed(identity, fd) if not link.retired and identity in self._served.values():
                kept = self._store.keep_key(identity, fd)
            case _:
                close_all(_descriptors_of(passed))
                return
        if not kept:
            log.error("ztunnel %d passed something that is neither a listener nor a sealed key", link.pid)

    def _serve_no_more(self, uid: str) -> None:
        self._served.pop(uid, None)
        self._store.drop_listeners(uid)
        for identity in self._store.identities() - frozenset(self._served.values()):
            self._store.drop_key(identity)

    def _drained(self, link: ZtunnelLink, uid: str) -> None:
        waiting = self._draining.get(uid)
        if waiting is None:
            return
        waiting.discard(link)
        if waiting:
            return
        if trio.current_time() < self._all_are_back:
            self._perhaps_drained[uid] = self._all_are_back
            return
        del self._draining[uid]
        self.on_drained(uid)

    async def _miss_nobody(self) -> None:
        """Tell of those who are drained because whoever might have had more of them has not come back."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            now = trio.current_time()
            for uid in [uid for uid, due in self._perhaps_drained.items() if now >= due]:
                del self._perhaps_drained[uid]
                # Of one that is enrolled again nobody waits to hear, and who came back has been asked.
                if self._draining.get(uid) == set():
                    del self._draining[uid]
                    self.on_drained(uid)

    def _forget(self, link: ZtunnelLink) -> None:
        self._links.remove(link)
        link.settled.set()  # Whoever waits for it is to look for another one.
        for uid, waiting in self._draining.items():
            if link in waiting:
                waiting.discard(link)
                if not waiting:
                    # If its process has ended, so have its connections.
                    self._perhaps_drained[uid] = trio.current_time() + RETURN_SECONDS
        if self._latest is link:
            # An older ztunnel beside it is on its way out: nothing new is for that one.
            self._latest = None
            self._arrived = trio.Event()
        log.warning("ztunnel %d is gone", link.pid)


def _descriptors_of(passed: ListenersPassed | KeyPassed) -> list[int]:
    return [fd for _, fd in passed.sockets] if isinstance(passed, ListenersPassed) else [passed.fd]


async def _side_by_side(requests: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Make all *requests*; when a link breaks all of them fail, of which one is told.

    Raises:
        Unavailable: one was not answered.
    """
    failures: list[Unavailable] = []

    async def one(request: Callable[[], Awaitable[None]]) -> None:
        try:
            await request()
        except Unavailable as exc:
            failures.append(exc)

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(one, request)
    if failures:
        raise failures[0]


def _listen(path: str) -> trio.socket.SocketType:
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_own_directory(Path(path).parent)
    _remove_dead_socket(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        made.bind(path)
        os.chmod(path, 0o600)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return trio.socket.from_stdlib_socket(made)


def require_own_directory(directory: Path) -> None:
    """Who may write there could put another socket in our place, and be asked for namespaces and keys.

    Raises:
        PermissionError: somebody else may.
    """
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{directory} is no directory of its own; it must not be a link")
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{directory} belongs to uid {found.st_uid}, must be ours")
    if found.st_mode & 0o022:
        mode = found.st_mode & 0o777
        raise PermissionError(f"{directory} can be written by others (mode {mode:o}): chmod 700")


def _remove_dead_socket(path: str) -> None:
    """What an agent left that is gone; anything else is not ours to remove."""
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} is not a socket of ours; remove it, or choose another path")
        if _is_served(path):
            raise OSError(errno.EADDRINUSE, f"another node agent listens on {path}")
        os.unlink(path)


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        # EAGAIN: its queue is full, so somebody owns it.
        return probe.connect_ex(path) in (0, errno.EAGAIN)
