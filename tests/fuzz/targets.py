"""What is fuzzed: each parser that a peer feeds, with the errors that it may raise.

``python tests/fuzz/run.py TARGET`` mutates the corpus for as long as it is told; whatever a target raises
beyond its own errors is a find, and goes into the corpus with its repair. ``test_corpus`` replays all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from ambient.engine.pages import Answer, Query, Routes, encode_head, find
from ambient.errors import ConfigError, RemoteProtocolError
from ambient.model.address import canonical, format_hostport, parse_hostport
from ambient.pki.svid import CLIENT_USE, SERVER_USE, spiffe_id_of
from ambient.wire import zds
from ambient.wire.hbone_client import HboneClient
from ambient.wire.hbone_events import DataReceived, RequestReceived
from ambient.wire.hbone_frames import FRAME_HEADER_BYTES
from ambient.wire.hbone_server import HboneServer

# Descriptors are numbers to a sans-IO machine.
FD = 7


def hbone(data: bytes) -> None:
    """The HTTP/2 decoder of either role, in pieces; the first byte says how they are cut."""
    step = data[0] + 1 if data else 1
    for role in (HboneClient, HboneServer):
        connection = role()
        if role is HboneClient:
            connection.open("10.0.0.1:80")
        with suppress(RemoteProtocolError):
            for start in range(1, len(data), step):
                piece = memoryview(data[start : start + step])
                position = 0
                while (stream := connection.take_message(piece, position)) is not None:
                    connection.credit(stream, connection.message_end - position - FRAME_HEADER_BYTES)
                    position = connection.message_end
                for event in connection.receive_data(piece[position:], start / 100):
                    if isinstance(event, RequestReceived) and event.stream.stream_id in connection.streams:
                        connection.accept(event.stream)
                    elif isinstance(event, DataReceived):
                        connection.credit(event.stream, event.total)
        connection.take_output()
        connection.release()
        assert connection._windows.left == type(connection._windows)().left


def authority(data: bytes) -> None:
    """Whatever is accepted has one spelling, and means the same when it is read again."""
    with suppress(ConfigError):
        host, port = parse_hostport(data.decode("latin-1"))
        assert parse_hostport(format_hostport(host, port)) == (host, port)
        assert 0 < port < 65536
        with suppress(ConfigError):
            assert canonical(host) == host


def zds_packets(data: bytes) -> None:
    """Packets of up to 255 bytes, each after its length and its number of descriptors, at either end."""
    ztunnel, agent = zds.ZtunnelConnection(), zds.AgentConnection()
    ztunnel.hello()
    for end in (ztunnel, agent):
        position = 0
        with suppress(RemoteProtocolError):
            while position + 2 <= len(data):
                size, fds = data[position], data[position + 1] % 4
                end.receive_packet(data[position + 2 : position + 2 + size], [FD] * fds)
                position += 2 + size
        assert isinstance(end.state, zds.State)


def _answer(query: Query) -> Answer:
    return Answer(200, "\n".join(query))


ROUTES: Routes = {"/": {"GET": _answer}, "/quitquitquit": {"POST": _answer}}


def admin(data: bytes) -> None:
    """The head of an admin request: found, or answered with a status of its own."""
    for local_only in (True, False):
        found = find(data, ROUTES, local_only)
        if isinstance(found, Answer):
            assert 400 <= found.status < 500
            assert encode_head(found, len(found.body)).endswith(b"\r\n\r\n")
        else:
            assert found.route(found.query)


def certificate(data: bytes) -> None:
    """A peer's leaf: who it is, if anybody, stands in it."""
    with suppress(RemoteProtocolError):
        for use in (None, SERVER_USE, CLIENT_USE):
            assert str(spiffe_id_of(data, use=use)).encode() in data


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "hbone": hbone,
    "authority": authority,
    "zds": zds_packets,
    "admin": admin,
    "certificate": certificate,
}
