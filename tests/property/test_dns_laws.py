"""A pod's questions, whatever they are: an answer that fits, or silence; never an exception."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from ambient.errors import RemoteProtocolError
from ambient.model.mesh import Change, Mesh
from ambient.model.workload import Workload
from ambient.wire.dns import (
    MAX_EDNS_BYTES,
    MAX_TCP_BYTES,
    TYPE_A,
    TYPE_AAAA,
    encode_answer,
    encode_query,
    parse_query,
)
from tests.unit.ztunnel.test_dns_plan import API, DB, FOUR, MANY, ME, OUTSIDE, POD, WILD
from ztunnel.dns_plan import resolve

MESH = Mesh()
MESH.apply(Change(workloads=(ME, POD), services=(API, DB, FOUR, MANY, OUTSIDE, WILD)))

known = st.sampled_from(
    [
        "api",
        "shop",
        "svc",
        "cluster",
        "local",
        "db",
        "db-0",
        "pod",
        "10-244-1-5",
        "*",
        "www",
        "example",
        "com",
    ]
)
odd = st.text(st.characters(max_codepoint=255, exclude_characters="."), min_size=1, max_size=63)
labels = st.lists(known | odd, max_size=9)
kinds = st.sampled_from([TYPE_A, TYPE_AAAA, 0, 41, 255, 65535])
clients = st.sampled_from([ME, None, Workload(uid="x", name="x", namespace="bank")])


@given(labels, kinds, clients, st.integers(0, 65535), st.floats(0, 1, exclude_max=True))
@example(["*"], TYPE_A, ME, 0, 0.0)
@example([], TYPE_A, ME, 512, 0.0)
def test_every_question_gets_an_answer_that_fits(
    parts: list[str], kind: int, me: Workload | None, edns: int, chance: float
) -> None:
    """Law: by UDP within what the resolver takes, by TCP within a message; the question comes back."""
    wire = encode_query(7, ".".join(parts), kind, edns_bytes=edns)
    try:
        query = parse_query(wire)
    except RemoteProtocolError:
        assert sum(len(part) + 1 for part in parts) > 200
        return
    answer = resolve(MESH, me, query, chance)
    if answer is None:
        return
    for room in (query.udp_room, MAX_TCP_BYTES):
        reply = encode_answer(query, answer, ttl=30, max_bytes=room)
        assert len(reply) <= room
        identifier, _flags, questions, records, _, additional = struct.unpack_from("!HHHHHH", reply)
        assert (identifier, questions, additional) == (7, 1, int(edns > 0))
        assert reply[12 : 12 + len(query.question)] == query.question
        assert records <= len(answer.addresses) + 1
    assert query.udp_room <= MAX_EDNS_BYTES


@given(st.binary(max_size=600))
def test_no_datagram_raises_anything_else(data: bytes) -> None:
    """Law: a question or no question."""
    try:
        query = parse_query(data)
    except RemoteProtocolError:
        return
    resolve(MESH, ME, query, 0.5)
