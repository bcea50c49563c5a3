"""The environment, under Istio's names."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ztunnel.settings import Settings, read_settings


def test_nothing_set_is_istios_default() -> None:
    """A daemon must start without a page of settings."""
    assert read_settings({}) == Settings()


def test_what_is_set_is_used() -> None:
    """The names that the fabric and an operator set."""
    settings = read_settings(
        {
            "NODE_NAME": "node-1",
            "CLUSTER_ID": "c1",
            "INPOD_UDS": "/x/zds.sock",
            "LOG_FORMAT": "JSON",
            "ENABLE_RESPONSE_BAGGAGE": "false",
            "XDS_ADDRESS": "https://istiod:15012",
            "ISTIO_META_DNS_CAPTURE": "false",
            "AMBIENT_DNS_UPSTREAMS": "10.96.0.10 fd00:10:96:0::a",
            "PREFERED_SERVICE_NAMESPACE": "shop",
        }
    )

    assert settings == Settings(
        node="node-1",
        cluster="c1",
        inpod_uds="/x/zds.sock",
        json_log=True,
        response_baggage=False,
        dns_capture=False,
        dns_upstreams=("10.96.0.10", "fd00:10:96::a"),
        preferred_namespace="shop",
        ignored=("XDS_ADDRESS",),
    )


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 25.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, 1.0),
        ({"CONNECTION_TERMINATION_DEADLINE": "3s", "TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 3.0),
    ],
    ids=["grace", "short-grace", "no-grace", "own-deadline-wins"],
)
def test_the_drain_ends_before_the_platform_kills_us(environ: dict[str, str], seconds: float) -> None:
    """Connections cut by a SIGKILL have no record."""
    assert read_settings(environ).drain_seconds == seconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TERMINATION_GRACE_PERIOD_SECONDS", "soon"),
        ("CONNECTION_TERMINATION_DEADLINE", "-1"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "nan"),
        ("LOG_FORMAT", "xml"),
        ("ENABLE_RESPONSE_BAGGAGE", "perhaps"),
        ("AMBIENT_DNS_UPSTREAMS", "dns.example"),
    ],
)
def test_nonsense_names_its_variable(name: str, value: str) -> None:
    """The message is all that whoever wrote the manifest sees."""
    with pytest.raises(ConfigError, match=name):
        read_settings({name: value})
