"""``ambient bench``: the comparison, and looking at what earlier ones found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ambient.cli.rundirs import own_run_dir
from ambient.cli.session import DeskCommand, DeskGroup, Session, pass_session
from ambient.errors import AmbientError, ConfigError

if TYPE_CHECKING:
    from ambient.bench.plan import Options
    from ambient.bench.report import Run
    from ambient.bench.scenario import Scenario
    from ambient.model.manifest import Parsed

RESPONSE_BYTES = "ambient.dev/response-bytes"
RUN_FILE = "run.json"


@click.group(cls=DeskGroup)
def bench() -> None:
    """Compare the modes under one and the same load."""


@bench.command(cls=DeskCommand)
@click.argument("scenario", default="bookinfo")
@click.option("--modes", default="none,sidecar,ambient,ambient+waypoint", show_default=True)
@click.option("--engine", type=click.Choice(["ambient", "envoy"]), default="ambient", help="Whose sidecar.")
@click.option("--rate", type=float, default=200.0, show_default=True, help="Requests a second.")
@click.option(
    "--duration", default="30s", show_default=True, help="Measured load per mode, all rounds together."
)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--connections", type=int, default=16, show_default=True)
@click.option("--payload", type=int, help="Bytes of every answer; only for a mesh that bench starts itself.")
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--quick", is_flag=True, help="Under three minutes on two cores.")
@click.option(
    "--judge/--no-judge", default=None, help="Run Envoy's sidecar beside ours (default: if installed)."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write run.json there.")
@pass_session
def run(session: Session, /, scenario: str, quick: bool, out: Path | None, **asked: Any) -> int:
    """Drive the same load through each mode of SCENARIO (bookinfo, or a manifest) and compare.

    Uses the mesh that runs, or starts one of its own and takes it down.
    """
    from ambient.bench import report, text

    options = options_of(asked)
    options = options.quick() if quick else options
    with a_mesh(session, scenario, options.payload) as (where, own):
        found = _compare(where, scenario, options, restore=not own)
    document = report.document(found)
    if out is not None:
        save(out, document)
    session.emit_document(document, lambda: text.summary(document))
    return 0 if all(mode["valid"] for mode in document["modes"]) else 1


def options_of(asked: Mapping[str, Any]) -> Options:
    """The options of the command line as a value.

    Raises:
        UsageError: one of them will not do.
    """
    from ambient.bench.plan import Options
    from ambient.cli.output import parse_duration

    judge = asked["judge"]
    rest = {name: asked[name] for name in ("engine", "rate", "rounds", "connections", "seed", "payload")}
    try:
        return Options(
            modes=tuple(part.strip() for part in asked["modes"].split(",") if part.strip()),
            duration=parse_duration(asked["duration"]),
            judge=_envoy_is_here() if judge is None else judge,
            **rest,
        )
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc


def _envoy_is_here() -> bool:
    from importlib.util import find_spec

    return find_spec("envoy") is not None


@contextmanager
def a_mesh(session: Session, scenario: str, payload: int | None) -> Iterator[tuple[Session, bool]]:
    """The mesh that runs, or one of our own that is gone afterwards; and which of the two it is."""
    from ambient.fabric import clean

    if clean.running(str(session.where)) is not None:
        if payload is not None:
            raise click.UsageError("--payload needs a mesh of bench's own; stop this one with: ambient down")
        session.say(f"Using the mesh in {session.where}.")
        yield session, False
        return
    own = replace(session, run_dir=own_run_dir(session.where))
    try:
        _start(own, scenario, payload)
        yield own, True
    finally:
        session.say("Taking the mesh down ...")
        clean.clean(str(own.where))


def _start(session: Session, scenario: str, payload: int | None) -> None:
    from ambient.bench.scenario import manifest
    from ambient.cli.lifecycle import bring_up
    from ambient.cli.objects import read_manifests

    parsed = read_manifests(session, (str(manifest(scenario)),))
    for note in bring_up(session, with_payload(parsed, payload), nodes=2):
        session.say(f"Warning: {note}")


def with_payload(parsed: Parsed, payload: int | None) -> Parsed:
    """*parsed* with every built-in workload answering *payload* bytes."""
    if payload is None:
        return parsed
    return replace(
        parsed, objects=tuple(replace(one, body=_sized(one.body, payload)) for one in parsed.objects)
    )


def _sized(value: Any, payload: int) -> Any:
    if isinstance(value, Mapping):
        return {k: str(payload) if k == RESPONSE_BYTES else _sized(v, payload) for k, v in value.items()}
    return [_sized(one, payload) for one in value] if isinstance(value, list | tuple) else value


def _compare(session: Session, scenario: str, options: Options, *, restore: bool) -> Run:
    from ambient.bench import run as bench_run
    from ambient.bench.live import LiveMesh
    from ambient.bench.plan import Turn

    with session.control() as control:
        pods = control.call("get", kind="Pod", namespace=None, name=None)
    with session.fabric() as fabric:
        kind = str(fabric.call("status")["fabric"])
    if kind == "loopback":
        hint = "this machine forbids them; see: ambient check"
        raise AmbientError(f"bench needs network namespaces to capture and to measure in: {hint}")
    client, before, payload = _subject(scenario, pods)
    session.say(
        f"About {bench_run.estimate(options) / 60:.1f} minutes: {', '.join(t.label for t in options.turns)}"
    )
    mesh = LiveMesh(session.where, client)
    try:
        subject = bench_run.Subject(client.name, kind, payload)
        return bench_run.run(mesh, subject, options, session.say)
    finally:
        if restore:
            mesh.switch(Turn(before))
        mesh.close()


def _subject(scenario: str, pods: list[Mapping[str, Any]]) -> tuple[Scenario, str, int]:
    """The client, the mode its namespace is in now, and how long answers are."""
    from ambient.bench.scenario import find, name_of

    client = find(name_of(scenario), pods)
    mine = [pod for pod in pods if pod["metadata"]["namespace"] == client.namespace]
    modes = {str((pod["status"].get("ambient") or {}).get("mode", "none")) for pod in mine}
    sizes = [int((pod["metadata"].get("annotations") or {}).get(RESPONSE_BYTES, 0)) for pod in mine]
    return client, modes.pop() if len(modes) == 1 else "none", max(sizes, default=0)


def save(folder: Path, document: Mapping[str, Any]) -> None:
    """Write the document where ``report`` and ``compare`` find it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> dict[str, Any]:
    """Read a run back.

    Raises:
        ConfigError: there is none, or it is none.
    """
    path = folder / RUN_FILE if folder.is_dir() else folder
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; make one with: ambient bench run --out {folder}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: not JSON: {exc}") from exc
    if not isinstance(found, dict) or found.get("kind") != "BenchRun":
        raise ConfigError(f"{path}: not a BenchRun")
    return found


