"""Which namespaces of others hold rules of ours: written down, because they outlive a mesh that crashed.

``ambient down`` lets go of them itself; ``ambient clean`` (and the next ``up`` in the same run directory)
reads this after a crash, since a rule without a proxy behind it refuses every connection.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ambient.fabric.guests_plan import Guest

NAME = "guests.json"


def write(run_dir: str, guests: Iterable[Guest], rules: str) -> None:
    """Write down *guests*, all of them or the ones before.

    Args:
        rules: The name of the backend that puts rules into them.
    """
    book = [
        {"pid": each.pid, "path": each.path, "identity": list(each.identity), "rules": rules}
        for each in guests
    ]
    target = Path(run_dir, NAME)
    draft = target.with_suffix(".new")
    # The run directory may be gone already, and then nobody will read it.
    with suppress(OSError):
        draft.write_text(json.dumps(book), encoding="utf-8")
        draft.replace(target)


def clear_rules(run_dir: str) -> int:
    """Remove the rules of a dead mesh from the namespaces that are still there; returns from how many."""
    cleared = 0
    for entry in _read(run_dir):
        fd = _open(entry)
        if fd is None:
            continue
        try:
            # A mesh without guests, which is nearly every one, need not load the rule code.
            from ambient.redirect.backends import choose

            choose(str(entry.get("rules") or "")).remove(fd)
            cleared += 1
        finally:
            os.close(fd)
    return cleared


def _read(run_dir: str) -> list[dict[str, Any]]:
    try:
        book = json.loads(Path(run_dir, NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in book if isinstance(entry, dict)] if isinstance(book, list) else []


def _open(entry: dict[str, Any]) -> int | None:
    """The namespace itself, whatever has its number or its path by now."""
    paths = [f"/proc/{entry['pid']}/ns/net"] if entry.get("pid") else []
    for path in [*paths, str(entry.get("path") or "")]:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(fd)
            if [found.st_dev, found.st_ino] == entry.get("identity"):
                return fd
            os.close(fd)
    return None
