"""The run directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ambient.errors import AmbientError, ConfigError
from ambient.fabric import rundir

RECORD = rundir.Record(init_pid=1, init_started=1, fabric="netns", rootless=True, nodes=2, uid=0)


@pytest.mark.parametrize(
    ("environment", "uid", "path"),
    [
        ({"AMBIENT_RUN_DIR": "/x/y", "XDG_RUNTIME_DIR": "/run/user/5"}, 5, "/x/y"),
        ({"XDG_RUNTIME_DIR": "/run/user/5/"}, 5, "/run/user/5/ambient"),
        ({}, 0, "/run/ambient"),
        ({}, 5, "/tmp/ambient-5"),
    ],
    ids=["named", "xdg", "root", "neither"],
)
def test_where_it_is(environment: dict[str, str], uid: int, path: str) -> None:
    """Every command must find the mesh that ``up`` started."""
    assert rundir.default_path(environment, uid) == path


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """It is all that a later shell has."""
    rundir.write(str(tmp_path), RECORD)

    assert rundir.read(str(tmp_path)) == RECORD
    assert [each.name for each in tmp_path.iterdir()] == [rundir.RECORD_NAME]


def test_no_record_is_no_mesh_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    """Half a file must not look like "nothing runs here"."""
    assert rundir.read(str(tmp_path)) is None
    (tmp_path / rundir.RECORD_NAME).write_text("{")

    with pytest.raises(AmbientError, match="ambient clean"):
        rundir.read(str(tmp_path))


def test_a_reused_pid_is_not_our_mesh() -> None:
    """PID 1 surely runs, but it did not start one tick after boot as the record claims."""
    pid = os.getpid()
    other = rundir.Record(init_pid=pid, init_started=1, fabric="netns", rootless=True, nodes=2, uid=0)

    assert not other.alive


def test_it_is_private(tmp_path: Path) -> None:
    """Its sockets ask for no credential."""
    path = tmp_path / "run"
    path.mkdir(mode=0o755)

    rundir.prepare(str(path))

    assert path.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_sockets_is_refused_at_once(tmp_path: Path) -> None:
    """Later it would be an EINVAL from a daemon's bind."""
    with pytest.raises(ConfigError, match="too long"):
        rundir.prepare(str(tmp_path / ("x" * 100)))
