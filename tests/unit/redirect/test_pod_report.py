"""What control is told of a pod."""

from __future__ import annotations

from ambient.redirect.keeper_plan import State
from ambient.redirect.pod_capture import Existing
from ambient.redirect.pod_report import report_of
from ambient.wire.netlink_diag import ESTABLISHED, TcpSocket
from ambient.wire.xds import NodePod

POD = NodePod(uid="u", namespace="shop", name="web", service_account="default", addresses=(), netns="/x")


def test_connections_are_counted_and_shown() -> None:
    first, second = (_connection(port) for port in (1, 2))

    told = report_of(
        POD, State.ENROLLED, "", Existing(kept=(first,), reset=(second,)), repairs=3, duration_ms=1.5
    )

    assert (told.state, told.established_kept, told.established_reset) == ("enrolled", 1, 1)
    assert told.existing == ("10.0.0.1:80 - 10.0.0.2:1", "10.0.0.1:80 - 10.0.0.2:2")
    assert (told.repairs, told.duration_ms) == (3, 1.5)


def test_nobody_counted_is_not_none_there() -> None:
    told = report_of(POD, State.LOST, "its rules are gone", None, repairs=0, duration_ms=0.0)

    assert (told.established_kept, told.existing, told.reason) == (-1, (), "its rules are gone")


def _connection(port: int) -> TcpSocket:
    return TcpSocket(
        family=2,
        state=ESTABLISHED,
        local="10.0.0.1",
        local_port=80,
        remote="10.0.0.2",
        remote_port=port,
        uid=0,
        inode=1,
        cookie=(port, 0),
        raw_name=b"",
    )