@bench.command(cls=DeskCommand)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["text", "markdown"]), default="text")
@pass_session
def report(session: Session, folder: Path, form: str) -> None:
    """Print the run that was written to FOLDER."""
    from ambient.bench import text

    found = load(folder)
    session.emit_document(found, lambda: text.summary(found) if form == "text" else _markdown(found))


def _markdown(found: Mapping[str, Any]) -> str:
    from ambient.bench import text

    modes = text.markdown(text.HEADERS, [text.mode_row(mode) for mode in found["modes"]])
    pairs = text.markdown(text.RATIO_HEADERS, text.ratio_rows(found["ratios"]))
    return f"# {found['scenario']}, {found['started']}\n\n{modes}\n{pairs}"


@bench.command(cls=DeskCommand)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@pass_session
def compare(session: Session, first: Path, second: Path) -> int:
    """Say which ratios of two runs agree within their intervals; exit 1 if one does not."""
    from ambient.bench.agreement import agreements
    from ambient.cli.output import table

    found = agreements(load(first), load(second))
    rows = [(one["ratio"], one["metric"], one["first"], one["second"], one["agrees"]) for one in found]
    headers = ("RATIO", "METRIC", "FIRST", "SECOND", "AGREES")
    session.emit("BenchComparison", {"ratios": found}, lambda: table(headers, rows))
    return 1 if any(one["agrees"] is False for one in found) else 0
