"""The issuer: who may hold which identity, and the certificates that were signed.

Floor 3. The rule is one pure function: a node gets the identities of the pods that run on it and whose
traffic its ztunnel carries, a waypoint or a sidecar its own, and an agent none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ambient.control.distribution import Peer
from ambient.control.pods import Pod, Role
from ambient.errors import Denied
from ambient.model.enrollment import Mode
from ambient.model.identity import SpiffeId
from ambient.pki.authority import LEAF_LIFETIME_SECONDS, Authority, Issued


def may_hold(peer: Peer, pods: Iterable[Pod]) -> frozenset[SpiffeId]:
    """Return the identities that *peer* may have certificates for."""
    match peer.role:
        case "ztunnel":
            mine = [pod for pod in pods if pod.node == peer.node and _carried(pod)]
        case "waypoint":
            mine = [pod for pod in pods if pod.uid == peer.pod and pod.role is Role.WAYPOINT]
        case "sidecar":
            mine = [pod for pod in pods if pod.uid == peer.pod and pod.mode is Mode.SIDECAR]
        case _:
            mine = []
    return frozenset(pod.identity for pod in mine)


def _carried(pod: Pod) -> bool:
    """Whether a ztunnel may speak for *pod*: an application's, and not behind a sidecar."""
    return pod.role is Role.APP and pod.mode is not Mode.SIDECAR and not pod.spec.host_network


class Issuer:
    """Signs what the rule allows, and remembers until when.

    Args:
        clock: Returns unix seconds.
        lifetime: Seconds that a certificate holds.
    """

    def __init__(
        self, authority: Authority, clock: Callable[[], float], lifetime: float = LEAF_LIFETIME_SECONDS
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._lifetime = lifetime
        self._not_after: dict[tuple[Peer, SpiffeId], float] = {}

    @property
    def root(self) -> bytes:
        """The mesh's root certificate, DER."""
        return self._authority.root

    def certify(self, peer: Peer, pods: Iterable[Pod], identity: SpiffeId, csr: bytes) -> Issued:
        """Sign *csr* for *peer*.

        Raises:
            Denied: *peer* may not have *identity*.
            RemoteProtocolError: the request is no good.
        """
        # Of a thousand pods a few have this account; making everybody's identity takes longer than signing.
        asked = identity.namespace, identity.service_account
        bearers = [pod for pod in pods if (pod.namespace, pod.spec.service_account) == asked]
        if identity not in may_hold(peer, bearers):
            raise Denied(f"{peer} runs no workload that is {identity}")
        issued = self._authority.issue(csr, identity, self._clock(), self._lifetime)
        self._not_after[peer, identity] = issued.not_after
        return issued

    def expiries(self) -> dict[tuple[Peer, SpiffeId], float]:
        """(holder, identity) -> when the newest certificate for it ends, in unix seconds."""
        now = self._clock()
        self._not_after = {key: until for key, until in self._not_after.items() if until > now}
        return dict(sorted(self._not_after.items(), key=lambda item: (str(item[0][0]), str(item[0][1]))))
