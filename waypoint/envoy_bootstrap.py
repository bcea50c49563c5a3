"""The bootstrap of a real Envoy sidecar, and the files by which it learns of changes. Pure.

Envoy watches a folder: a new ``cds.json`` or ``lds.json`` that is moved into place is taken over at once. No
file holds a key; see ``envoy_tls``.
"""

from __future__ import annotations

import json

from ambient.model.mesh import Mesh
from ambient.model.workload import Workload
from waypoint.envoy_clusters import clusters
from waypoint.envoy_listeners import listeners
from waypoint.envoy_tls import Files, Json, address, typed

ADMIN_PORT = 15000

_CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
_LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"


def bootstrap(me: Workload, folder: str) -> Json:
    """What Envoy is started with; everything else comes from *folder*."""
    return {
        "node": {"id": f"sidecar~{me.name}.{me.namespace}", "cluster": me.canonical_name or me.name},
        "admin": {"address": address("127.0.0.1", ADMIN_PORT)},
        "dynamic_resources": {
            "cds_config": _watched(folder, "cds.json"),
            "lds_config": _watched(folder, "lds.json"),
        },
        # Envoy warns at every start that nobody limits its connections; this is as good as no limit.
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": typed(
                        "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        max_active_downstream_connections=2**31 - 1,
                    ),
                }
            ]
        },
    }


def dynamic_files(mesh: Mesh, me: Workload, files: Files, *, access_log: bool = True) -> dict[str, str]:
    """Name -> text of the files that follow the mesh."""
    return {
        "cds.json": _resources(_CLUSTER, clusters(mesh, files, ADMIN_PORT), mesh.version),
        "lds.json": _resources(_LISTENER, listeners(mesh, me, files, access_log=access_log), mesh.version),
    }


def _watched(folder: str, name: str) -> Json:
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"path_config_source": source, "resource_api_version": "V3"}


def _resources(kind: str, found: list[Json], version: int) -> str:
    document = {"version_info": str(version), "resources": [{"@type": kind, **each} for each in found]}
    return json.dumps(document, indent=1)
