"""Which CNI plugins attach a pod, and what each is told. Pure.

Source: the CNI specification 1.0.0 (github.com/containernetworking/cni, SPEC.md), sections 2 and 4: a
plugin is a program that is told what to do by its environment and by JSON on its standard input, and
answers with JSON on its standard output.

    bridge    pods on one bridge of the node, which is their gateway
    ptp       a link of its own for every pod, as our builtin wiring
    macvlan   pods on the node's own link: their traffic passes the node's IP stack by, so there are no
              virtual addresses without the mesh, and probes come from the pod itself
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ambient.errors import ConfigError
from ambient.fabric.wiring_plan import UPLINK, NodePlan, is_v6, usable

Config: TypeAlias = dict[str, Any]

VERSION = "1.0.0"
BUILTIN = "builtin"
KINDS = ("bridge", "ptp", "macvlan")
IPAM = "host-local"
# Our own, chained after the one that makes the link.
AMBIENT = "ambient-cni"
BRIDGE = "cni0"
# Where distributions and the CNI project put the reference plugins.
DIRECTORIES = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")


def waits_for_capture(role: str, mode: str) -> bool:
    """Whether a pod may be one that runs captured from its first moment on: control's word is waited for."""
    return role == "app" and mode != "sidecar"


def network_name(plan: NodePlan) -> str:
    """The name of a node's pod network."""
    return f"ambient-{plan.name}"


def chain(kind: str, plan: NodePlan, *, data_dir: str, socket: str, ipv6: bool) -> tuple[Config, ...]:
    """The plugins that attach a pod of the node *plan*, in order.

    Args:
        data_dir: Where host-local keeps what it gave away.
        socket: Where the node's agent answers ambient-cni; "" leaves that plugin out.
    """
    addresses = plan.addresses
    networks = usable(addresses.pod_networks, ipv6=ipv6)
    gateways = usable(addresses.gateway, ipv6=ipv6)
    ranges = [
        [{"subnet": network, "gateway": gateway}] for network, gateway in zip(networks, gateways, strict=True)
    ]
    routes = [{"dst": "::/0" if is_v6(network) else "0.0.0.0/0"} for network in networks]
    ipam = {"type": IPAM, "dataDir": data_dir, "ranges": ranges, "routes": routes}
    first = {"type": kind, **_options(kind), "ipam": ipam}
    return (first, {"type": AMBIENT, "socket": socket}) if socket else (first,)


def _options(kind: str) -> Config:
    match kind:
        case "bridge":
            # The bridge holds the gateway's addresses; hairpinMode: a pod may reach itself by a service.
            return {"bridge": BRIDGE, "isGateway": True, "hairpinMode": True}
        case "ptp":
            return {}
        case "macvlan":
            return {"master": UPLINK, "mode": "bridge"}
        case _:
            raise ConfigError(f"no CNI plugin {kind!r}: {', '.join((*KINDS, BUILTIN))}")


def request(
    config: Config, name: str, *, addresses: Sequence[str] = (), previous: Config | None = None
) -> bytes:
    """What a plugin reads: its part of the list, completed as the specification says (section 3).

    Args:
        addresses: What the pod is to get; host-local gives those or fails.
        previous: The result of the plugin before it (ADD), or of the whole ADD (CHECK, DEL).
    """
    body = {"cniVersion": VERSION, "name": name, **config}
    if addresses and "ipam" in config:
        body["args"] = {"cni": {"ips": list(addresses)}}
    if previous is not None:
        body["prevResult"] = previous
    return json.dumps(body).encode()


def environment(
    command: str, *, container: str, netns: str, arguments: Mapping[str, str], path: Sequence[str]
) -> dict[str, str]:
    """The environment of one call."""
    values = ";".join(f"{key}={value}" for key, value in {"IgnoreUnknown": "1", **arguments}.items())
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": UPLINK,
        "CNI_ARGS": values,
        "CNI_PATH": ":".join(path),
    }


def container_id(uid: str) -> str:
    """A container id for a pod: letters, digits and ``.-_`` (specification, section 2)."""
    return "".join(each if each.isascii() and (each.isalnum() or each in ".-") else "_" for each in uid)


def read_result(output: bytes) -> Config:
    """The result that a plugin printed; {} for none.

    Raises:
        ConfigError: it is no JSON object.
    """
    if not output.strip():
        return {}
    try:
        result = json.loads(output)
    except ValueError as exc:
        raise ConfigError(f"its answer is no JSON: {exc}") from exc
    if not isinstance(result, dict):
        raise ConfigError("its answer is no JSON object")
    return result


def read_error(code: int, output: bytes, errors: bytes) -> str:
    """Why a plugin failed: its own words where it has some."""
    try:
        said = json.loads(output)
        return " ".join(str(said[name]) for name in ("msg", "details") if said.get(name))
    except (ValueError, TypeError, AttributeError, KeyError):
        lines = (errors or output).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with {code}"
