"""``ambient apply`` and ``ambient delete``: files in, whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ambient.cli import kinds
from ambient.cli.get import asked_kind
from ambient.cli.session import DeskCommand, Session, pass_session
from ambient.errors import ConfigError

if TYPE_CHECKING:
    from ambient.model.manifest import Parsed
    from ambient.model.objects import Object

SUFFIXES = (".yaml", ".yml", ".json")
FILE_OPTION = click.option(
    "-f", "--filename", "files", multiple=True, metavar="FILE", help="File, directory, or - for stdin."
)


@click.command(cls=DeskCommand)
@FILE_OPTION
@pass_session
def apply(session: Session, files: tuple[str, ...]) -> None:
    """Create or change the objects in files; one bad object and nothing is applied."""
    if not files:
        raise click.UsageError("apply needs -f FILE")
    parsed = read_manifests(session, files)
    with session.control() as control:
        result = control.call("apply", objects=as_wire(parsed))
    _report(session, "Applied", result, parsed, "applied")


@click.command(cls=DeskCommand)
@FILE_OPTION
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@pass_session
def delete(session: Session, files: tuple[str, ...], kind: str | None, names: tuple[str, ...]) -> None:
    """Delete the objects in files, or KIND NAME..."""
    if bool(files) == bool(kind):
        raise click.UsageError("delete needs either -f FILE or KIND NAME")
    if files:
        parsed = read_manifests(session, files)
        wanted = as_wire(parsed)
    else:
        assert kind is not None
        wanted = named(session, kind, names)
    with session.control() as control:
        result = control.call("delete", objects=wanted)
    _report(session, "Deleted", result, None, "deleted", wanted)


def named(session: Session, kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The least of an object that names one: ``delete pod a b`` or ``delete pod/a``."""
    if "/" in kind:
        kind, name = kind.split("/", 1)
        names = (name, *names)
    if not names:
        raise click.UsageError("delete KIND needs a NAME")
    known = asked_kind(kind)
    place = {} if known in kinds.CLUSTER_SCOPED else {"namespace": session.ns}
    return [{"kind": known, "metadata": {"name": name, **place}} for name in names]


def read_manifests(session: Session, files: Iterable[str]) -> Parsed:
    """Read and parse every file; warnings go to stderr, once each.

    Raises:
        ConfigError: a file that cannot be read or is not acceptable; nothing was applied.
    """
    from ambient.model.manifest import parse_manifests

    texts = [pair for name in files for pair in _read(name)]
    parsed = parse_manifests(texts, namespace=session.ns)
    for warning in parsed.warnings:
        session.say(f"Warning: {warning}")
    return parsed


def _read(name: str) -> list[tuple[str, str]]:
    if name == "-":
        return [("<stdin>", sys.stdin.read())]
    path = Path(name)
    inside = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES) if path.is_dir() else [path]
    if not inside:
        raise ConfigError(f"{name}: no .yaml, .yml or .json file in this directory")
    return [(str(one), _text(one)) for one in inside]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 text (byte {exc.start})") from exc


def as_wire(parsed: Parsed) -> list[dict[str, Any]]:
    """The objects as the admin wire carries them."""
    return [{**one.body, "metadata": _metadata(one), "origin": one.origin} for one in parsed.objects]


def _metadata(one: Object) -> dict[str, Any]:
    """The namespace is written out: control must not guess which -n was meant."""
    found = dict(one.body.get("metadata") or {})
    return {**found, "namespace": one.namespace} if one.namespace else found


def _report(
    session: Session,
    kind: str,
    result: Any,
    parsed: Parsed | None,
    verb: str,
    wanted: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Say what happened to each object, as kubectl does."""
    found = result.get("objects") if isinstance(result, Mapping) else result
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        objects = as_wire(parsed) if parsed else wanted
        found = [
            {"kind": o["kind"], "name": kinds.name_of(o), "namespace": kinds.namespace_of(o)} for o in objects
        ]
    session.emit(kind, {"objects": found}, lambda: "".join(_line(session, one, verb) for one in found))


def _line(session: Session, one: Mapping[str, Any], verb: str) -> str:
    name = f"{str(one.get('kind', '')).lower()}/{kinds.name_of(one)}"
    return f"{name}\n" if session.output == "name" else f"{name} {one.get('result', verb)}\n"
