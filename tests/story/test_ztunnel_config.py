"""An operator looks into the nodes of a running mesh, and turns up what they log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.story.conftest import EXAMPLES, Mesh, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(240)]

HOLD = (
    "import http.client,time\n"
    "c=http.client.HTTPConnection('details.bookinfo',9080,timeout=60)\n"
    "c.request('GET','/details/0'); c.getresponse().read()\n"
    "time.sleep(60)\n"
)


def test_what_a_node_knows_carries_and_logs(mesh: Mesh) -> None:
    """Workloads, services, policies, certificates; one connection seen from both its nodes; levels."""
    mesh.ok("up", "-f", str(EXAMPLES / "bookinfo.yaml"), "--nodes", "2", "--detach")
    mesh.ok("enroll", "namespace/bookinfo", "--wait")

    workloads = mesh.json("ztunnel", "workload", "--workload-namespace", "bookinfo")["items"]
    assert {each["protocol"] for each in workloads} == {"HBONE"}
    assert {each["node"] for each in workloads} == {"node-1", "node-2"}
    services = mesh.ok("ztunnel", "service", "-n", "bookinfo").splitlines()
    assert services[0].split("   ")[0] == "NAMESPACE"
    assert any(line.split()[1] == "reviews" and line.endswith("3/3") for line in services)
    certificates = mesh.json("ztunnel", "certificate", "-n", "bookinfo")["items"]
    assert {each["state"] for each in certificates} == {"Available"}

    client = mesh.name("bookinfo", "client")
    holder = mesh.popen("exec", client, "-n", "bookinfo", "--", "python3", "-u", "-c", HOLD)
    try:

        def carried() -> list[dict[str, Any]]:
            found = mesh.json("ztunnel", "connections", "--workload-namespace", "bookinfo")["items"]
            return [each for each in found if each["protocol"] == "HBONE"]

        wait_until(lambda: len(carried()) >= 2, "the connection to be seen from both its ends")
        ends = {each["direction"]: each["workload"] for each in carried()}
        assert ends["outbound"].startswith("client")
        assert ends["inbound"].startswith("details")
    finally:
        holder.kill()
        holder.communicate()

    mesh.ok("apply", "-f", str(EXAMPLES / "policies.yaml"))
    wait_until(lambda: bool(mesh.json("ztunnel", "policy")["items"]), "policies to arrive")

    mesh.ok("ztunnel", "log", "--level", "access:debug,info", "--node", "node-1")
    levels = {each["node"]: each["level"] for each in mesh.json("ztunnel", "log")["items"]}
    assert levels == {"node-1": "access=debug,info", "node-2": "info"}
    dump = mesh.run_dir / "dump.json"
    dump.write_text(mesh.ok("ztunnel", "all", "--node", "node-2", "-o", "json"))
    assert "BEGIN" not in dump.read_text()
    assert mesh.ok("ztunnel", "service", "-f", str(dump)) == mesh.ok("ztunnel", "service")
    assert json.loads(dump.read_text())["config"]["node"] == "node-2"
    mesh.ok("down")
