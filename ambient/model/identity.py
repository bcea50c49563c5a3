"""Who a workload is: trust domains and SPIFFE IDs.

Floor 0: pure values, no crypto; the certificate that carries a SPIFFE ID lives in ``ambient.pki``.

Source: SPIFFE-ID 1.0 section 2, narrowed to the path ``/ns/<namespace>/sa/<service account>``
that Istio uses.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Self

from ambient.errors import ConfigError

# SPIFFE-ID 1.0 section 2.3 bounds the whole URI, section 2.1 the trust domain.
MAX_URI_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255

DEFAULT_TRUST_DOMAIN = "cluster.local"

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
# Kubernetes object names: RFC 1123 subdomains.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")


# Identities whose text is kept; a node has far fewer. Picked, not measured.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """The name of one service account in one trust domain.

    Equal IDs are one principal: policy, pool and certificate cache key on this value.

    Attributes:
        trust_domain: For example ``"cluster.local"``.
        namespace: For example ``"bookinfo"``.
        service_account: For example ``"bookinfo-reviews"``.
    """

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        if len(self.trust_domain) > MAX_TRUST_DOMAIN_BYTES:
            raise ConfigError(f"trust domain over {MAX_TRUST_DOMAIN_BYTES} bytes")
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise ConfigError(f"not a trust domain: {self.trust_domain!r}")
        for part in (self.namespace, self.service_account):
            if not _NAME.fullmatch(part):
                raise ConfigError(f"not a Kubernetes name: {part!r}")
        if len(str(self)) > MAX_URI_BYTES:
            raise ConfigError(f"SPIFFE ID over {MAX_URI_BYTES} bytes")

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read a SPIFFE ID as it stands in a certificate's URI SAN.

        Strict, so that one principal has one spelling: no query, port, percent encoding, upper
        case or empty segment; ``str()`` of the result is *uri* again.

        Raises:
            ConfigError: *uri* is not ``spiffe://<domain>/ns/<namespace>/sa/<account>``.
        """
        match uri.split("/"):
            case ["spiffe:", "", trust_domain, "ns", namespace, "sa", account]:
                return cls(trust_domain, namespace, account)
            case _:
                raise ConfigError(f"not spiffe://<domain>/ns/<namespace>/sa/<account>: {uri!r}")

    @property
    def principal(self) -> str:
        """The form used in policies: the URI without its scheme."""
        return _spelled(self.trust_domain, self.namespace, self.service_account)[9:]

    def __str__(self) -> str:
        return _spelled(self.trust_domain, self.namespace, self.service_account)


@functools.lru_cache(maxsize=_REMEMBERED)
def _spelled(trust_domain: str, namespace: str, service_account: str) -> str:
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


@functools.lru_cache(maxsize=_REMEMBERED)
def identity_of(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    """``SpiffeId``, judged once and then remembered: the data path asks for every connection."""
    return SpiffeId(trust_domain, namespace, service_account)
