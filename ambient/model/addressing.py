"""Which address everything gets: nodes, pods and services, for either fabric.

Floor 0. The ranges are those that kubeadm and kind use, so that what people paste from there fits:
pods 10.244.N.i and fd00:10:244:N::i on node N, services 10.96.0.0/16 and fd00:10:96::/112.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ambient.errors import ConfigError

# The third octet of a pod's address is its node, the fourth its own; .1 is the gateway.
MAX_NODES = 254
GATEWAY_INDEX = 1
FIRST_POD_INDEX = 2
LAST_POD_INDEX = 254
# Services are numbered within a /16; the cluster DNS has the number that kubeadm gives it.
DNS_INDEX = 10
FIRST_SERVICE_INDEX = 11
LAST_SERVICE_INDEX = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddresses:
    """A node's addresses; each tuple is IPv4, then IPv6 where the fabric has it.

    Attributes:
        gateway: Of its pods, on the node.
        pod_networks: Its pods, as CIDR text.
        uplink: On the link to the other nodes, the node's end.
        router: The other end of that link.
    """

    gateway: tuple[str, ...]
    pod_networks: tuple[str, ...]
    uplink: tuple[str, ...]
    router: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPlan:
    """The ranges of one fabric, as the leading parts of addresses; an empty IPv6 part means none."""

    pods: str
    services: str
    links: str
    pods6: str = ""
    services6: str = ""
    links6: str = ""

    def node(self, number: int) -> NodeAddresses:
        """The addresses of node *number*, from 1.

        Raises:
            ConfigError: there is no such number.
        """
        _check("node", number, 1, MAX_NODES)
        six = bool(self.pods6)
        return NodeAddresses(
            gateway=self._pod(number, GATEWAY_INDEX),
            pod_networks=(f"{self.pods}.{number}.0/24", *((f"{self.pods6}:{number}::/64",) if six else ())),
            uplink=(f"{self.links}.{number}.2", *((f"{self.links6}:{number}::2",) if six else ())),
            router=(f"{self.links}.{number}.1", *((f"{self.links6}:{number}::1",) if six else ())),
        )

    def pod(self, node: int, index: int) -> tuple[str, ...]:
        """The addresses of pod *index* on *node*.

        Raises:
            ConfigError: there is no such number.
        """
        _check("node", node, 1, MAX_NODES)
        _check("pod", index, FIRST_POD_INDEX, LAST_POD_INDEX)
        return self._pod(node, index)

    def service(self, index: int) -> tuple[str, ...]:
        """The virtual addresses of service *index*.

        Raises:
            ConfigError: there is no such number.
        """
        _check("service", index, 1, LAST_SERVICE_INDEX)
        four = f"{self.services}.{index >> 8}.{index & 255}"
        return (four, f"{self.services6}::{index:x}") if self.services6 else (four,)

    @property
    def dns(self) -> tuple[str, ...]:
        """The addresses of the cluster DNS."""
        return self.service(DNS_INDEX)

    @property
    def service_networks(self) -> tuple[str, ...]:
        """Every virtual address, as CIDR text."""
        four = f"{self.services}.0.0/16"
        return (four, f"{self.services6}::/112") if self.services6 else (four,)

    def _pod(self, node: int, index: int) -> tuple[str, ...]:
        # Decimal digits stand in the IPv6 group as they are, for the eye: node 12 is :12:, not :c:.
        four = f"{self.pods}.{node}.{index}"
        return (four, f"{self.pods6}:{node}::{index}") if self.pods6 else (four,)


NETNS = AddressPlan(
    pods="10.244",
    pods6="fd00:10:244",
    services="10.96",
    services6="fd00:10:96",
    links="100.64",
    links6="fd00:100:64",
)

# Without namespaces everything shares the host's loopback, of which all of 127/8 is usable; IPv6 has
# only ::1 there.
LOOPBACK = AddressPlan(pods="127.244", services="127.96", links="127.64")


def lowest_free(taken: Collection[int], first: int, last: int) -> int:
    """The smallest number of ``first..last`` that is not taken.

    Raises:
        ConfigError: all are.
    """
    for number in range(first, last + 1):
        if number not in taken:
            return number
    raise ConfigError(f"all addresses from {first} to {last} are in use")


def _check(what: str, number: int, first: int, last: int) -> None:
    if not first <= number <= last:
        raise ConfigError(f"{what} number {number} is not in {first}..{last}")
