"""Who keeps which capability, where it depends on the kernel."""

from __future__ import annotations

import pytest

from ambient.engine.privileges import CAP_NET_ADMIN, CAP_NET_RAW, sidecar


@pytest.mark.parametrize(
    ("release", "kept"),
    [
        ("6.18.44-fc-v657", CAP_NET_RAW),
        ("6.1.0-18-amd64", CAP_NET_RAW),
        ("5.17", CAP_NET_RAW),
        ("5.16.20", CAP_NET_ADMIN),
        ("4.18.0-553.el8", CAP_NET_ADMIN),
        ("unheard of", CAP_NET_ADMIN),
    ],
)
def test_a_sidecar_has_no_power_over_its_network_where_it_can_do_without(release: str, kept: int) -> None:
    """Marks and foreign addresses on its sockets; not the rules that send it its traffic."""
    assert sidecar(release) == {kept}
