"""Labels decide the mode: a pod's beat its namespace's, the sidecar beats ambient."""

from __future__ import annotations

import pytest

from ambient.model.enrollment import DNS_CAPTURE, Mode, desired_mode, dns_capture, why_not

AMBIENT = {"istio.io/dataplane-mode": "ambient"}
OUT = {"istio.io/dataplane-mode": "none"}
INJECTED = {"istio-injection": "enabled"}
WANTS_SIDECAR = {"sidecar.istio.io/inject": "true"}
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}

CASES = {
    "nothing": ({}, {}, Mode.NONE, "neither the pod nor its namespace has the label"),
    "namespace": (AMBIENT, {}, Mode.AMBIENT, ""),
    "pod": ({}, AMBIENT, Mode.AMBIENT, ""),
    "pod-opts-out": (AMBIENT, OUT, Mode.NONE, "pod label istio.io/dataplane-mode=none opts out"),
    "pod-beats-namespace": (INJECTED, AMBIENT, Mode.AMBIENT, ""),
    "namespace-sidecar": (INJECTED, {}, Mode.SIDECAR, "namespace label istio-injection=enabled"),
    "sidecar-wins": ({**INJECTED, **AMBIENT}, {}, Mode.SIDECAR, "asks for a sidecar"),
    "not-injected": ({**INJECTED, **AMBIENT}, NO_SIDECAR, Mode.AMBIENT, ""),
    "pod-sidecar": (AMBIENT, WANTS_SIDECAR, Mode.SIDECAR, "pod label sidecar.istio.io/inject=true"),
    "none-keeps-sidecar": (INJECTED, OUT, Mode.SIDECAR, "asks for a sidecar"),
    "unknown-value": ({"istio.io/dataplane-mode": "Ambient"}, {}, Mode.NONE, "neither the pod"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_labels_decide(case: tuple[dict[str, str], dict[str, str], Mode, str]) -> None:
    """The operator's two labels, on two levels, in every combination that matters."""
    namespace, pod, mode, reason = case

    assert desired_mode(namespace, pod) is mode
    assert reason in why_not(namespace, pod)
    assert bool(why_not(namespace, pod)) is (mode is not Mode.AMBIENT)


def test_what_cannot_be_captured_is_not() -> None:
    """The host's network is not one pod's, and a waypoint speaks HBONE itself."""
    assert desired_mode(AMBIENT, AMBIENT, host_network=True) is Mode.NONE
    assert "host's network" in why_not(AMBIENT, {}, host_network=True)
    assert desired_mode(AMBIENT, WANTS_SIDECAR, is_waypoint=True) is Mode.NONE
    assert "waypoint" in why_not(AMBIENT, {}, is_waypoint=True)


@pytest.mark.parametrize(
    ("annotations", "captured"),
    [({}, True), ({"ambient.istio.io/dns-capture": "true"}, True), ({DNS_CAPTURE: "False"}, False)],
)
def test_lookups_are_captured_unless_the_pod_says_no(annotations: dict[str, str], captured: bool) -> None:
    """Istio's annotation."""
    assert dns_capture(annotations) is captured
