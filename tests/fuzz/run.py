"""Mutate a target's corpus for a while: ``python tests/fuzz/run.py hbone --seconds 60 --seed 1``.

Plain Python without coverage feedback, so that it runs wherever the tests do; a find is written beside the
corpus, to be moved into it with its repair.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent.parent))

from tests.fuzz.targets import TARGETS  # noqa: E402 - the path is set just above.

# The largest input worth trying: a few frames, an authority, a head. Picked, not measured.
MAX_INPUT_BYTES = 4096
INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\r\n",
    b"%",
    b":",
    b"[",
    b"..",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
)


def mutated(data: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """A few random edits of *data*."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        where = chance.randrange(len(out) + 1)
        match chance.randrange(5):
            case 0 if where < len(out):
                out[where] ^= 1 << chance.randrange(8)
            case 1:
                out[where:where] = chance.choice(INTERESTING)
            case 2:
                del out[where : where + chance.randint(1, 16)]
            case 3:
                other = chance.choice(corpus)
                start = chance.randrange(len(other) + 1)
                out[where:where] = other[start : start + chance.randint(1, 64)]
            case _ if where < len(out):
                out[where] = chance.randrange(256)
    return bytes(out[:MAX_INPUT_BYTES])


def main() -> int:
    """Fuzz; exit 1 on a find."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    corpus = [file.read_bytes() for file in sorted((ROOT / "corpus" / asked.target).iterdir())]
    end, count = time.monotonic() + asked.seconds, 0
    while time.monotonic() < end:
        data = mutated(chance.choice(corpus), corpus, chance)
        count += 1
        try:
            TARGETS[asked.target](data)
        except Exception as exc:
            found = Path(f"{asked.target}-{abs(hash(data)):x}.find")
            found.write_bytes(data)
            print(f"after {count} inputs: {exc!r}; input in {found}")
            return 1
    print(f"{asked.target}: {count} inputs, no find")
    return 0


if __name__ == "__main__":
    sys.exit(main())
