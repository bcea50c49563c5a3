"""A control plane from nothing to a mesh that everybody knows, without a kernel."""

from __future__ import annotations

from ambient.model.workload import Protocol
from tests.flow.fake_mesh import fake_mesh

SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec:
  selector: {app: api}
  ports: [{name: http, port: 80, targetPort: web}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api-v1, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api, version: v1}}
    spec:
      serviceAccountName: api
      containers: [{name: api, ports: [{name: web, containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec:
  serviceAccountName: client
  containers: [{name: client, command: [sleep, infinity]}]
"""


async def test_a_manifest_becomes_a_mesh_that_every_daemon_knows() -> None:
    """The whole way: objects, pods, nodes, addresses, services, updates, acks."""
    async with fake_mesh() as mesh:
        outcomes = await mesh.apply(SHOP)
        await mesh.ready()

        assert [each["result"] for each in outcomes] == ["created"] * 4
        known = mesh.ztunnel("node-2").mesh
        assert known.workloads() == mesh.agent("node-1").mesh.workloads()
        assert len(known.workloads()) == 3
        assert {each.node for each in known.workloads()} == {"node-1", "node-2"}
        assert {each.protocol for each in known.workloads()} == {Protocol.TCP}
        service = known.service_by_hostname("api", "shop")
        assert service is not None
        assert [target for _, target in known.targets(service.key, 80)] == [8080, 8080]
        assert mesh.ztunnel("node-1").snapshots == 1
