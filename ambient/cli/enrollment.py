"""``ambient enroll`` and ``ambient unenroll``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from ambient.cli import kinds, output
from ambient.cli.session import DeskCommand, Session, marks, pass_session
from ambient.errors import ConfigError
from ambient.wire.admin import CallFailed, ExitCode

HEADERS = ("NAMESPACE", "POD", "NODE", "ENROLLED", "RESTARTS", "KEPT", "MS", "REASON")
# States of a pod that has arrived in its mode, as control tells them.
SETTLED = {"ambient": ("enrolled", "failed"), "sidecar": ("sidecar",), "none": ("none", "draining")}
# A small namespace is done at once; a large one says every so often how far it is. Picked.
PROGRESS_PODS = 25
# Connections shown for each pod in text; JSON has a hundred.
SHOWN = 5
# Targets that are no pods of ours.
GUEST_KINDS = ("pid", "netns")
# Where ip(8) keeps network namespaces by name.
NAMED_NETNS = "/run/netns"
_WAIT = click.option("--wait/--no-wait", default=True, help="Return when every pod is done (default).")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
_NAME = click.option("--name", default="", help="Of a pid/ or netns/: the name of its workload.")
_ACCOUNT = click.option(
    "--service-account", default="default", help="Of a pid/ or netns/: whose identity it gets."
)
_NODE = click.option("--node", default="", help="Of a pid/ or netns/: whose ztunnel serves it.")
_EXISTING = click.option(
    "--existing",
    type=click.Choice(["keep", "reset"]),
    default="keep",
    help="Established connections: leave them alone, or reset them.",
)


@click.command(cls=DeskCommand)
@click.argument("targets", nargs=-1, required=True)
@click.option("--mode", type=click.Choice(["ambient", "sidecar", "none"]), default="ambient")
@click.option("--engine", type=click.Choice(["ambient", "envoy"]), default="ambient", help="Whose sidecar.")
@_EXISTING
@_DRY_RUN
@_WAIT
@_NAME
@_ACCOUNT
@_NODE
@pass_session
def enroll(
    session: Session,
    /,
    targets: tuple[str, ...],
    mode: str,
    name: str,
    service_account: str,
    node: str,
    **options: Any,
) -> int:
    """Take the pods of TARGETS into the mesh while they run.

    TARGETS are namespace/NS, pod/NAME, or what no mesh started: pid/PID and netns/PATH (such as
    netns//run/netns/web, or netns/web), which become workloads of the namespace -n.
    """
    guests = [text for text in targets if text.partition("/")[0] in GUEST_KINDS]
    if mode == "none":
        return _release(session, targets, options)
    if name and len(guests) != 1:
        raise click.UsageError("--name is for one pid/ or netns/")
    if guests and mode == "sidecar":
        raise click.UsageError("a sidecar needs a restart: pid/ and netns/ can be in mode ambient only")
    # What is mistyped is said before anything is asked of the mesh.
    targets_of(session, [text for text in targets if text not in guests])
    described = {"name": name, "service_account": service_account, "node": node}
    if guests and options["dry_run"]:
        return _forecast(session, targets, described, options)
    with ExitStack() as back:
        known = [_adopted(session, text, described, back) if text in guests else text for text in targets]
        code = _switch(session, targets, known, mode, options)
        if code == 0:
            back.pop_all()
    return code


@click.command(cls=DeskCommand)
@click.argument("targets", nargs=-1, required=True)
@_EXISTING
@_DRY_RUN
@_WAIT
@pass_session
def unenroll(session: Session, /, targets: tuple[str, ...], **options: Any) -> int:
    """Release the pods of TARGETS; what their proxied connections carry goes on until it ends."""
    return _release(session, targets, {**options, "engine": "ambient"})


def _release(session: Session, targets: tuple[str, ...], options: Mapping[str, Any]) -> int:
    known: list[str | dict[str, str]] = []
    leaving: list[dict[str, str]] = []
    for text in targets:
        if text.partition("/")[0] in GUEST_KINDS:
            leaving.append(_guest_named(session, text))
            known.append(leaving[-1])
        else:
            known.append(text)
    code = _switch(session, targets, known, "none", options)
    if code == 0 and not options["dry_run"]:
        for target in leaving:
            _dismiss(session, target)
    return code


def _forecast(
    session: Session, targets: Sequence[str], described: Mapping[str, str], options: Mapping[str, Any]
) -> int:
    """A dry run with guests among *targets*: those that are no pods yet are looked at by the supervisor."""
    known: list[str | dict[str, str]] = []
    lines: list[Mapping[str, Any]] = []
    for text in targets:
        if text.partition("/")[0] not in GUEST_KINDS:
            known.append(text)
            continue
        found = _asked(session, "examine", text, {**described, "existing": options["existing"]})
        if "known" in found:
            known.append({"kind": "pod", **found["known"]})
        else:
            lines.append(found)
    return _switch(session, targets, known, "ambient", options, lines)


def _adopted(session: Session, text: str, described: Mapping[str, str], back: ExitStack) -> dict[str, str]:
    """Have the mesh take in a namespace as a pod; on the way back it is forgotten again."""
    found = _asked(session, "adopt", text, described)
    target = {"kind": "pod", "namespace": found["namespace"], "name": found["name"]}
    back.callback(_dismiss, session, target)
    return target


def _asked(session: Session, method: str, text: str, described: Mapping[str, str]) -> Any:
    """Ask the supervisor about a namespace that goes along as a descriptor."""
    pid, path = where_is(text)
    values = {"pid": pid, "path": path, "namespace": session.ns, **described}
    with (
        _opened(f"/proc/{pid}/ns/net" if pid else path, text) as netns,
        _opened("/", "/") as root,
        session.fabric() as fabric,
    ):
        if os.path.samestat(os.fstat(netns), os.stat("/proc/self/ns/net")):
            raise ConfigError(f"{text}: it is in your own network namespace: its traffic is the machine's")
        return fabric.call_with((netns, root), method, values)


def _guest_named(session: Session, text: str) -> dict[str, str]:
    pid, path = where_is(text)
    with _opened(f"/proc/{pid}/ns/net" if pid else path, text) as netns, session.fabric() as fabric:
        found = fabric.call_with((netns,), "find_guest", {})
    return {"kind": "pod", "namespace": found["namespace"], "name": found["name"]}


def _dismiss(session: Session, target: Mapping[str, str]) -> None:
    with session.fabric() as fabric:
        fabric.call("dismiss", namespace=target["namespace"], name=target["name"])


def where_is(text: str) -> tuple[int, str]:
    """Read ``pid/PID`` (PID, "") or ``netns/PATH`` (0, absolute path).

    Raises:
        UsageError: neither.
    """
    kind, _, rest = text.partition("/")
    if kind == "pid":
        if not rest.isascii() or not rest.isdigit() or not int(rest):
            raise click.UsageError(f"not pid/PID such as pid/4711: {text!r}")
        return int(rest), ""
    if not rest:
        raise click.UsageError(f"not netns/PATH such as netns//run/netns/web: {text!r}")
    # A bare name is one of "ip netns".
    return 0, rest if rest.startswith("/") else f"{NAMED_NETNS}/{rest}"


@contextmanager
def _opened(path: str, text: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(f"{text}: no such {'process' if text.startswith('pid/') else 'file'}") from None
    except PermissionError:
        who = "only root, and in a mesh that root has started, enrolls what others run"
        raise ConfigError(f"{text}: you may not enter it; {who}") from None
    except OSError as exc:
        raise ConfigError(f"{text}: {exc.strerror}") from exc
    try:
        yield fd
    finally:
        os.close(fd)


def targets_of(session: Session, texts: Sequence[str]) -> list[dict[str, str]]:
    """Read ``namespace/NS`` and ``pod/NAME``.

    Raises:
        UsageError: something else.
    """
    try:
        return [_target(session, text) for text in texts]
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc


def _target(session: Session, text: str) -> dict[str, str]:
    kind, name = kinds.parse_target(text)
    match kind:
        case "Namespace":
            return {"kind": "namespace", "namespace": name, "name": name}
        case "Pod":
            return {"kind": "pod", "namespace": session.ns, "name": name}
        case _:
            raise ConfigError(f"cannot enroll {text!r}; give namespace/NS, pod/NAME, pid/PID or netns/PATH")


def _switch(
    session: Session,
    texts: Sequence[str],
    known: Sequence[str | dict[str, str]],
    mode: str,
    options: Mapping[str, Any],
    guests: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Have control do it, or say what it would do.

    Args:
        guests: What a dry run found of those that control does not know.
    """
    targets = [
        target
        for each in known
        for target in (targets_of(session, [each]) if isinstance(each, str) else [each])
    ]
    result: dict[str, Any] = {"mode": mode, "existing": options["existing"], "dry_run": True}
    if targets:
        with session.control() as control:
            stream = control.stream("enroll", targets=targets, mode=mode, timeout=session.timeout, **options)
            result = _follow(session, stream, mode)
    if guests:
        result = _with_guests(result, guests)
    session.emit("Enrollment", result, lambda: _text(session, texts, mode, result))
    if options["dry_run"]:
        session.say("Dry run: nothing was changed.")
    elif mode == "sidecar" and result.get("restarts"):
        session.say(f"{result['restarts']} pods were restarted to place the sidecars, as in a cluster.")
    return int(ExitCode.FAILED) if result.get("failed") else 0


def _with_guests(result: Mapping[str, Any], guests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    blocked = sum(1 for line in guests if any(each["blocks"] for each in line.get("findings", ())))
    return {
        "restarts": 0,
        "failed": 0,
        "skipped": {},
        **result,
        "pods": [*result.get("pods", ()), *guests],
        "blocked": int(result.get("blocked") or 0) + blocked,
    }


def _follow(session: Session, stream: Any, mode: str) -> dict[str, Any]:
    settled: set[tuple[str, str]] = set()
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            if not isinstance(end.value, dict):
                raise CallFailed(
                    ExitCode.FAILED, "control gave no result; see: ambient logs control"
                ) from None
            return end.value
        if session.verbose:
            session.say(_event(event))
        elif isinstance(event, Mapping) and event.get("state") in SETTLED[mode]:
            settled.add((str(event.get("namespace")), str(event.get("pod"))))
            if len(settled) % PROGRESS_PODS == 0:
                session.say(f"{len(settled)} pods are done ...")


def _event(event: Any) -> str:
    if not isinstance(event, Mapping):
        return str(event)
    return " ".join(f"{key}={value}" for key, value in event.items())


def _text(session: Session, texts: Sequence[str], mode: str, result: Mapping[str, Any]) -> str:
    pods = result.get("pods", [])
    if session.output == "name":
        return "".join(f"pod/{pod['name']}\n" for pod in pods)
    table = output.table(HEADERS, [_row(pod) for pod in pods]) if pods else ""
    if result.get("dry_run"):
        return table + consequences(pods) + forecast(texts, mode, result)
    return table + _connections(pods, str(result.get("existing", "keep"))) + summary(texts, mode, result)


def consequences(pods: Sequence[Mapping[str, Any]]) -> str:
    """What a dry run found: what is in the way, what stays plaintext, and the rules, once for all alike."""
    _good, warning, bad = marks()
    lines = []
    for pod in pods:
        for each in pod.get("findings", ()):
            hint = f" ({each['hint']})" if each.get("hint") else ""
            lines.append(f"{bad if each['blocks'] else warning} pod/{pod['name']}: {each['reason']}{hint}")
        kept = pod.get("established_connections_kept") or 0
        reset = pod.get("established_connections_reset") or 0
        if kept:
            lines.append(f"{warning} pod/{pod['name']}: {kept} established connections would stay plaintext")
        if reset:
            lines.append(f"{warning} pod/{pod['name']}: {reset} established connections would be reset")
        lines += [f"    {each}" for each in (pod.get("established_connections") or ())[:SHOWN]]
    for rules in dict.fromkeys(pod.get("rules", "") for pod in pods if pod.get("rules")):
        names = ", ".join(str(pod["name"]) for pod in pods if pod.get("rules") == rules)
        lines += [f"rules in {names}:", *(f"    {line}" for line in rules.splitlines())]
    return "".join(f"{line}\n" for line in lines)


def forecast(texts: Sequence[str], mode: str, result: Mapping[str, Any]) -> str:
    """The last line of a dry run."""
    good, _warning, bad = marks()
    blocked, pods = int(result.get("blocked") or 0), len(result.get("pods", []))
    what = (
        f"{blocked} of {pods} pods would not be enrolled"
        if blocked
        else f"nothing is in the way of {pods} pods"
    )
    mark, restarts = bad if blocked else good, result.get("restarts", 0)
    return f"{mark} {' '.join(texts)} ({mode}): {what}, {restarts} restarts\n"


def _connections(pods: Sequence[Mapping[str, Any]], existing: str) -> str:
    """The connections that were older than the enrollment, and what became of them."""
    fate = "kept, plaintext until they end" if existing == "keep" else "reset"
    lines = []
    for pod in pods:
        shown = pod.get("established_connections") or ()
        if shown:
            lines.append(f"pod/{pod['name']}: established connections {fate}:")
            lines += [f"    {each}" for each in shown[:SHOWN]]
            lines += [f"    and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    return "".join(f"{line}\n" for line in lines)


def _row(pod: Mapping[str, Any]) -> tuple[object, ...]:
    kept = pod.get("established_connections_kept", 0)
    spent = f"{float(pod.get('duration_ms') or 0):.0f}"
    shown = (pod.get("namespace"), pod.get("name"), pod.get("node"), bool(pod.get("enrolled")))
    return (*shown, pod.get("restarts", 0), kept, spent, pod.get("reason"))


def summary(texts: Sequence[str], mode: str, result: Mapping[str, Any]) -> str:
    """The line that says how it went: ``√ namespace/x enrolled (ambient): 7 pods, 0 restarts``."""
    good, _warning, bad = marks()
    failed = int(result.get("failed", 0))
    done = "released" if mode == "none" else f"enrolled ({mode})"
    pods, restarts = len(result.get("pods", [])), int(result.get("restarts", 0))
    tail = f", {failed} failed" if failed else ""
    counts = f"{pods} pod{'s'[: pods != 1]}, {restarts} restart{'s'[: restarts != 1]}{tail}"
    return f"{bad if failed else good} {' '.join(texts)} {done}: {counts}\n"
