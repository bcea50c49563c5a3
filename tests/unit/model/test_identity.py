"""SPIFFE IDs: one principal, one spelling."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ambient.model.identity import SpiffeId


def test_an_identity_is_read_and_written() -> None:
    """A certificate has the URI, a policy the principal."""
    found = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web")

    assert found == SpiffeId("cluster.local", "shop", "web")
    assert str(found) == "spiffe://cluster.local/ns/shop/sa/web"
    assert found.principal == "cluster.local/ns/shop/sa/web"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://cluster.local/ns/shop/sa/web", "not spiffe://"),
        ("spiffe://cluster.local/ns/shop/sa/web/", "not spiffe://"),
        ("spiffe://cluster.local/ns/shop", "not spiffe://"),
        ("spiffe:///ns/shop/sa/web", "not a trust domain: ''"),
        ("spiffe://Cluster.local/ns/shop/sa/web", "not a trust domain: 'Cluster.local'"),
        ("spiffe://cluster.local:80/ns/shop/sa/web", "not a trust domain"),
        ("spiffe://user@cluster.local/ns/shop/sa/web", "not a trust domain"),
        ("spiffe://cluster.local/ns//sa/web", "not a Kubernetes name: ''"),
        ("spiffe://cluster.local/ns/shop/sa/web?x", "not a Kubernetes name: 'web\\?x'"),
        ("spiffe://cluster.local/ns/sh%6fp/sa/web", "not a Kubernetes name"),
        (f"spiffe://{'a' * 256}/ns/shop/sa/web", "trust domain over 255 bytes"),
        (f"spiffe://cluster.local/ns/shop/sa/{'a' * 2048}", "SPIFFE ID over 2048 bytes"),
    ],
)
def test_another_spelling_is_refused(uri: str, message: str) -> None:
    """Two spellings of one principal would be a way around a policy."""
    with pytest.raises(ConfigError, match=message):
        SpiffeId.parse(uri)
