"""TLS and small pieces of a real Envoy's configuration. Pure.

Envoy reads its certificate, its key and the roots from memory files that it inherits: ``/dev/fd/N`` is the
only path into /dev that it takes, and no key ever has a name on a disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ambient.model.identity import SpiffeId

Json: TypeAlias = dict[str, Any]

ALPN = ("istio-peer-exchange", "http/1.1")
PROXY_MARK = 0x539
# asm-generic/socket.h: what Envoy's socket options are written with.
SOL_SOCKET, SO_MARK = 1, 36

_TYPE = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True, slots=True)
class Files:
    """Descriptors of the memory files, as Envoy inherits them.

    Attributes:
        serial: Changes with every new certificate, so that Envoy notices and reads the files again.
    """

    chain: int
    key: int
    roots: int
    serial: int = 0


def typed(name: str, **fields: Any) -> Json:
    """A message of *name* below ``envoy.extensions``."""
    return {"@type": f"{_TYPE}.{name}", **fields}


def address(ip: str, port: int) -> Json:
    """A socket address."""
    return {"socket_address": {"address": ip, "port_value": port}}


def marked() -> Json:
    """Socket options that let the pod's rules pass our own connections."""
    option = {"level": SOL_SOCKET, "name": SO_MARK, "int_value": PROXY_MARK, "state": "STATE_PREBIND"}
    return {"socket_options": [option]}


def upstream_tls(files: Files, identities: Iterable[SpiffeId]) -> Json:
    """Mutual TLS as a client; the peer must hold one of *identities*."""
    names = [{"san_type": "URI", "matcher": {"exact": str(each)}} for each in sorted(identities, key=str)]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": typed(
            "transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=_common(files, names)
        ),
    }


def downstream_tls(files: Files, trust_domain: str) -> Json:
    """Mutual TLS as a server; the client must be of *trust_domain*."""
    names = [{"san_type": "URI", "matcher": {"prefix": f"spiffe://{trust_domain}/"}}]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": typed(
            "transport_sockets.tls.v3.DownstreamTlsContext",
            require_client_certificate=True,
            # No tickets: a resumed session would skip the verification of the certificate.
            disable_stateless_session_resumption=True,
            common_tls_context=_common(files, names),
        ),
    }


def _common(files: Files, names: list[Json]) -> Json:
    return {
        "alpn_protocols": list(ALPN),
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [
            {"certificate_chain": _file(files.chain), "private_key": _file(files.key)},
        ],
        "validation_context": {
            "trusted_ca": _file(files.roots),
            "match_typed_subject_alt_names": names,
        },
    }


def _file(descriptor: int) -> Json:
    return {"filename": f"/dev/fd/{descriptor}"}
