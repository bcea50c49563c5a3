"""What a ztunnel does not load: a module is memory of every node, twice where the zygote has it, too."""

from __future__ import annotations

import subprocess
import sys

# Keys and certificates are read by ``ambient.pki``; who keeps lists of revoked ones imports what reads them,
# and who meets a peer that compresses its headers, what decompresses these.
NOT_LOADED = (
    *("cryptography", "hpack", "email", "http", "argparse", "asyncio", "multiprocessing", "unittest"),
    *("click", "yaml"),
)


def test_a_ztunnel_loads_no_library_that_it_can_do_without() -> None:
    """Of its 20 MB each of these would be between 0.3 and 4."""
    code = "import sys, ztunnel.zygote; print(*{each.partition('.')[0] for each in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    loaded = set(done.stdout.split())
    assert "trio" in loaded
    assert loaded.isdisjoint(NOT_LOADED)
