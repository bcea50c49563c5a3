"""What the agent holds for its ztunnel: whatever is put there is closed exactly once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from ambient.engine.sealed import seal
from ambient.model.identity import SpiffeId
from ambient.redirect.fd_store import FdStore

WEB = SpiffeId("cluster.local", "shop", "web")


@pytest.fixture
def store() -> Iterator[FdStore]:
    """One that leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    made = FdStore()
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def listening() -> int:
    return socket.create_server(("127.0.0.1", 0)).detach()


def test_a_listener_lives_while_it_is_held(store: FdStore) -> None:
    """That is the whole point: who connects waits, and is not refused."""
    fd = listening()
    address = socket.socket(fileno=os.dup(fd))
    with address:
        name = address.getsockname()

    assert store.keep_listeners("web", [(15001, fd)])

    socket.create_connection(name).close()
    assert store.listeners("web") == {15001: fd}
    store.drop_listeners("web")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(name)


def test_the_newest_takes_the_place_of_the_last(store: FdStore) -> None:
    """They come again with every connection of a ztunnel."""
    first, second = listening(), listening()
    store.keep_listeners("web", [(15001, first)])
    store.keep_listeners("web", [(15001, second)])
    assert store.listeners("web") == {15001: second}
    for _ in range(2):
        store.keep_key(WEB, seal(b"key"))
    assert store.identities() == {WEB}


def test_what_is_no_listener_and_no_sealed_file_is_closed(store: FdStore) -> None:
    """Or a broken ztunnel could have the agent hold anything."""
    reader, writer = os.pipe()
    connected = socket.socket()

    assert not store.keep_listeners("web", [(15001, listening()), (15006, reader)])
    assert not store.keep_listeners("web", [(15001, connected.detach())])
    assert not store.keep_key(WEB, writer)

    assert store.listeners("web") == {}
    assert store.key(WEB) is None


def test_a_listener_is_known_by_its_inode(store: FdStore) -> None:
    """As /proc names it: the duplicate that is held, and the one that ztunnel has, are one."""
    fd = listening()
    name = os.readlink(f"/proc/self/fd/{fd}")

    store.keep_listeners("web", [(15001, fd)])

    assert {f"socket:[{inode}]" for inode in store.inodes("web")} == {name}
    assert store.inodes("nobody") == frozenset()
