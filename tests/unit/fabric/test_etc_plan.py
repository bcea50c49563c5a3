"""What a pod finds in /etc."""

from __future__ import annotations

import pytest

from ambient.fabric import etc_plan


def test_short_names_resolve_in_the_pods_own_namespace_first() -> None:
    """``curl http://reviews:9080`` must mean the reviews of one's own namespace."""
    lines = etc_plan.resolv_conf("bookinfo").splitlines()

    assert lines[0] == "search bookinfo.svc.cluster.local svc.cluster.local cluster.local"
    assert lines[1] == "nameserver 10.96.0.10"


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (
            "passwd: files\nhosts: files mdns4_minimal [NOTFOUND=return] resolve dns\n",
            "passwd: files\nhosts: files dns\n",
        ),
        ("hosts:\tdns\n", "hosts: files dns\n"),
        ("passwd: files\n", "passwd: files\nhosts: files dns\n"),
    ],
    ids=["resolved", "tab", "none"],
)
def test_names_do_not_leave_by_the_machines_resolver(machine: str, expected: str) -> None:
    """A socket of systemd-resolved is shared with the pod and knows no cluster name."""
    assert etc_plan.nsswitch_conf(machine) == expected


def test_a_machine_without_nsswitch_gets_none() -> None:
    """The C library's default is right already; a file to cover must exist."""
    assert "nsswitch.conf" not in etc_plan.files("web", "shop", ["10.244.1.2"], "")
    assert "nsswitch.conf" in etc_plan.files("web", "shop", ["10.244.1.2"], "hosts: dns\n")


def test_a_pod_knows_its_own_name() -> None:
    """Programs that look up their host name must not wait for DNS."""
    assert "10.244.1.2\tweb" in etc_plan.hosts("web", ["10.244.1.2"]).splitlines()
