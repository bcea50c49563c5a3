"""What a CNI runtime asks of ambient-cni, read, and what it is answered. Pure.

Source: the CNI specification 1.1.0 (github.com/containernetworking/cni, SPEC.md), sections 2, 4 and 5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
# How long an ADD waits for its pod to be captured, unless the configuration says otherwise: ztunnel's own
# patience (17 s), a busy node, and room. Picked, not measured.
ADD_SECONDS = 30.0
MAX_ADD_SECONDS = 300.0
# A network configuration with the results of the plugins before us; picked, not measured.
MAX_INPUT_BYTES = 1024 * 1024

# Specification, section 2: what a container id and an interface name are made of.
_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")


class Code(IntEnum):
    """Error codes: up to 99 the specification's (section 5), from 100 our own."""

    INCOMPATIBLE_VERSION = 1
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    NOT_CAPTURED = 100


class CniError(Exception):
    """The answer is an error; it becomes JSON on standard output, and exit code 1."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class Verb(Enum):
    """What the runtime wants."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"
    VERSION = "VERSION"


# Those about one attachment, and the first version that has each of the others.
_ATTACHMENT = (Verb.ADD, Verb.DEL, Verb.CHECK)
_NEW_IN = {Verb.STATUS: "1.1.0", Verb.GC: "1.1.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the plugin, read.

    Attributes:
        version: The version of the specification that the runtime speaks.
        netns: Path of the pod's network namespace; may be "" for DEL.
        namespace, pod: Who it is for Kubernetes; "" where CNI_ARGS does not say.
        socket: Where the node's agent listens.
        previous: The result of the plugins before; None if there is none.
    """

    verb: Verb
    version: str = VERSIONS[-1]
    container: str = ""
    netns: str = ""
    interface: str = ""
    namespace: str = ""
    pod: str = ""
    socket: str = ""
    timeout: float = ADD_SECONDS
    previous: Mapping[str, Any] | None = None


def read_call(environment: Mapping[str, str], data: bytes) -> Call:
    """Read what the runtime said by *environment* and standard input.

    Raises:
        CniError: it is not what the specification asks for.
    """
    verb = _verb(environment)
    config = _config(data, verb)
    version = str(config.get("cniVersion", VERSIONS[0]))
    if verb is Verb.VERSION:
        return Call(verb=verb, version=version)
    if version not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"cniVersion {version!r} is none of ours", ", ".join(VERSIONS)
        )
    if version < _NEW_IN.get(verb, ""):
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_COMMAND={verb.value} is not in CNI {version}")
    arguments = _arguments(environment.get("CNI_ARGS", ""))
    call = Call(
        verb=verb,
        version=version,
        container=environment.get("CNI_CONTAINERID", ""),
        netns=environment.get("CNI_NETNS", ""),
        interface=environment.get("CNI_IFNAME", ""),
        namespace=arguments.get("K8S_POD_NAMESPACE", ""),
        pod=arguments.get("K8S_POD_NAME", ""),
        socket=_socket(config),
        timeout=_timeout(config),
        previous=_previous(config),
    )
    if verb in _ATTACHMENT:
        _check_attachment(call)
    return call


def _check_attachment(call: Call) -> None:
    if not _CONTAINER.fullmatch(call.container):
        raise CniError(
            Code.INVALID_ENVIRONMENT, f"CNI_CONTAINERID={call.container!r} is missing or malformed"
        )
    if call.interface in (".", "..") or not _INTERFACE.fullmatch(call.interface):
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_IFNAME={call.interface!r} is missing or malformed")
    if call.verb is Verb.DEL:
        return
    if not call.netns:
        raise CniError(Code.INVALID_ENVIRONMENT, "CNI_NETNS is missing")
    if not call.pod or not call.namespace:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            "CNI_ARGS names no pod",
            "ambient-cni needs K8S_POD_NAMESPACE and K8S_POD_NAME",
        )
    if call.previous is None:
        raise CniError(
            Code.INVALID_CONFIG,
            "there is no prevResult",
            "chain ambient-cni after the plugin that makes the interface",
        )


def success(call: Call) -> bytes:
    """What is printed when all went well: for ADD the previous result as it came."""
    match call.verb:
        case Verb.ADD:
            return json.dumps(call.previous).encode()
        case Verb.VERSION:
            return json.dumps({"cniVersion": VERSIONS[-1], "supportedVersions": list(VERSIONS)}).encode()
        case _:
            return b""


def failure(error: CniError, version: str = VERSIONS[-1]) -> bytes:
    """What is printed for an error (section 5)."""
    body: dict[str, Any] = {"cniVersion": version, "code": int(error.code), "msg": str(error)}
    if error.details:
        body["details"] = error.details
    return json.dumps(body).encode()


def _verb(environment: Mapping[str, str]) -> Verb:
    asked = environment.get("CNI_COMMAND", "")
    try:
        return Verb(asked)
    except ValueError:
        known = ", ".join(each.value for each in Verb)
        raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_COMMAND={asked!r} is none of {known}") from None


def _config(data: bytes, verb: Verb) -> dict[str, Any]:
    if len(data) > MAX_INPUT_BYTES:
        raise CniError(Code.DECODE_FAILURE, f"the configuration has over {MAX_INPUT_BYTES} bytes")
    if verb is Verb.VERSION and not data.strip():
        return {}
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise CniError(Code.DECODE_FAILURE, "the configuration is no JSON", str(exc)) from None
    if not isinstance(config, dict):
        raise CniError(Code.DECODE_FAILURE, "the configuration is no JSON object")
    return config


def _arguments(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";") if part)
    return {name: value for name, _, value in pairs}


def _socket(config: Mapping[str, Any]) -> str:
    value = config.get("socket")
    if not isinstance(value, str) or not value.startswith("/"):
        raise CniError(Code.INVALID_CONFIG, "'socket' must be the absolute path of the node agent's socket")
    return value


def _timeout(config: Mapping[str, Any]) -> float:
    value = config.get("timeout", ADD_SECONDS)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_ADD_SECONDS:
        raise CniError(Code.INVALID_CONFIG, f"'timeout' must be seconds, up to {MAX_ADD_SECONDS:g}")
    return float(value)


def _previous(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    value = config.get("prevResult")
    if value is not None and not isinstance(value, dict):
        raise CniError(Code.INVALID_CONFIG, "'prevResult' is no JSON object")
    return value
