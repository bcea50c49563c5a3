"""Control plane and node agent of one node, played by threads: they tell ztunnel what the real ones would."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

from ambient.model.mesh import Change
from ambient.model.workload import Workload
from ambient.pki.authority import Authority
from ambient.wire import xds, zds

PATIENCE = 60.0


class Control:
    """One connection of the control plane: says what the mesh is, signs what it is asked to."""

    def __init__(self, sock: socket.socket, authority: Authority, snapshot: Change) -> None:
        self._sock = sock
        self._authority = authority
        self._snapshot = snapshot
        self._end = xds.ControlEnd()
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, daemon=True).start()

    def tell(self, change: Change) -> None:
        """Send one update; ``told`` waits for its ack."""
        with self._changed:
            _nonce, data = self._end.update(change)
            self._sock.sendall(data)

    def told(self) -> None:
        """Return when everything is applied."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._end.unacked, PATIENCE):
                raise SystemExit("ztunnel does not acknowledge")

    def _serve(self) -> None:
        while data := self._sock.recv(65536):
            with self._changed:
                for event in self._end.receive_data(data):
                    self._answer(event)
                self._changed.notify_all()

    def _answer(self, event: xds.ControlEvent) -> None:
        match event:
            case xds.Greeted():
                _nonce, data = self._end.update(self._snapshot)
                self._sock.sendall(data)
            case xds.CertificateAsked(number, identity, csr):
                issued = self._authority.issue(csr, identity, time.time())
                answer = self._end.certificate(number, issued.chain, issued.roots, issued.not_after)
                self._sock.sendall(answer)


class Agent:
    """The node agent: enrolls pods by ZDS; in place of a namespace goes a file that says the address."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(PATIENCE)
        self._socks: list[socket.socket] = []

    def enroll(self, pods: tuple[Workload, ...]) -> None:
        """Wait for ztunnel, have it serve *pods*; returns when it does."""
        sock, _ = self._listener.accept()
        self._socks.append(sock)
        sock.settimeout(PATIENCE)
        end = zds.AgentConnection()
        end.receive_packet(sock.recv(8192))
        for pod in pods:
            fd = os.memfd_create("pod")
            os.write(fd, pod.addresses[0].encode())
            socket.send_fds(sock, [end.add(_info(pod))], [fd])
            os.close(fd)
            _require_ack(end, sock)
        sock.send(end.snapshot_sent())
        _require_ack(end, sock)

    def close(self) -> None:
        """To ztunnel this is the agent's end."""
        self._listener.close()
        for sock in self._socks:
            sock.close()


def _require_ack(end: zds.AgentConnection, sock: socket.socket) -> None:
    """Read until ztunnel answers; what it gives us to hold is let go, as nobody is killed here."""
    event: zds.AgentEvent = zds.Drained("")
    while not isinstance(event, zds.Acked):
        data, fds, flags, _ = socket.recv_fds(sock, 8192, zds.MAX_LISTENERS)
        for fd in fds:
            os.close(fd)
        event = end.receive_packet(data, fds, bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)))
    if event.error:
        raise SystemExit(f"ztunnel does not enroll: {event.error}")


def _info(pod: Workload) -> zds.WorkloadInfo:
    return zds.WorkloadInfo(
        uid=pod.uid,
        name=pod.name,
        namespace=pod.namespace,
        service_account=pod.service_account,
        identity=pod.identity,
    )
