"""A mesh that is a table of answers: both admin sockets, served by a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ambient.errors import AmbientError
from ambient.wire.admin import ServerEnd, error_code


class Stream(list[Any]):
    """Events to send before the result, which is the last element."""


@dataclass
class FakeMesh:
    """What the daemons answer, and what they were asked.

    Attributes:
        answers: Method -> result, ``Stream``, an exception to report, or a function of the parameters.
    """

    run_dir: Path
    answers: dict[str, Any]
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def asked(self, method: str) -> Mapping[str, Any]:
        """The parameters of the last call of *method*."""
        return next(params for name, params in reversed(self.calls) if name == method)


@contextmanager
def fake_mesh(run_dir: Path, answers: dict[str, Any]) -> Iterator[FakeMesh]:
    """Serve *answers* at ``control.sock`` and ``fabric.sock``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    mesh = FakeMesh(run_dir, answers)
    with contextlib.ExitStack() as stack:
        for name in ("control.sock", "fabric.sock"):
            stack.enter_context(listening(run_dir / name, mesh))
        yield mesh


@contextmanager
def listening(path: Path, mesh: FakeMesh) -> Iterator[None]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=_serve, args=(sock, mesh)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join()
        path.unlink()


def _serve(sock: socket.socket, mesh: FakeMesh) -> None:
    end = ServerEnd()
    # A client that gave up waiting is gone before its answer.
    with sock, contextlib.suppress(BrokenPipeError):
        while data := sock.recv(65536):
            for call in end.receive_data(data):
                mesh.calls.append((call.method, call.params))
                answer = mesh.answers.get(call.method, AmbientError(f"no method {call.method}"))
                if answer is None:
                    return  # Hangs up in the middle of a call.
                for piece in _pieces(
                    end, call.id, answer(call.params) if isinstance(answer, Callable) else answer
                ):
                    sock.sendall(piece)


def _pieces(end: ServerEnd, number: int, answer: Any) -> Iterator[bytes]:
    if isinstance(answer, Exception):
        yield end.error(number, error_code(answer), str(answer))
    elif isinstance(answer, Stream):
        yield from (end.event(number, event) for event in answer[:-1])
        yield end.result(number, answer[-1])
    else:
        yield end.result(number, answer)
