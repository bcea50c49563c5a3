"""What the environment says: Istio's names where they make sense here, read once, as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ambient.errors import ConfigError
from ambient.model.address import canonical
from ambient.model.durations import read_limits
from ambient.model.limits import Limits
from ztunnel.environment import ignored
from ztunnel.levels import SCOPES, parse_levels

ADMIN_PORT = 15000
METRICS_PORT = 15020
READY_PORT = 15021

# Istio's default for both deadlines.
DEFAULT_DRAIN_SECONDS = 5.0
_SIZE = re.compile(r"([0-9]{1,15})(Ki|Mi|Gi|)")
DEFAULT_INPOD_UDS = "/var/run/ztunnel/ztunnel.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How this process was asked to run.

    Attributes:
        inpod_uds: The node agent's ZDS socket.
        drain_seconds: How long connections may live on after SIGTERM.
        dns_capture: Whether pods' lookups are answered on port 15053.
        dns_upstreams: Whom to ask for names that the mesh does not know; none: this machine's resolv.conf.
        preferred_namespace: Whose services win over others' of the same name, in lookups.
        socks: Whether pods have a SOCKS5 entry on port 15080.
        levels: What is logged, as RUST_LOG says it; scopes that are not ours are left out.
        admin_uds: A unix socket that answers like port 15000; "" for none.
        snapshot_path: Where the mesh is kept for the next process; "" for nowhere.
        memory_limit: Bytes of resident memory at which new work is refused (from 85 % on); 0 for none.
        ready_fd: Told when this process serves, by whoever started it; -1 for nobody.
        crl_path: A file of revocation lists, looked at again when it changes; "" for none.
        limits: Deadlines and limits of the tunnels.
        ignored: Names that were set and are not honoured, for one warning.
    """

    node: str = ""
    cluster: str = "Kubernetes"
    inpod_uds: str = DEFAULT_INPOD_UDS
    json_log: bool = False
    response_baggage: bool = True
    drain_seconds: float = DEFAULT_DRAIN_SECONDS
    dns_capture: bool = True
    dns_upstreams: tuple[str, ...] = ()
    preferred_namespace: str = ""
    socks: bool = False
    levels: str = "info"
    admin_uds: str = ""
    snapshot_path: str = ""
    memory_limit: int = 0
    ready_fd: int = -1
    crl_path: str = ""
    limits: Limits = field(default_factory=Limits)
    ignored: tuple[str, ...] = ()


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the environment.

    Raises:
        ConfigError: a value means nothing; the message names the variable.
    """
    return Settings(
        node=environ.get("NODE_NAME", ""),
        cluster=environ.get("CLUSTER_ID", "Kubernetes"),
        inpod_uds=environ.get("INPOD_UDS", DEFAULT_INPOD_UDS),
        json_log=_choice(environ, "LOG_FORMAT", {"": False, "plain": False, "text": False, "json": True}),
        response_baggage=_choice(
            environ, "ENABLE_RESPONSE_BAGGAGE", {"": True, "true": True, "false": False}
        ),
        drain_seconds=drain_deadline(environ),
        # ztunnel: on unless it is set to something that is not true.
        dns_capture=environ.get("ISTIO_META_DNS_CAPTURE", "true").lower() == "true",
        dns_upstreams=_addresses(environ, "AMBIENT_DNS_UPSTREAMS"),
        preferred_namespace=environ.get("PREFERED_SERVICE_NAMESPACE", ""),
        socks=_choice(environ, "UNSTABLE_ENABLE_SOCKS5", {"": False, "true": True, "false": False}),
        levels=own_levels(environ.get("RUST_LOG", "")),
        admin_uds=environ.get("AMBIENT_ADMIN_UDS", ""),
        snapshot_path=environ.get("AMBIENT_MESH_SNAPSHOT", ""),
        memory_limit=_bytes(environ, "AMBIENT_MEMORY_LIMIT"),
        ready_fd=_descriptor(environ, "AMBIENT_READY_FD"),
        crl_path=environ.get("CRL_PATH", ""),
        limits=read_limits(environ),
        ignored=ignored(environ),
    )


def own_levels(rust_log: str) -> str:
    """The parts of RUST_LOG that mean something here; a scope such as ``h2=off`` does not.

    Raises:
        ConfigError: a part is no level at all.
    """
    parts = [part.strip() for part in rust_log.split(",") if part.strip()]
    own = [part for part in parts if "=" not in part or part.partition("=")[0] in SCOPES]
    text = ",".join(own) or "info"
    try:
        parse_levels(text)
    except ConfigError as exc:
        raise ConfigError(f"RUST_LOG: {exc}") from exc
    return text


def drain_deadline(environ: Mapping[str, str]) -> float:
    """``CONNECTION_TERMINATION_DEADLINE``, else five seconds before the platform kills us, else 5 s.

    Source: ztunnel's ``src/config.rs``: one second before if the grace period is 10 s or less.
    """
    own = environ.get("CONNECTION_TERMINATION_DEADLINE", "")
    if own:
        return _seconds("CONNECTION_TERMINATION_DEADLINE", own.removesuffix("s"))
    grace = environ.get("TERMINATION_GRACE_PERIOD_SECONDS", "")
    if not grace:
        return DEFAULT_DRAIN_SECONDS
    seconds = _seconds("TERMINATION_GRACE_PERIOD_SECONDS", grace)
    return max(1.0, seconds - (1.0 if seconds <= 10 else 5.0))


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise ConfigError(f"{name} is not a number of seconds: {text!r}")
    return seconds


def _addresses(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    try:
        return tuple(canonical(text) for text in environ.get(name, "").split())
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc}") from exc


def _bytes(environ: Mapping[str, str], name: str) -> int:
    """``512Mi`` and its like, as Kubernetes writes them; a plain number is bytes."""
    text = environ.get(name, "")
    found = _SIZE.fullmatch(text)
    if text and found is None:
        raise ConfigError(f"{name} is {text!r}, must be a size such as 512Mi")
    return int(found[1]) * 1024 ** ("", "Ki", "Mi", "Gi").index(found[2]) if found else 0


def _descriptor(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if text and not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name} is {text!r}, must be the number of a descriptor")
    return int(text) if text else -1


def _choice(environ: Mapping[str, str], name: str, meanings: dict[str, bool]) -> bool:
    value = environ.get(name, "").lower()
    if value not in meanings:
        raise ConfigError(f"{name} is {value!r}, expected one of: {', '.join(filter(None, meanings))}")
    return meanings[value]
