"""Freeze, kill and replace the daemons of a mesh in random order under checksummed load; judge, as JSON.

    python benchmarks/faults.py [--seed 1] [--seconds 30] -o json

A client on node 1 opens connections at a steady rate through both nodes' ztunnels to an echo server on
node 2 and compares every byte. Meanwhile, one after the other, in an order that the seed decides, a node's
ztunnel, its zygote or agent is killed (SIGKILL), a ztunnel, an agent or control frozen for a while (SIGSTOP,
SIGCONT), a ztunnel killed while control is frozen, or upgraded in place. The next fault comes when the node
serves again.

What must hold: no wrong byte ever; nobody fails who was not open at the moment when a ztunnel was killed;
and at the end everything is there. The same seed gives the same faults, though not at the same microsecond.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from ambient.bench.machine import describe  # noqa: E402
from benchmarks.restart import NODES, Row, below, judge, percentile  # noqa: E402
from benchmarks.shop import Shop, shop, wait_for, wait_until_ready  # noqa: E402

# Well below the 15 s in which a silent peer is found dead: who freezes must not be cut.
LONGEST_FREEZE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 1.0
BYTES = 16 * 1024


class Faults:
    """What can be done to a mesh."""

    def __init__(self, mesh: Shop, chance: random.Random) -> None:
        self.mesh = mesh
        self.chance = chance
        self.done: Counter[str] = Counter()
        self.kills: list[tuple[float, float]] = []
        apps = [each for each in mesh.processes() if each["role"] == "app"]
        self._listeners = {str(each["node"]): listening(int(each["pid"])) for each in apps}

    def one(self) -> None:
        """The next fault, and back to health."""
        node = self.chance.choice(NODES)
        faults: tuple[Callable[[str], None], ...] = (
            self.kill_ztunnel,
            self.freeze_ztunnel,
            self.upgrade,
            self.kill_agent,
            self.freeze_agent,
            self.kill_zygote,
            self.freeze_control,
            self.kill_ztunnel_without_control,
        )
        fault = self.chance.choice(faults)
        self.done[fault.__name__] += 1
        began = time.monotonic()
        print(f"{fault.__name__} {node}: ", end="", file=sys.stderr, flush=True)
        fault(node)
        self._healthy(node)
        print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
        time.sleep(self.chance.uniform(0.0, LONGEST_PAUSE_SECONDS))

    def kill_ztunnel(self, node: str) -> None:
        """Whatever is open there is cut; nobody else notices."""
        victim = self.mesh.ztunnel(node)
        self.kills.append(self._kill(f"ztunnel/{node}", victim))

    def freeze_ztunnel(self, node: str) -> None:
        """Everybody waits."""
        self._freeze(self.mesh.ztunnel(node))

    def upgrade(self, node: str) -> None:
        """Nobody notices."""
        self.mesh.fabric("restart_ztunnel", node=node)

    def kill_agent(self, node: str) -> None:
        """Nobody notices: pods stay captured, and ztunnel has the listeners too."""
        self._kill(f"agent/{node}", self.mesh.process(f"agent/{node}"))

    def _kill(self, name: str, victim: int) -> tuple[float, float]:
        """When; and wait until everybody knows: what follows is to meet its successor."""
        moment = self.mesh.kill(victim)
        wait_for(lambda: self.mesh.process(name) not in (0, victim), f"another {name}")
        return moment

    def freeze_agent(self, node: str) -> None:
        """Nobody notices."""
        self._freeze(self.mesh.process(f"agent/{node}"))

    def kill_zygote(self, node: str) -> None:
        """Nobody notices: it is needed only when a ztunnel is."""
        self._kill(f"ztunnel/{node}/zygote", self.mesh.process(f"ztunnel/{node}/zygote"))

    def freeze_control(self, node: str) -> None:
        """Nobody notices."""
        self._freeze(self.mesh.process("control"))

    def kill_ztunnel_without_control(self, node: str) -> None:
        """As ``kill_ztunnel``: the next one goes by what the last one knew."""
        control = self.mesh.process("control")
        os.kill(control, signal.SIGSTOP)
        try:
            self.kill_ztunnel(node)
            self._healthy(node)
        finally:
            os.kill(control, signal.SIGCONT)

    def _freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self.chance.uniform(0.1, LONGEST_FREEZE_SECONDS))
        finally:
            os.kill(pid, signal.SIGCONT)

    def _healthy(self, node: str) -> None:
        """The agent has a ztunnel, which has the listeners and has left them with the agent."""

        def settled() -> bool:
            pids = self.mesh.process(f"agent/{node}"), self.mesh.ztunnel(node)
            return all(pids) and all(self._listeners[node] <= sockets_of(pid) for pid in pids)

        wait_for(settled, f"{node} to serve again")


def sockets_of(pid: int) -> set[str]:
    """What *pid* holds, as /proc names sockets."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
            except OSError:
                continue
    except OSError:
        return set()
    return {each for each in found if each.startswith("socket:")}


def listening(pid: int) -> set[str]:
    """Sockets that listen on the proxy's ports in the network namespace of *pid*: always the same three."""
    with open(f"/proc/{pid}/net/tcp6", encoding="ascii") as file:
        rows = [line.split() for line in file][1:]
    # State 0A listens; the ports in hexadecimal are 15001, 15006 and 15008.
    ports = ("3A99", "3A9E", "3AA0")
    return {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1][-4:] in ports}


def run(mesh: Shop, seed: int, seconds: float, rate: float) -> list[Row]:
    """Break it for *seconds*, then look what became of everybody."""
    faults = Faults(mesh, random.Random(seed))
    client = mesh.knock(rate=rate, seconds=seconds + LONGEST_FREEZE_SECONDS, bytes=BYTES)
    wait_until_ready(client)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        faults.one()
    said, _ = client.communicate()
    short = json.loads(said)["short"]
    cut, failed = judge(short, faults.kills)
    for each in failed:
        print(f"unexplained: {each}", file=sys.stderr)
    wrong = sum(outcome == "other bytes" for _, _, outcome in short)
    return [
        Row("seed", "1", seed),
        *(Row(name, "1", count) for name, count in sorted(faults.done.items())),
        Row("connections", "1", len(short)),
        Row("cut_by_a_kill", "1", len(cut)),
        below("failed_unexplained", "1", len(failed), 0),
        below("wrong_bytes", "1", wrong, 0),
        Row("latency_p50", "ms", round(percentile([lasted * 1000 for _, lasted, _ in short], 0.5), 1)),
        Row("latency_max", "ms", round(max(lasted for _, lasted, _ in short) * 1000, 1)),
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="see the top of the file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("-o", "--output", choices=("json", "table"), default="table")
    options = parser.parse_args()
    with shop() as mesh:
        rows = run(mesh, options.seed, options.seconds, options.rate)
    if options.output == "json":
        document = {"kind": "FaultsBenchmark", "machine": describe(), "rows": [asdict(row) for row in rows]}
        print(json.dumps(document, indent=2))
    else:
        for row in rows:
            print(f"{row.metric:24} {row.value:>10g} {row.unit}{'' if row.holds else '  BROKEN'}")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
