"""Asking a node's ztunnel: HTTP over the unix socket in its node's directory, or a dump in a file.

Floor 6.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ambient.cli.session import Session
from ambient.cli.ztunnel_columns import natural
from ambient.errors import ConfigError, Unavailable

SOCKET_NAME = "admin.sock"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def nodes(session: Session, node: str = "") -> list[str]:
    """The nodes whose ztunnel can be asked; only *node* if it is given.

    Raises:
        Unavailable: none, or not that one.
    """
    found = sorted((path.parent.name for path in session.where.glob(f"nodes/*/{SOCKET_NAME}")), key=natural)
    if not found:
        raise Unavailable(f"no ztunnel is running in {session.where}; start a mesh with: ambient up")
    if not node:
        return found
    if node not in found:
        raise Unavailable(f"no ztunnel on node {node!r}; there are: {', '.join(found)}")
    return [node]


def ask(session: Session, node: str, path: str, method: str = "GET") -> str:
    """What the node's ztunnel answers.

    Raises:
        Unavailable: it does not.
        ConfigError: it refuses what was asked.
    """
    connection = _UnixConnection(session.where / "nodes" / node / SOCKET_NAME, session.timeout)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException) as exc:
        raise Unavailable(f"the ztunnel of {node} does not answer: {exc}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise ConfigError(f"the ztunnel of {node} says: {text.strip()}")
    return text


def dump_of(session: Session, node: str) -> dict[str, Any]:
    """What the node's ztunnel knows and carries."""
    return _document(ask(session, node, "/config_dump"), f"the ztunnel of {node}")


def read_dump(file: str) -> dict[str, Any]:
    """A dump from a file; ``-`` is standard input.

    Raises:
        ConfigError: it cannot be read, or is no dump.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read {file}: {getattr(exc, 'strerror', None) or exc}") from exc
    return _document(text, file)


def dumps(session: Session, file: str | None, node: str, *, everywhere: bool) -> Sequence[Mapping[str, Any]]:
    """The dumps to look at: the file's, that of *node*, or one (all know the same mesh) or every node's.

    Args:
        everywhere: What is asked differs from node to node.
    """
    if file is not None:
        return [read_dump(file)]
    found = nodes(session, node)
    return [dump_of(session, each) for each in (found if everywhere else found[:1])]


def _document(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"{where}: not JSON: {exc}") from exc
    if not isinstance(found, dict) or not {"workloads", "services", "policies"} & found.keys():
        raise ConfigError(f"{where}: not a config dump of ztunnel, such as: ambient ztunnel all -o json")
    return found
