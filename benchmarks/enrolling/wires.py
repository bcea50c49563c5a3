"""How a bare pod is attached to its node, by the name of ``--cni``."""

from __future__ import annotations

from ambient.fabric import wiring
from benchmarks.enrolling.fabric import Wire

WIRES: dict[str, Wire] = {"builtin": wiring.add_pod}
