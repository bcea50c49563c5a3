"""The supervisor's end of a node's zygote: new ztunnels in milliseconds.

What the two say to each other stands in ``ztunnel.zygote``.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

import trio

from ambient.engine.rights import rights
from ambient.errors import AmbientError
from ambient.fabric.initclient import InitClient, Process
from ambient.fabric.launch import MAX_PACKET_BYTES

# Its imports, on a machine under load; picked, not measured.
ANSWER_SECONDS = 30.0


class Zygote:
    """One zygote that runs.

    Args:
        sock: Our end of the SEQPACKET pair; ours to close.
    """

    def __init__(self, init: InitClient, sock: socket.socket) -> None:
        self._init = init
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._turn = trio.Lock()

    def close(self) -> None:
        """It ends when it sees this."""
        self._sock.close()

    async def fork(self, control: int, ready: int) -> Process:
        """A new ztunnel with these descriptors, which stay the caller's to close.

        Raises:
            AmbientError: there is none; the zygote may be gone.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                born = await self._ask([control, ready, reader])
            finally:
                os.close(reader)
            process = await self._init.adopt(int(born["pid"]), int(born["host_pid"]))
            os.write(writer, b"g")
            return process
        except OSError as exc:
            raise AmbientError(f"the zygote is gone: {exc.strerror or exc}") from exc
        finally:
            os.close(writer)

    async def _ask(self, fds: Sequence[int]) -> dict[str, Any]:
        async with self._turn:
            with trio.move_on_after(ANSWER_SECONDS):
                await self._sock.sendmsg([b"f"], rights(fds))
                data = await self._sock.recv(MAX_PACKET_BYTES)
                if not data:
                    raise AmbientError("the zygote is gone")
                answer: dict[str, Any] = json.loads(data)
                if "error" in answer:
                    raise AmbientError(f"the zygote cannot fork: {answer['error']}")
                return answer
        raise AmbientError(f"the zygote does not answer within {ANSWER_SECONDS:g} s")
