"""Ways of putting a pod's rules into its namespace, behind one seam.

``netlink`` is the one to use: it needs no program and is the fastest by far. The others say the same in
other words: ``nft`` for people who want to see the text go in (and for tests, as a second opinion),
``iptables`` for kernels without nf_tables, ``loopback`` where there is no kernel to ask.

``ambient.redirect.backend`` (netlink) is a module and keeps this contract as one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ambient.engine.netns import in_netns
from ambient.engine.privileges import CAP_NET_RAW
from ambient.errors import ConfigError
from ambient.redirect import backend, evidence, iptables_plan, listing, text
from ambient.redirect.backend import Standing
from ambient.redirect.iptables_plan import Lines
from ambient.redirect.plan import TABLE, Capture, capture_plan, closed_plan, drain_plan
from ambient.wire.netlink import AF_INET, AF_INET6
from ambient.wire.nft import Table

# The programs take 5 to 20 ms; longer than this something is stuck. Picked, not measured.
PROGRAM_SECONDS = 10.0
ANY = Capture()
FAMILIES = ((AF_INET, "iptables-legacy"), (AF_INET6, "ip6tables-legacy"))


# The environment name that chooses one.
BACKEND_NAME = "AMBIENT_REDIRECT"
# Who may not write the machine's lock needs none: no other program of its kind is in its pods.
XTABLES_LOCK = "/run/xtables.lock"


def needed(name: str) -> frozenset[int]:
    """The capabilities that a backend needs beside a node daemon's own."""
    # The programs speak to the kernel by a raw socket.
    return frozenset({CAP_NET_RAW}) if name == "iptables" else frozenset()


class Backend(Protocol):
    """What ``PodKeeper`` needs. Plain calls that may wait for the kernel; each is idempotent."""

    def install(self, netns: int, capture: Capture) -> None:
        """Capture the pod, whatever stood there; connections already captured live on."""
        ...

    def drain(self, netns: int) -> None:
        """Capture nothing new; a pod that was never captured stays as it is."""
        ...

    def remove(self, netns: int) -> None:
        """Leave nothing behind."""
        ...

    def put(self, netns: int, table: Table) -> None:
        """Make *table* stand, one of the plans of ``plan``."""
        ...

    def standing(self, netns: int, capture: Capture = ...) -> Standing:
        """What stands in the namespace, where *capture* is what should be captured."""
        ...

    def planned(self, table: Table | None) -> list[str]:
        """The lines of what should stand, in this backend's words."""
        ...

    def present(self, netns: int, known: Sequence[Table]) -> list[str]:
        """The lines of what stands."""
        ...


