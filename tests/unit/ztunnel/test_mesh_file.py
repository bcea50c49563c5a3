"""What a ztunnel knows, kept for the next one: written whole or not at all, believed only if it is whole."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from ambient.model.mesh import Change, Mesh
from ambient.wire import snapshot
from tests.meshes import mesh_of, workload
from ztunnel.mesh_file import QUARANTINE_SUFFIX, MeshFile

WEB, API = workload("web", "10.244.1.2"), workload("api", "10.244.2.3")


def keep(path: Path, mesh: Mesh, *changes: Change) -> None:
    """Apply and keep *changes*, one after the other, on a clock that jumps."""

    async def main() -> None:
        file = MeshFile(str(path), mesh)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.keep)
            for change in changes:
                mesh.apply(change)
                file.changed()
                await trio.sleep(10)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.001))


def load(path: Path) -> Change | None:
    return MeshFile(str(path), Mesh()).load()


def test_the_next_process_knows_what_the_last_one_knew(tmp_path: Path) -> None:
    """And nobody but us can read it."""
    path, mesh = tmp_path / "mesh.snapshot", Mesh()

    keep(path, mesh, Change(workloads=(WEB,)), Change(workloads=(API,)))

    assert load(path) == mesh.snapshot(ordered=False)
    assert [each.name for each in tmp_path.iterdir()] == ["mesh.snapshot"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_path_nothing_is_kept() -> None:
    """A ztunnel that somebody starts by hand."""
    assert MeshFile("", Mesh()).load() is None


def test_nothing_was_kept_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first start of all is no error."""
    assert load(tmp_path / "mesh.snapshot") is None
    assert caplog.records == []


def spoil(path: Path, how: str) -> None:
    good = b"".join(snapshot.pieces(mesh_of(WEB).snapshot()))
    path.write_bytes(good)
    path.chmod(0o600)
    match how:
        case "cut":
            path.write_bytes(good[:-1])
        case "changed":
            path.write_bytes(good.replace(b"web", b"wxb", 1))
        case "newer":
            path.write_bytes(good.replace(b"snapshot 1", b"snapshot 9", 1))
        case "empty":
            path.write_bytes(b"")
        case "writable-by-others":
            path.chmod(0o666)
        case "link":
            path.rename(path.with_name("elsewhere"))
            path.symlink_to(path.with_name("elsewhere"))
        case "directory":
            path.unlink()
            path.mkdir()
        case "fifo":
            path.unlink()
            os.mkfifo(path)


@pytest.mark.parametrize(
    "how", ["cut", "changed", "newer", "empty", "writable-by-others", "link", "directory", "fifo"]
)
def test_what_cannot_be_believed_is_put_aside(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With one line, never a crash; the next start does not meet it again."""
    path = tmp_path / "mesh.snapshot"
    spoil(path, how)

    with caplog.at_level(logging.DEBUG):
        assert load(path) is None
        assert load(path) is None

    assert len(caplog.records) == 1
    assert QUARANTINE_SUFFIX in caplog.records[0].message
    assert os.path.lexists(str(path) + QUARANTINE_SUFFIX)


def test_a_disk_that_is_full_costs_nothing_but_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Serving goes on, the last good file stays, and what is newer is written when there is room again."""
    folder = tmp_path / "node"
    folder.mkdir()
    path, mesh = folder / "mesh.snapshot", Mesh()
    keep(path, mesh, Change(workloads=(WEB,)))

    async def main() -> None:
        file = MeshFile(str(path), mesh)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.keep)
            folder.rename(tmp_path / "away")
            mesh.apply(Change(workloads=(API,)))
            file.changed()
            await trio.sleep(20)
            assert len(caplog.records) == 1
            (tmp_path / "away").rename(folder)
            await trio.sleep(20)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.001))

    assert load(path) == mesh.snapshot(ordered=False)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    """Each kill would leave another one."""
    (tmp_path / "mesh.snapshot.4711").write_bytes(b"half")
    (tmp_path / "mesh.snapshot.quarantined").write_bytes(b"for people")

    keep(tmp_path / "mesh.snapshot", Mesh())

    assert [each.name for each in tmp_path.iterdir()] == ["mesh.snapshot.quarantined"]
