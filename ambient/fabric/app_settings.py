"""What the built-in workload does, read from its environment.

The fabric sets these from the pod's annotations (``ambient.dev/calls`` and so on):

    AMBIENT_APP_CALLS                 URLs called for each request, separated by blanks
    AMBIENT_APP_RESPONSE_BYTES        size of the answer's body at least; default: as long as it is
    AMBIENT_APP_SERVICE_TIME_SECONDS  waited (without using the CPU) before the answer; default 0
    AMBIENT_APP_PORTS                 listening ports, separated by commas; default 8080
    AMBIENT_APP_VERSION               named in answers
    AMBIENT_APP_ADDRESS               listen on this address only (loopback fabric); default: all
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ambient.errors import ConfigError

DEFAULT_PORT = 8080
# An answer is held in memory whole; /bytes/N is there for more.
MAX_RESPONSE_BYTES = 16 * 1024 * 1024
MAX_SERVICE_TIME = 60.0

_URL = re.compile(r"http://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(/[!-~]*)?")


@dataclass(frozen=True, slots=True)
class Callee:
    """One URL to call."""

    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """For the ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """As it would be typed."""
        return f"http://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class AppSettings:
    """One workload's behaviour."""

    pod: str = "app"
    version: str = ""
    calls: tuple[Callee, ...] = ()
    response_bytes: int = 0
    service_time: float = 0.0
    ports: tuple[int, ...] = (DEFAULT_PORT,)
    address: str = ""


def parse_url(text: str) -> Callee:
    """Read one callee.

    Raises:
        ConfigError: not ``http://host[:port][/path]``.
    """
    found = _URL.fullmatch(text)
    if found is None:
        raise ConfigError(f"not an http URL: {text!r}")
    host, port, path = found.groups()
    return Callee(host.strip("[]"), _port(port) if port else 80, path or "/")


def read_settings(environment: Mapping[str, str]) -> AppSettings:
    """Read the environment of a pod's container.

    Raises:
        ConfigError: a value that cannot be what it should be; the message names the variable.
    """
    get = environment.get
    ports = tuple(_port(port.strip()) for port in get("AMBIENT_APP_PORTS", "").split(",") if port.strip())
    return AppSettings(
        pod=get("POD_NAME", "app"),
        version=get("AMBIENT_APP_VERSION", ""),
        calls=tuple(parse_url(url) for url in get("AMBIENT_APP_CALLS", "").split()),
        response_bytes=_size(get("AMBIENT_APP_RESPONSE_BYTES", "") or "0"),
        service_time=_seconds(get("AMBIENT_APP_SERVICE_TIME_SECONDS", "") or "0"),
        ports=ports or (DEFAULT_PORT,),
        address=get("AMBIENT_APP_ADDRESS", ""),
    )


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65535:
        raise ConfigError(f"not a port: {text!r}")
    return int(text)


def _size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or int(text) > MAX_RESPONSE_BYTES:
        raise ConfigError(f"AMBIENT_APP_RESPONSE_BYTES: not 0 to {MAX_RESPONSE_BYTES}: {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text, re.ASCII) or float(text) > MAX_SERVICE_TIME:
        raise ConfigError(f"AMBIENT_APP_SERVICE_TIME_SECONDS: not 0 to {MAX_SERVICE_TIME:g}: {text!r}")
    return float(text)
