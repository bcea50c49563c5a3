"""Guests that have vanished: whoever takes their place at the same path is what was enrolled.

A namespace is deleted and made anew under its name by whoever restarts what lives in it. The mesh was told
of the name, so the new one belongs to it too; until it is there, ``ambient status`` says who is missing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ambient.fabric.guests_plan import Guest
from ambient.fabric.syscalls import Namespace

# A restart takes less; whoever comes later is somebody else, and has to be enrolled. Picked, not measured.
SUCCESSION_SECONDS = 60.0
# How many are waited for; the oldest is given up for one more. Picked, not measured.
MAX_DEPARTED = 64
NOBODY = "its network namespace has vanished, and no other has taken its place"
# linux/nsfs.h
NS_GET_NSTYPE = 0xB703


@dataclass(slots=True)
class Departed:
    """One that has vanished.

    Attributes:
        root: The directory in whose view the path was named; ours to close.
        params: What ``Guests.adopt`` would be told of a successor.
        until: When it is waited for no more.
        reason: Why what is there now could not be taken in; "" if nothing is there.
    """

    root: int
    params: Mapping[str, Any]
    until: float
    reason: str = ""

    @contextmanager
    def successor(self) -> Iterator[int | None]:
        """The network namespace that is at the path now; None if there is none."""
        fd = -1
        try:
            with suppress(OSError):
                path = str(self.params["path"]).lstrip("/")
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.root)
            yield fd if fd >= 0 and is_network(fd) else None
        finally:
            if fd >= 0:
                os.close(fd)


@dataclass(slots=True)
class WaitingRoom:
    """All that are waited for."""

    _all: list[Departed] = field(default_factory=list)

    def expect(self, guest: Guest, root: int, last: Mapping[str, Any], now: float) -> None:
        """Wait for whoever takes the place of *guest*.

        Args:
            root: As in ``Departed``.
            last: What control knew of it.
        """
        params = {
            "namespace": guest.namespace,
            "name": guest.name,
            "path": guest.path,
            "node": last["node"],
            "service_account": last["service_account"],
            "dataplane_mode": last["dataplane_mode"],
        }
        self._all.append(Departed(root, params, now + SUCCESSION_SECONDS))
        if len(self._all) > MAX_DEPARTED:
            self.drop(self._all[0])

    def expected(self, now: float) -> tuple[Departed, ...]:
        """Those that are still waited for."""
        for each in tuple(self._all):
            if now >= each.until:
                self.drop(each)
        return tuple(self._all)

    def drop(self, departed: Departed) -> None:
        """Wait no more."""
        self._all.remove(departed)
        os.close(departed.root)

    def close(self) -> None:
        """Wait for nobody."""
        for each in tuple(self._all):
            self.drop(each)

    def told(self, now: float) -> list[dict[str, Any]]:
        """For ``status``."""
        return [
            {
                "namespace": each.params["namespace"],
                "name": each.params["name"],
                "path": each.params["path"],
                "waiting_seconds": round(each.until - now, 1),
                "reason": each.reason or NOBODY,
            }
            for each in self.expected(now)
        ]


def is_network(fd: int) -> bool:
    """Whether *fd* is a network namespace."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == Namespace.NET
    except OSError:
        return False
