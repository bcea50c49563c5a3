"""The names of Istio's ztunnel in the environment, and what each means here. Pure; printed by ``--help``.

Source: Istio's ztunnel ``src/config.rs``. What makes sense here is honoured under its name and meaning.
What is set and would have changed something there, but changes nothing here, is said in one line at the
start: whoever brings their manifests finds out. A value that asks for what we do anyway is no news.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# name -> (default, what it does).
HONOURED: Mapping[str, tuple[str, str]] = {
    "NODE_NAME": ("", "name of the node, in dumps"),
    "CLUSTER_ID": ("Kubernetes", "name of the cluster, in records, metrics and baggage"),
    "INPOD_UDS": ("/var/run/ztunnel/ztunnel.sock", "where the node's agent says whom to serve"),
    "LOG_FORMAT": ("plain", "plain or json, for the log and for access records"),
    "RUST_LOG": ("info", "levels, such as access=error,info; scopes: access, dns, ztunnel"),
    "ENABLE_RESPONSE_BAGGAGE": ("true", "say who we are when a CONNECT is answered with 200"),
    "CONNECTION_TERMINATION_DEADLINE": ("5s", "how long connections may live on after SIGTERM"),
    "TERMINATION_GRACE_PERIOD_SECONDS": ("", "the platform's patience, from which that follows if not set"),
    "ISTIO_META_DNS_CAPTURE": ("true", "answer pods' lookups on port 15053"),
    "POOL_UNUSED_RELEASE_TIMEOUT": ("5m", "how long a pooled tunnel without a stream is kept"),
    "POOL_MAX_STREAMS_PER_CONNECTION": ("100", "streams of a tunnel; then another is opened"),
    "CRL_PATH": ("", "a file of revocation lists; whoever is on one is refused, and cut off within a second"),
    "USER_TIMEOUT_ENABLED": ("true", "find a tunnel's peer dead when it acknowledges nothing"),
    "UNSTABLE_ENABLE_SOCKS5": ("false", "a SOCKS5 entry on port 15080 of each pod's loopback"),
    "PREFERED_SERVICE_NAMESPACE": ("", "whose services win over others' of the same name, in lookups"),
}

# Ours alone, by the same rule: name -> what it does.
OURS: Mapping[str, str] = {
    "AMBIENT_CONTROL_FD": "the inherited connection to control",
    "AMBIENT_DNS_UPSTREAMS": "addresses of name servers for what the mesh does not know, else resolv.conf's",
    "AMBIENT_ADMIN_UDS": "a unix socket that answers like port 15000, for the command line",
    "AMBIENT_MESH_SNAPSHOT": "a file in which the mesh is kept for the next process",
    "AMBIENT_MEMORY_LIMIT": "bytes beyond which new work is refused",
    "AMBIENT_READY_FD": "a descriptor that is told when this process serves",
    "AMBIENT_TLS_HANDSHAKE_TIMEOUT": "from accept, or connect, to a verified peer",
    "AMBIENT_CONNECT_TIMEOUT": "from a CONNECT to its answer",
    "AMBIENT_DIAL_TIMEOUT": "for a TCP connection",
    "AMBIENT_FIRST_CONNECT_TIMEOUT": "from a handshake to the first CONNECT on it",
    "AMBIENT_PING_INTERVAL": "of silence, after which a tunnel's peer is asked",
    "AMBIENT_PING_TIMEOUT": "for the answer to that",
    "AMBIENT_TCP_USER_TIMEOUT": "how long sent bytes may stay unacknowledged on a tunnel",
    "AMBIENT_POOL_MAX_AGE": "after which a pooled tunnel takes no more streams",
    "AMBIENT_TUNNELS_PER_IDENTITY": "inbound, of one source identity to one pod",
}

# name -> values that ask for what happens here anyway.
NOT_HONOURED: Mapping[str, tuple[str, ...]] = {
    "ALT_CA_HOSTNAME": (),
    "ALT_XDS_HOSTNAME": (),
    "AUTHZ_POLICY_INFO_LOGGING": ("false",),
    "AUTH_TOKEN": (),
    "CA_ADDRESS": (),
    "CA_ROOT_CA": (),
    "CLUSTER_DOMAIN": ("cluster.local",),
    "COMPLIANCE_POLICY": (),
    "ENABLE_ORIG_SRC": ("true",),
    "ENABLE_PROXY": ("true",),
    "FAKE_CA": ("false",),
    "HTTP2_CONNECTION_WINDOW_SIZE": (),
    "HTTP2_FRAME_SIZE": (),
    "HTTP2_STREAM_WINDOW_SIZE": (),
    "INPOD_PORT_REUSE": (),
    "IPV6_ENABLED": ("true",),
    "ISTIO_META_DNS_PROXY_ADDR": ("localhost:15053", "127.0.0.1:15053"),
    "KEEPALIVE_ENABLED": ("false",),
    "KEEPALIVE_INTERVAL": (),
    "KEEPALIVE_RETRIES": (),
    "KEEPALIVE_TIME": (),
    "LOCALHOST_APP_TUNNEL": (),
    "LOCAL_XDS": (),
    "LOCAL_XDS_PATH": (),
    "NETWORK": (),
    "PACKET_MARK": ("1337", "0x539"),
    "PROXY_CONFIG": (),
    "PROXY_MODE": ("shared",),
    "PROXY_WORKLOAD_INFO": (),
    "SECRET_TTL": (),
    "TLS12_ENABLED": ("false",),
    "TRUST_DOMAIN": ("cluster.local",),
    "XDS_ADDRESS": (),
    "XDS_ON_DEMAND": ("false",),
    "XDS_ROOT_CA": (),
    "ZTUNNEL_WORKER_THREADS": ("1",),
}
# Families of names; ISTIO_META_* describes a node to istiod and changes nothing by itself.
NOT_HONOURED_PREFIXES = ("XDS_HEADER_", "CA_HEADER_")


def ignored(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The names that are set, that Istio's ztunnel would obey, and that change nothing here."""
    known = (
        name
        for name, same in NOT_HONOURED.items()
        if (value := environ.get(name)) and value.lower() not in same
    )
    families = (name for name in environ if name.startswith(NOT_HONOURED_PREFIXES))
    return tuple(sorted((*known, *families)))


def help_text() -> str:
    """What ``python -m ztunnel --help`` prints."""
    return "\n".join(_help()) + "\n"


def _help() -> Iterator[str]:
    yield "usage: python -m ztunnel [proxy | version | help]"
    yield ""
    yield "The per-node L4 proxy. It is told what to do by the environment, under Istio's names:"
    yield ""
    for name, (default, text) in HONOURED.items():
        yield f"  {name:<34}{text}" + (f" [{default}]" if default else "")
    yield ""
    yield "and under names of our own:"
    yield ""
    for name, text in OURS.items():
        yield f"  {name:<34}{text}"
    yield ""
    yield "Known and without effect here; a line at the start says so if one is set:"
    yield ""
    yield from _wrapped((*NOT_HONOURED, *(f"{prefix}*" for prefix in NOT_HONOURED_PREFIXES)))


def _wrapped(names: tuple[str, ...], width: int = 100) -> Iterator[str]:
    line = " "
    for name in names:
        if len(line) + len(name) + 1 > width:
            yield line
            line = " "
        line += f" {name}"
    yield line
