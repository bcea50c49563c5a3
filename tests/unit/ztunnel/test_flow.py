"""What is remembered holds until the mesh changes, and is bounded."""

from __future__ import annotations

from ambient.model.mesh import Change, Mesh
from ztunnel.flow import MAX_REMEMBERED, Remembered


def test_an_answer_lasts_until_the_mesh_changes() -> None:
    """Whatever the change is about: a decision may rest on any of it."""
    mesh = Mesh()
    answers: Remembered[str, str] = Remembered(mesh)
    assert answers.get("a") is None
    answers.keep("a", "allowed")
    assert answers.get("a") == "allowed"

    mesh.apply(Change())

    assert answers.get("a") is None


def test_a_peer_cannot_make_it_grow() -> None:
    """It asks for as many targets as it likes."""
    answers: Remembered[int, int] = Remembered(Mesh())
    for number in range(10 * MAX_REMEMBERED):
        if answers.get(number) is None:
            answers.keep(number, number)

    assert sum(answers.get(number) is not None for number in range(10 * MAX_REMEMBERED)) <= MAX_REMEMBERED
