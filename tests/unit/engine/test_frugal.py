"""What start-up needed is given back, and nothing that anybody still needs."""

from __future__ import annotations

import subprocess
import sys

from ambient.engine.frugal import forget_lookups, unchanged_file_mappings

SMAPS = """\
7f0000000000-7f0000010000 r--p 00000000 fe:00 1    /usr/lib/libone.so
Rss:                  64 kB
Anonymous:             0 kB
7f0000010000-7f0000020000 r-xp 00010000 fe:00 1    /usr/lib/lib one.so
Anonymous:             0 kB
7f0000020000-7f0000030000 r--p 00020000 fe:00 1    /usr/lib/relocated.so
Anonymous:             8 kB
7f0000030000-7f0000040000 rw-p 00030000 fe:00 1    /usr/lib/data.so
Anonymous:             0 kB
7f0000040000-7f0000050000 r--s 00000000 fe:00 1    /usr/share/shared
Anonymous:             0 kB
7f0000050000-7f0000060000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7ffc00000000-7ffc00010000 r-xp 00000000 00:00 0    [vdso]
Anonymous:             0 kB
"""


def test_only_unchanged_pages_of_files_that_nobody_writes_are_dropped() -> None:
    """A relocated page that is dropped comes back as it was linked: the next call through it crashes."""
    assert list(unchanged_file_mappings(SMAPS.splitlines())) == [
        (0x7F0000000000, 0x7F0000010000),
        (0x7F0000010000, 0x7F0000020000),
    ]


def test_a_process_goes_on_with_less() -> None:
    """In a process of its own, as a mistake would end it: TLS, extension modules and imports still work."""
    program = """
import ssl, trio
from cryptography.hazmat.primitives.asymmetric import ec
from ambient.engine.frugal import release_unused

def file_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssFile"))

before = file_kib()
release_unused()
print(file_kib() < before / 2)
import decimal
ec.generate_private_key(ec.SECP256R1())
ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
trio.run(trio.sleep, 0)
print(decimal.Decimal("1") + 1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.returncode) == ("True\n2\n", 0), done.stderr


def test_a_remembered_lookup_holds_a_name_and_is_forgotten() -> None:
    """Where names are not counted (Python 3.12), there is nothing to let go."""
    name = sys.intern("a_name_of_this_test")
    counted = type("Counted", (), {name: 1})
    forget_lookups()
    before = sys.getrefcount(name)

    assert getattr(counted, name) == 1
    if sys.version_info < (3, 12):
        assert sys.getrefcount(name) > before
    forget_lookups()

    assert sys.getrefcount(name) == before
