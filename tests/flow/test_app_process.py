"""The built-in workload as a process: asked with a client that is not ours, and calling another one."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ADDRESS = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((ADDRESS, 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def app(**environment: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A running workload; yields its port and its process."""
    port = free_port()
    values = {"POD_NAME": "web-1", "AMBIENT_APP_PORTS": str(port), "AMBIENT_APP_ADDRESS": ADDRESS}
    process = subprocess.Popen(
        [sys.executable, "-m", "ambient.fabric.app"], env=os.environ | values | environment
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((ADDRESS, port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "it never listened"
                assert process.poll() is None, "it ended"
                time.sleep(0.02)
        yield port, process
    finally:
        process.kill()
        process.wait()


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_workload_answers_calls_and_leaves() -> None:
    """Everything that the annotations promise, over real sockets and names; and SIGTERM ends it politely."""
    callee_environment = {"AMBIENT_APP_RESPONSE_BYTES": "2000", "POD_NAME": "details-1"}
    with app(**callee_environment) as (callee, _callee_process):
        calls = f"http://localhost:{callee}/details/0 http://{ADDRESS}:{callee}/healthz"
        with app(
            AMBIENT_APP_CALLS=calls, AMBIENT_APP_VERSION="v1", AMBIENT_APP_SERVICE_TIME_SECONDS="0.01"
        ) as (
            port,
            process,
        ):
            status, body = get(port, "/productpage")
            answer = json.loads(body)
            assert (status, answer["pod"], answer["version"]) == (200, "web-1", "v1")
            assert [(each["status"], each["bytes"]) for each in answer["calls"]] == [(200, 2000), (200, 3)]
            assert get(port, "/healthz") == (200, b"ok\n")
            assert get(port, "/whoami")[1].startswith(b"127.0.0.1 ")
            assert len(get(port, "/bytes/300001")[1]) == 300001
            assert len(get(callee, "/")[1]) == 2000

            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


@pytest.mark.slow
def test_failing_callee_is_told() -> None:
    """A workload whose callee is away says so: 502, with the reason."""
    calls = f"http://{ADDRESS}:{free_port()}/ http://no-such-name.invalid/"
    with app(AMBIENT_APP_CALLS=calls) as (port, _process):
        status, body = get(port, "/")

    answer = json.loads(body)
    assert status == 502
    assert [each["status"] for each in answer["calls"]] == [0, 0]
    assert all(each["error"] for each in answer["calls"])


@pytest.mark.slow
def test_bad_settings_end_it_with_65() -> None:
    """One line, the variable's name, and the exit code for bad input."""
    done = subprocess.run(
        [sys.executable, "-m", "ambient.fabric.app"],
        env=os.environ | {"AMBIENT_APP_RESPONSE_BYTES": "many"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 65
    assert done.stderr.count("\n") == 1
    assert "AMBIENT_APP_RESPONSE_BYTES" in done.stderr
