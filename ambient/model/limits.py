"""Deadlines and limits of HBONE that an operator may change; one value for a process.

Floor 0. Seconds, but for the two counts. Figures: reference/threats.md 4 and Istio's ztunnel.
``ambient.model.durations`` reads them from the environment.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a peer may keep us waiting, and how much one may hold.

    A silent peer is found after ``ping_interval + ping_timeout``, one that takes nothing after
    ``user_timeout``.

    Attributes:
        tls_handshake: From accept, or connect, to a verified peer.
        connect_answer: From a CONNECT to its answer; it includes the other side's ``dial``.
        dial: For a TCP connection, to an application or to a tunnel's other end.
        first_connect: From a handshake to the first CONNECT on it.
        ping_interval: Of silence, after which a tunnel's peer is asked.
        ping_timeout: For the answer.
        user_timeout: How long sent bytes may stay unacknowledged on a tunnel's socket (TCP_USER_TIMEOUT); 0:
            the kernel's own patience. Never set on an application's socket: who merely pauses is not dead.
        pool_idle: How long a pooled tunnel without a stream is kept; Istio's.
        pool_max_age: After which a pooled tunnel takes no more streams: no certificate is used for ever.
        streams_per_tunnel: Then another is opened; Istio's.
        tunnels_per_identity: Inbound, of one source identity to one pod. Many replicas share an identity and
            each has a tunnel or a few; picked, not measured.
    """

    tls_handshake: float = 5.0
    connect_answer: float = 10.0
    dial: float = 10.0
    first_connect: float = 10.0
    ping_interval: float = 10.0
    ping_timeout: float = 5.0
    user_timeout: float = 15.0
    pool_idle: float = 300.0
    pool_max_age: float = 3600.0
    streams_per_tunnel: int = 100
    tunnels_per_identity: int = 2048
