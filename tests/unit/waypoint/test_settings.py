"""What a waypoint or sidecar reads from its environment."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ambient.model.limits import Limits
from waypoint.__main__ import main
from waypoint.daemon import own_workload
from waypoint.settings import Settings, read_settings


def test_environment_is_read() -> None:
    """The names that the fabric sets, which are Istio's where Istio has them."""
    settings = read_settings(
        {
            "POD_UID": "u",
            "POD_NAME": "web-1",
            "POD_NAMESPACE": "shop",
            "SERVICE_ACCOUNT": "web",
            "POD_IP": "10.244.1.2",
            "NODE_NAME": "node-1",
            "AMBIENT_RUN_DIR": "/run/ambient",
            "CONNECTION_TERMINATION_DEADLINE": "2.5s",
            "AMBIENT_ACCESS_LOG": "false",
            "AMBIENT_PING_INTERVAL": "20s",
            "AMBIENT_TUNNELS_PER_IDENTITY": "7",
            "CRL_PATH": "/etc/crl.pem",
        }
    )

    assert settings == Settings(
        pod_uid="u",
        pod_name="web-1",
        namespace="shop",
        service_account="web",
        pod_ip="10.244.1.2",
        node="node-1",
        run_dir="/run/ambient",
        drain_seconds=2.5,
        access_log=False,
        crl_path="/etc/crl.pem",
        limits=Limits(ping_interval=20.0, tunnels_per_identity=7),
    )
    assert own_workload(settings).addresses == ("10.244.1.2",)
    assert own_workload(Settings(pod_uid="u", namespace="shop")).addresses == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POD_UID", ""),
        ("CONNECTION_TERMINATION_DEADLINE", "soon"),
        ("CONNECTION_TERMINATION_DEADLINE", "-1"),
        ("AMBIENT_ACCESS_LOG", "perhaps"),
        ("AMBIENT_DIAL_TIMEOUT", "never"),
    ],
)
def test_nonsense_is_refused(name: str, value: str) -> None:
    """With the variable's name, so that it can be mended."""
    with pytest.raises(ConfigError, match=name):
        read_settings({"POD_UID": "u"} | {name: value})


def test_bad_environment_ends_it_with_65(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, and the exit code for bad input."""
    monkeypatch.delenv("POD_UID", raising=False)

    assert main(["--role", "sidecar"]) == 65
    assert capsys.readouterr().err.startswith("error: POD_UID")


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [(["--role", "waypoint", "--engine", "envoy"], ""), (["--role", "waypoint"], "AMBIENT_CONTROL_FD")],
    ids=["envoy-waypoint", "no-control"],
)
def test_impossible_start_ends_it_with_65(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], variable: str
) -> None:
    """An Envoy waypoint is not offered; a proxy without control has nothing to serve."""
    monkeypatch.setenv("POD_UID", "u")
    monkeypatch.setenv("POD_NAMESPACE", "shop")
    monkeypatch.delenv("AMBIENT_CONTROL_FD", raising=False)

    assert main(arguments) == 65
    assert variable in capsys.readouterr().err