def choose(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ConfigError: there is none.
    """
    match name:
        case "" | "netlink":
            return backend
        case "nft":
            return NftText()
        case "iptables":
            return IptablesLegacy()
        case "loopback":
            return Nowhere()
        case _:
            raise ConfigError(f"{BACKEND_NAME}={name!r} is none of netlink, nft, iptables, loopback")


def attestable(rules: Backend) -> IptablesLegacy | None:
    """Who attests rules that nf_tables knows nothing of; None where it does.

    Changes of iptables rules raise no event, so they are found by the look of every second.
    """
    return rules if isinstance(rules, IptablesLegacy) else None


class NftText:
    """By ``nft -f -``: the text of ``ambient redirect show``, one transaction each. Reads by netlink."""

    def install(self, netns: int, capture: Capture) -> None:
        """See ``Backend``."""
        backend.add_routing(netns)
        self.put(netns, capture_plan(capture))

    def drain(self, netns: int) -> None:
        """See ``Backend``."""
        if self.standing(netns) is not Standing.NONE:
            self.put(netns, drain_plan())

    def remove(self, netns: int) -> None:
        """See ``Backend``."""
        run(netns, ("nft", "-f", "-"), text.format_deletion(TABLE))
        backend.remove_routing(netns)

    def put(self, netns: int, table: Table) -> None:
        """See ``Backend``."""
        run(netns, ("nft", "-f", "-"), text.format_refill(table))

    def standing(self, netns: int, capture: Capture = ANY) -> Standing:
        """See ``Backend``."""
        return backend.standing(netns, capture)

    def planned(self, table: Table | None) -> list[str]:
        """See ``Backend``."""
        return listing.planned(table)

    def present(self, netns: int, known: Sequence[Table]) -> list[str]:
        """See ``Backend``."""
        return backend.present(netns, known)


class IptablesLegacy:
    """By ``iptables-legacy-restore``, IPv4 and IPv6; see ``iptables_plan`` for what differs."""

    def install(self, netns: int, capture: Capture) -> None:
        """See ``Backend``."""
        backend.add_routing(netns)
        self.put(netns, capture_plan(capture))

    def drain(self, netns: int) -> None:
        """See ``Backend``."""
        if self.standing(netns) is not Standing.NONE:
            self.put(netns, drain_plan())

    def remove(self, netns: int) -> None:
        """See ``Backend``."""
        for family, tool in FAMILIES:
            chains = iptables_plan.translate(capture_plan(Capture()), family)
            if lines := iptables_plan.remove_text(chains, self._save(netns, tool)):
                self._restore(netns, tool, lines)
        backend.remove_routing(netns)

    def standing(self, netns: int, capture: Capture = ANY) -> Standing:
        """See ``Backend``."""
        saved = {family: self._save(netns, tool) for family, tool in FAMILIES}
        if not any(map(iptables_plan.is_there, saved.values())):
            return Standing.NONE
        captures = [capture_plan(replace(capture, dns=dns)) for dns in (False, True)]
        if any(self._stands(table, saved) for table in captures):
            return Standing.CAPTURED
        if self._stands(closed_plan(capture), saved):
            return Standing.CLOSED
        return Standing.DRAINING if self._stands(drain_plan(), saved) else Standing.DAMAGED

    def planned(self, table: Table | None) -> list[str]:
        """See ``Backend``."""
        if table is None:
            return []
        return [
            line
            for family, tool in FAMILIES
            for line in (f"# {tool}", *_lines(iptables_plan.translate(table, family)))
        ]

    def present(self, netns: int, known: Sequence[Table]) -> list[str]:
        """See ``Backend``."""
        lines: list[str] = []
        for family, tool in FAMILIES:
            saved = self._save(netns, tool)
            if iptables_plan.is_there(saved):
                chains = iptables_plan.translate(known[0], family)
                lines += [f"# {tool}", *iptables_plan.ours(chains, saved)]
        return lines

    def stand(self, netns: int, capture: Capture) -> bool:
        """For attestation, as ``evidence.RuleReader`` does it."""
        saved = {family: self._save(netns, tool) for family, tool in FAMILIES}
        return self._stands(capture_plan(capture), saved) and evidence.routing_stands(netns)

    def put(self, netns: int, table: Table) -> None:
        """See ``Backend``."""
        for family, tool in FAMILIES:
            chains = iptables_plan.translate(table, family)
            saved = self._save(netns, tool)
            if not iptables_plan.stands(chains, saved):
                self._restore(netns, tool, iptables_plan.install_text(chains, saved))

    @staticmethod
    def _stands(table: Table, saved: dict[int, str]) -> bool:
        return all(
            iptables_plan.stands(iptables_plan.translate(table, family), present)
            for family, present in saved.items()
        )

    @staticmethod
    def _save(netns: int, tool: str) -> str:
        return run(netns, (f"{tool}-save",))

    @staticmethod
    def _restore(netns: int, tool: str, lines: str) -> None:
        # -w: another program may hold the lock of the machine's /run/xtables.lock.
        run(netns, (f"{tool}-restore", "--noflush", "-w", "5"), lines)


class Nowhere:
    """No kernel: remembers what it was told. For the loopback fabric, and for tests."""

    def __init__(self) -> None:
        self._tables: dict[int, Table] = {}

    def install(self, netns: int, capture: Capture) -> None:
        """See ``Backend``."""
        self._tables[netns] = capture_plan(capture)

    def put(self, netns: int, table: Table) -> None:
        """See ``Backend``."""
        self._tables[netns] = table

    def drain(self, netns: int) -> None:
        """See ``Backend``."""
        if netns in self._tables:
            self._tables[netns] = drain_plan()

    def remove(self, netns: int) -> None:
        """See ``Backend``."""
        self._tables.pop(netns, None)

    def standing(self, netns: int, capture: Capture = ANY) -> Standing:
        """See ``Backend``."""
        match self._tables.get(netns):
            case None:
                return Standing.NONE
            case table if table == closed_plan(capture):
                return Standing.CLOSED
            case table if table == drain_plan():
                return Standing.DRAINING
            case _:
                return Standing.CAPTURED

    def planned(self, table: Table | None) -> list[str]:
        """See ``Backend``."""
        return listing.planned(table)

    def present(self, netns: int, known: Sequence[Table]) -> list[str]:
        """See ``Backend``."""
        return listing.planned(self._tables.get(netns))


def run(netns: int, argv: Sequence[str], lines: str = "") -> str:
    """Run a program in a namespace with *lines* on its standard input; return what it printed.

    Raises:
        OSError: it cannot be run, fails, or does not end; the text says which and why.
    """
    try:
        # The child is born where its parent thread is.
        with in_netns(netns):
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **_lock()},
            )
    except FileNotFoundError as exc:
        raise OSError(
            exc.errno, f"there is no program {argv[0]}; AMBIENT_REDIRECT=netlink needs none"
        ) from exc
    with process:
        try:
            output, errors = process.communicate(lines, PROGRAM_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise TimeoutError(f"{argv[0]} did not end within {PROGRAM_SECONDS:g} s") from None
    if process.returncode:
        said = errors.strip().splitlines()
        raise OSError(f"{argv[0]}: {said[0] if said else f'it ended with {process.returncode}'}")
    return output


def _lock() -> dict[str, str]:
    writable = os.access(XTABLES_LOCK, os.W_OK) or os.access(os.path.dirname(XTABLES_LOCK), os.W_OK)
    return {} if writable else {"XTABLES_LOCKFILE": os.devnull}


def _lines(chains: Sequence[Lines]) -> list[str]:
    return [line for each in chains for line in (f"-t {each.table} {each.jump}", *each.rules)]
