"""Which of a captured pod's connections its proxy carries."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ambient.model.exclusions import Exclusions
from ambient.redirect.plan import PROXY_MARK, Capture
from ambient.redirect.sockets import unproxied
from ambient.wire.netlink import AF_INET
from ambient.wire.netlink_diag import CLOSE_WAIT, ESTABLISHED, FIN_WAIT_2, TcpSocket

POD, PEER = "10.244.1.2", "10.244.2.3"


def sock(local: str, local_port: int, remote: str, remote_port: int, mark: int = 0) -> TcpSocket:
    return TcpSocket(
        family=AF_INET,
        state=ESTABLISHED,
        local=local,
        local_port=local_port,
        remote=remote,
        remote_port=remote_port,
        uid=0,
        inode=1,
        cookie=(1, 0),
        raw_name=b"",
        mark=mark,
    )


OUT = sock(POD, 40000, PEER, 80)
IN = sock(POD, 8080, PEER, 50000)
ACCEPTED_OUT = sock("127.0.0.1", 15001, POD, 40000, PROXY_MARK)
DIALLED_IN = sock(PEER, 50000, POD, 8080, PROXY_MARK)
TUNNEL = sock(POD, 45000, PEER, 15008, PROXY_MARK)
PROBE = sock(POD, 8080, "169.254.7.127", 33333)


@pytest.mark.parametrize(
    ("found", "exclusions", "expected"),
    [
        ([OUT, IN], Exclusions(), (OUT, IN)),
        ([OUT, ACCEPTED_OUT, TUNNEL], Exclusions(), ()),
        ([IN, DIALLED_IN], Exclusions(), ()),
        # The client has said that it is done, and the application goes on.
        ([replace(IN, state=CLOSE_WAIT), replace(DIALLED_IN, state=FIN_WAIT_2)], Exclusions(), ()),
        ([replace(IN, state=CLOSE_WAIT)], Exclusions(), (replace(IN, state=CLOSE_WAIT),)),
        ([replace(IN, state=FIN_WAIT_2)], Exclusions(), ()),
        ([OUT, IN, DIALLED_IN, TUNNEL], Exclusions(), (OUT,)),
        ([PROBE], Exclusions(), ()),
        ([OUT], Exclusions(outbound_ports=(80,)), ()),
        ([OUT], Exclusions(outbound_ranges=("10.244.2.0/24",)), ()),
        ([IN], Exclusions(inbound_ports=(8080,)), ()),
        ([IN], Exclusions(inbound_ranges=("fd00::/8",)), (IN,)),
    ],
)
def test_what_has_no_proxy_at_its_other_end_is_older(
    found: list[TcpSocket], exclusions: Exclusions, expected: tuple[TcpSocket, ...]
) -> None:
    """So that a new agent can tell, which has seen no enrollment."""
    assert unproxied(found, Capture(exclusions=exclusions)) == expected
