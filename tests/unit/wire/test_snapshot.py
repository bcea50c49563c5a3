"""The mesh as a file: what was written comes back, and nothing else is ever believed."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import RemoteProtocolError
from ambient.model.mesh import Change, Mesh
from ambient.model.policy import Action, Match, Policy, Scope, StringMatch
from ambient.wire import snapshot
from ambient.wire.frames import encode
from tests.meshes import API, mesh_of, service, workload

ONLY_WEB = Policy(
    key="shop/only-web",
    namespace="shop",
    action=Action.ALLOW,
    scope=Scope.NAMESPACE,
    rules=(((Match(principals=(StringMatch.parse("cluster.local/ns/shop/sa/web"),)),),),),
)
KNOWN = mesh_of(
    workload("web", "10.244.1.2"),
    workload("api", "10.244.2.3", serves=API, policies=("shop/only-web",)),
    service("api", "10.96.0.7"),
    ONLY_WEB,
).snapshot()
FILE = b"".join(snapshot.pieces(KNOWN))


def summed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


FIRST_LINE = FILE[: FILE.index(b"\n") + 1]


def test_what_was_written_comes_back() -> None:
    """All of it, policies above all."""
    assert snapshot.read(FILE) == KNOWN


@pytest.mark.parametrize("count", [0, 1, snapshot.SLICE_RESOURCES, snapshot.SLICE_RESOURCES + 1])
def test_any_number_of_workloads_comes_back(count: int) -> None:
    """Slices are the writer's business."""
    one = workload("web", "10.244.1.2")
    mesh = Mesh()
    mesh.apply(Change(workloads=tuple(replace(one, uid=f"web-{n:04}") for n in range(count))))

    written = list(snapshot.pieces(mesh.snapshot()))

    assert snapshot.read(b"".join(written)) == mesh.snapshot()
    assert len(written) == 2 + -(-count // snapshot.SLICE_RESOURCES)


def test_a_file_that_was_cut_is_refused() -> None:
    """At every byte: a full disk may stop anywhere."""
    for length in range(len(FILE)):
        with pytest.raises(RemoteProtocolError):
            snapshot.read(FILE[:length])


@given(st.integers(0, len(FILE) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_refused(position: int, bit: int) -> None:
    """Wherever it is; a policy with one letter changed would be another policy."""
    changed = bytearray(FILE)
    changed[position] ^= 1 << bit
    with pytest.raises(RemoteProtocolError):
        snapshot.read(bytes(changed))


@given(st.binary(max_size=200))
def test_anything_at_all_raises_nothing_else(body: bytes) -> None:
    """A file with a right sum may still hold what we do not understand: our own next version's, say."""
    for data in (
        body,
        FIRST_LINE + body,
        summed(FIRST_LINE + body),
        summed(FIRST_LINE + encode({"x": body})),
    ):
        try:
            snapshot.read(data)
        except RemoteProtocolError:
            pass


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a mesh snapshot"),
        (b"ambient mesh snapshot 2\nwhatever", "another version"),
        (summed(FIRST_LINE + encode({"policies": 7})), "policies is not a list"),
        (summed(FIRST_LINE + encode({"policies": [{"key": "x"}]})), "Policy"),
        (summed(FIRST_LINE + encode({"policies": []})[:-1]), "within a frame"),
    ],
    ids=["empty", "newer", "no-list", "no-policy", "half-a-frame"],
)
def test_the_reason_says_what_is_wrong(data: bytes, message: str) -> None:
    """It stands in the log beside the file that was put aside."""
    with pytest.raises(RemoteProtocolError, match=message):
        snapshot.read(data)
