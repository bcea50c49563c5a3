"""The agent's numbers as Prometheus reads them."""

from __future__ import annotations

from ambient.redirect.attestation import AttestationStatistics
from ambient.redirect.metrics import exposition


def test_every_number_has_a_type_and_a_line() -> None:
    """Also those that are zero: an alert on a series that does not exist never fires."""
    now = AttestationStatistics(
        enrolled=7, lost=1, checks=90, given_up=2, repairs={"rules": 3}, plaintext={"a": 2, "b": 1}
    )

    lines = exposition(now).splitlines()

    assert "ambient_pods_lost 1" in lines
    assert "ambient_plaintext_connections 3" in lines
    assert 'ambient_attestation_repairs_total{what="rules"} 3' in lines
    assert 'ambient_attestation_repairs_total{what="namespace"} 0' in lines
    assert "ambient_attestation_lost_total 2" in lines
    named = {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")}
    assert named == {line.split()[2] for line in lines if line.startswith("# TYPE")}
