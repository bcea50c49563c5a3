"""Kill the node agent at random points of enrollments and releases, and compare the kernel with the truth.

    python benchmarks/agent_kills.py --kills 200 --seed 1

Prints where the kills found the pod; ends with 1 at the first state that the next agent does not put right.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lab import enter_namespaces
from tests.netns import agent_kills


def main() -> int:
    """Run in namespaces of our own; everything ends with this process."""
    parser = argparse.ArgumentParser(description="kill the node agent at random points")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    enter_namespaces(nested=False)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        try:
            body = functools.partial(agent_kills.run, Path(directory), options.kills, options.seed)
            found = trio.run(body)
        except BaseExceptionGroup as group:
            print(f"error: {group.exceptions[0]}", file=sys.stderr)
            return 1
    seconds = round(time.monotonic() - started, 1)
    result = {"kind": "AgentKills", "kills": options.kills, "seed": options.seed, "wrong_in_the_end": 0}
    print(json.dumps({**result, "found_after_kill": dict(found), "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
