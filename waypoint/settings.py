"""What the environment says, read once, as values. Names are Istio's where they make sense here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ambient.errors import ConfigError
from ambient.model.durations import read_limits
from ambient.model.limits import Limits

METRICS_PORT = 15020
READY_PORT = 15021

# How long exchanges and connections may live on after SIGTERM; Istio's default for its own drain.
DEFAULT_DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How this process was asked to run.

    Attributes:
        pod_uid: Our own workload's uid, as the control plane names it.
        drain_seconds: How long connections may live on after SIGTERM.
        access_log: Write one line per request.
        crl_path: A file of revocation lists, looked at again when it changes; "" for none.
        limits: Deadlines and limits of the tunnels, under the names that ztunnel has for them.
    """

    pod_uid: str
    pod_name: str = ""
    namespace: str = ""
    service_account: str = "default"
    pod_ip: str = ""
    node: str = ""
    cluster: str = "Kubernetes"
    run_dir: str = ""
    drain_seconds: float = DEFAULT_DRAIN_SECONDS
    access_log: bool = True
    crl_path: str = ""
    limits: Limits = field(default_factory=Limits)


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the environment.

    Raises:
        ConfigError: a value is missing or means nothing; the message names the variable.
    """
    uid = environ.get("POD_UID", "")
    if not uid:
        raise ConfigError("POD_UID is not set: a waypoint or sidecar belongs to one pod")
    return Settings(
        pod_uid=uid,
        pod_name=environ.get("POD_NAME", ""),
        namespace=environ.get("POD_NAMESPACE", ""),
        service_account=environ.get("SERVICE_ACCOUNT", "") or "default",
        pod_ip=environ.get("POD_IP", ""),
        node=environ.get("NODE_NAME", ""),
        cluster=environ.get("CLUSTER_ID", "Kubernetes"),
        run_dir=environ.get("AMBIENT_RUN_DIR", ""),
        drain_seconds=_seconds(environ, "CONNECTION_TERMINATION_DEADLINE", DEFAULT_DRAIN_SECONDS),
        access_log=_flag(environ, "AMBIENT_ACCESS_LOG"),
        crl_path=environ.get("CRL_PATH", ""),
        limits=read_limits(environ),
    )


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise ConfigError(f"{name} is not a number of seconds: {text!r}")
    return seconds


def _flag(environ: Mapping[str, str], name: str) -> bool:
    match environ.get(name, "true").lower():
        case "true" | "1" | "":
            return True
        case "false" | "0":
            return False
        case other:
            raise ConfigError(f"{name} is {other!r}, expected true or false")
