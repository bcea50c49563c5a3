"""The promise of the project, told from outside: enrollment loses nothing."""

from __future__ import annotations

import hashlib
import subprocess
import time

import pytest

from tests.story.conftest import EXAMPLES, Mesh, processes_of, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(240)]

CYCLES = 10
SHORT = (
    "import http.client,sys,time\n"
    "bad=0; n=0\n"
    "end=time.time()+float(sys.argv[1])\n"
    "while time.time()<end:\n"
    "    n+=1\n"
    "    try:\n"
    "        c=http.client.HTTPConnection('details.bookinfo',9080,timeout=10)\n"
    "        c.request('GET','/details/0'); r=c.getresponse(); r.read(); c.close()\n"
    "        bad += r.status!=200\n"
    "    except OSError as exc:\n"
    "        bad+=1; print(repr(exc),file=sys.stderr)\n"
    "    time.sleep(0.005)\n"
    "print(n,bad)\n"
)
LONG = (
    "import http.client,sys,time,hashlib\n"
    "c=http.client.HTTPConnection('reviews.bookinfo',9080,timeout=60)\n"
    "c.request('GET','/bytes/'+sys.argv[1]); r=c.getresponse(); h=hashlib.sha256(); n=0\n"
    "while True:\n"
    "    d=r.read(65536)\n"
    "    if not d: break\n"
    "    h.update(d); n+=len(d); time.sleep(float(sys.argv[2]))\n"
    "print(n,h.hexdigest())\n"
)


def pids(mesh: Mesh) -> dict[str, tuple[int, float]]:
    """Pid and start time of every application process."""
    status = mesh.json("status")
    return {
        f"{p['pod']}/{p['container']}": (p["pid"], p["started"])
        for p in status["processes"]
        if p["role"] == "app"
    }


def in_client(mesh: Mesh, code: str, *args: str) -> subprocess.Popen[str]:
    """Start a Python program inside the client pod."""
    client = mesh.name("bookinfo", "client")
    return mesh.popen("exec", client, "-n", "bookinfo", "--", "python3", "-c", code, *args)


def test_ten_cycles_under_load_lose_nothing(mesh: Mesh) -> None:
    """A long download and hundreds of short connections live through ten cycles of enrollment."""
    mesh.ok("up", "-f", str(EXAMPLES / "bookinfo.yaml"), "--nodes", "2", "--detach")
    before = pids(mesh)
    assert len(before) >= 6
    long_before = in_client(mesh, LONG, "40000000", "0.02")
    short = in_client(mesh, SHORT, "12")

    for cycle in range(CYCLES):
        result = mesh.json("enroll", "namespace/bookinfo", "--wait")
        assert result["failed"] == 0
        assert result["restarts"] == 0
        assert all(pod["enrolled"] for pod in result["pods"]), result
        if cycle == 0:
            long_through = in_client(mesh, LONG, "40000000", "0.02")
            time.sleep(0.5)  # Not luck: lets the download be under way before the capture goes.
        mesh.ok("unenroll", "namespace/bookinfo", "--wait")

    for download in (long_before, long_through):
        out, err = download.communicate(timeout=90)
        size, digest = out.split()
        assert int(size) == 40_000_000, err
        assert len(digest) == len(hashlib.sha256().hexdigest())
    out, err = short.communicate(timeout=60)
    done, failed = map(int, out.split())
    assert failed == 0, err
    assert done >= 200
    assert pids(mesh) == before

    mesh.ok("down")
    wait_until(lambda: not processes_of(mesh.run_dir), "processes to end")
