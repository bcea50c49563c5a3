"""The built-in workload's settings."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ambient.fabric.app_settings import AppSettings, Callee, parse_url, read_settings


def test_everything_has_a_default() -> None:
    """A container without any annotation is a service on 8080."""
    assert read_settings({}) == AppSettings()


def test_everything_is_read() -> None:
    """The environment that the fabric makes of the annotations."""
    settings = read_settings(
        {
            "POD_NAME": "web-1",
            "AMBIENT_APP_VERSION": "v2",
            "AMBIENT_APP_CALLS": "http://details:9080/details/0  http://[fd00::1]/",
            "AMBIENT_APP_RESPONSE_BYTES": "1024",
            "AMBIENT_APP_SERVICE_TIME_SECONDS": "0.25",
            "AMBIENT_APP_PORTS": "80, 9080",
            "AMBIENT_APP_ADDRESS": "127.9.0.1",
        }
    )

    calls = (Callee("details", 9080, "/details/0"), Callee("fd00::1", 80, "/"))
    assert settings == AppSettings("web-1", "v2", calls, 1024, 0.25, (80, 9080), "127.9.0.1")
    assert [call.url for call in calls] == ["http://details:9080/details/0", "http://[fd00::1]/"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMBIENT_APP_CALLS", "https://details/"),
        ("AMBIENT_APP_CALLS", "http://details:99999/"),
        ("AMBIENT_APP_CALLS", "details"),
        ("AMBIENT_APP_PORTS", "80a"),
        ("AMBIENT_APP_PORTS", "0"),
        ("AMBIENT_APP_RESPONSE_BYTES", "-1"),
        ("AMBIENT_APP_RESPONSE_BYTES", "999999999"),
        ("AMBIENT_APP_SERVICE_TIME_SECONDS", "1e3"),
        ("AMBIENT_APP_SERVICE_TIME_SECONDS", "100"),
    ],
)
def test_nonsense_is_refused(name: str, value: str) -> None:
    """A mistyped annotation must not become a workload that does something else."""
    with pytest.raises(ConfigError):
        read_settings({name: value})


def test_default_port_is_left_out() -> None:
    """As browsers and curl write it."""
    assert parse_url("http://details").authority == "details"
