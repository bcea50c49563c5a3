"""What this machine can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ambient.fabric import machine
from ambient.fabric.machine import Result


@pytest.mark.parametrize(
    ("sysctls", "rootless", "expected"),
    [
        ({"user/max_user_namespaces": "0"}, True, "user.max_user_namespaces is 0"),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, True, "AppArmor restricts"),
        ({"kernel/unprivileged_userns_clone": "0"}, True, "kernel.unprivileged_userns_clone is 0"),
        ({}, True, "Operation not permitted"),
        ({"user/max_user_namespaces": "0"}, False, "Operation not permitted"),
    ],
    ids=["limit", "apparmor", "debian", "seccomp", "root"],
)
def test_a_refusal_is_named_after_its_setting(sysctls: dict[str, str], rootless: bool, expected: str) -> None:
    """ "Operation not permitted" alone sends people to the wrong place."""
    reason = machine.explain("Operation not permitted", lambda path: sysctls.get(path, ""), rootless=rootless)

    assert expected in reason
    assert machine.hint_for(reason)


def test_success_needs_no_hint() -> None:
    """A hint is for a person who has something to do."""
    assert machine.verdict("it works", "", Result.ERROR) == machine.Check(
        description="it works", result=Result.SUCCESS
    )


def test_plugins_must_be_executable(tmp_path: Path) -> None:
    """A directory of source code is not an installation."""
    (tmp_path / "bridge").write_text("")
    (tmp_path / "ptp").write_text("")
    (tmp_path / "ptp").chmod(0o755)

    assert machine.cni_plugins([str(tmp_path)]) == ("ptp",)


def test_every_check_of_this_machine_has_an_answer() -> None:
    """``ambient check`` must never fail, whatever the machine."""
    for rootless in (True, False):
        for category in machine.categories(rootless=rootless):
            assert category.checks
