"""A child that tries what a mesh needs; run as ``python -m ambient.fabric.probe root|rootless``.

Prints the first thing that failed. Trying includes using: AppArmor may grant a user namespace and
withhold every capability in it.
"""

from __future__ import annotations

import sys

from ambient.fabric import bootstrap, pause, syscalls
from ambient.fabric.syscalls import MountFlag


def main(mode: str) -> int:
    """Return 0 if the namespaces of a mesh can be made and used."""
    try:
        bootstrap.make_namespaces(rootless=mode == "rootless")
        syscalls.mount("none", "/", flags=MountFlag.RECURSIVE | MountFlag.SLAVE)
        pause.write_sysctls({"net/ipv4/ip_forward": "1"})
    except OSError as exc:
        print(exc.strerror or exc, exc.filename or "")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
