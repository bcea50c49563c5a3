"""The lab itself: pods reach each other, failures come out, nothing stays."""

from __future__ import annotations

import os

import pytest
import trio

from tests.lab import Lab, in_namespaces, run_isolated


def exchange(rootless: bool) -> None:
    lab = Lab()
    client, server = lab.pod("client"), lab.pod("server", node=2)
    with server.listen(80) as listener:
        for ip, source in ((server.ip, client.ip), (server.ip6, client.ip6)):
            with client.connect(ip, 80) as sock:
                accepted, peer = listener.accept()
                with accepted:
                    sock.sendall(b"hello")
                    assert accepted.recv(5) == b"hello"
                assert peer[0] in (source, f"::ffff:{source}")
    assert os.geteuid() == 0 or not rootless


@in_namespaces
def test_pods_of_two_nodes_reach_each_other() -> None:
    """Both families, the real source address."""
    exchange(rootless=False)


@in_namespaces(rootless=True)
def test_the_same_without_root() -> None:
    """In a user namespace."""
    exchange(rootless=True)


@in_namespaces
async def test_async_bodies_run_under_trio() -> None:
    """As everywhere in this suite."""
    await trio.lowlevel.checkpoint()


@pytest.mark.netns
def test_a_failure_in_the_child_fails_the_test() -> None:
    """A lab that swallows assertions would prove nothing."""

    def wrong() -> None:
        assert os.getpid() == 0, "as told"

    with pytest.raises(pytest.fail.Exception, match="as told"):
        run_isolated(wrong)


@pytest.mark.netns
def test_a_death_of_the_child_fails_the_test() -> None:
    """So would one that takes silence for success."""
    with pytest.raises(pytest.fail.Exception, match="died"):
        run_isolated(lambda: os._exit(0))


@pytest.mark.netns
def test_a_skip_in_the_child_skips_the_test() -> None:
    """For what can only be found out inside."""
    with pytest.raises(pytest.skip.Exception, match="not here"):
        run_isolated(lambda: pytest.skip("not here"))
