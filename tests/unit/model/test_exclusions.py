"""Exclusions as people write them, and what is refused."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ambient.model.exclusions import (
    INBOUND_PORTS,
    INBOUND_RANGES,
    MAX_ENTRIES,
    NO_EXCLUSIONS,
    OUTBOUND_PORTS,
    OUTBOUND_RANGES,
    Exclusions,
    exclusions_of,
)
from ambient.model.manifest import parse_object
from ambient.model.podspec import pod_spec


def test_all_four_are_read_and_made_canonical() -> None:
    """So that two spellings of one wish are the same rules."""
    found = exclusions_of(
        {
            OUTBOUND_PORTS: " 3306,25, 3306",
            OUTBOUND_RANGES: "10.0.0.0/8,fd00::/16, 192.0.2.1",
            INBOUND_PORTS: "9090",
            INBOUND_RANGES: "2001:DB8::/32",
            "prometheus.io/scrape": "true",
        }
    )

    assert found == Exclusions(
        outbound_ports=(25, 3306),
        outbound_ranges=("10.0.0.0/8", "192.0.2.1/32", "fd00::/16"),
        inbound_ports=(9090,),
        inbound_ranges=("2001:db8::/32",),
    )
    assert exclusions_of({OUTBOUND_PORTS: ""}) == exclusions_of({}) == NO_EXCLUSIONS


@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (OUTBOUND_PORTS, "80,http", "not a port 1 to 65535: 'http'"),
        (OUTBOUND_PORTS, "0", "not a port"),
        (OUTBOUND_PORTS, "65536", "not a port"),
        (OUTBOUND_PORTS, "80,", "not a port 1 to 65535: ''"),
        (OUTBOUND_PORTS, "٣", "not a port"),
        (OUTBOUND_PORTS, "*", "not a port"),
        (INBOUND_PORTS, "8000-8010", "not a port"),
        (OUTBOUND_RANGES, "10.0.0.1/8", "has host bits set: '10.0.0.1/8'"),
        (OUTBOUND_RANGES, "10.0.0", "not a network such as 10.0.0.0/8: '10.0.0'"),
        (INBOUND_RANGES, "fe80::1%eth0", "not a network"),
        (INBOUND_RANGES, ",".join(["10.0.0.0/8"] * (MAX_ENTRIES + 1)), f"limit {MAX_ENTRIES}"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(annotation: str, value: str, reason: str) -> None:
    """A wish that is silently dropped is found in production."""
    with pytest.raises(ConfigError) as caught:
        exclusions_of({annotation: value})

    assert str(caught.value).startswith(f"annotation {annotation}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_with_a_bad_one_is_refused_with_its_place() -> None:
    """At ``apply``, whole file or nothing."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "annotations": {OUTBOUND_PORTS: "x"}},
        "spec": {"containers": [{"name": "web"}]},
    }

    with pytest.raises(ConfigError, match=r"pod.yaml:7: .*metadata.annotations.*not a port.*'x'"):
        pod_spec(parse_object(body, "pod.yaml:7"))
