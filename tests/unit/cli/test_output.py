"""What people and scripts read."""

from __future__ import annotations

import pytest

from ambient.cli import output
from ambient.errors import ConfigError


def test_a_table_is_aligned_without_trailing_blanks() -> None:
    """kubectl's look; an empty cell is <none>."""
    text = output.table(("NAME", "READY"), [("a", True), ("longer", None), ("b", "")])

    assert text == "NAME     READY\na        true\nlonger   <none>\nb        <none>\n"


@pytest.mark.parametrize(
    ("text", "seconds"), [("15s", 15), ("1m30s", 90), ("500ms", 0.5), ("2h", 7200), ("7", 7), ("1.5", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    """Go's, as kubectl takes them."""
    assert output.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "15", "5 s", "1d", "x5s", "-3s"])
def test_bad_durations(text: str) -> None:
    """Refused, not guessed; bare numbers are seconds."""
    if text == "15":
        assert output.parse_duration(text) == 15
        return
    with pytest.raises(ConfigError, match="not a duration"):
        output.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (48 * 3600, "2d")]
)
def test_ages(seconds: float, text: str) -> None:
    """As kubectl shortens them."""
    assert output.age(seconds) == text


def test_a_document_begins_with_its_version() -> None:
    """And cannot be overridden by what it carries."""
    assert list(output.document("X", {"a": 1, "kind": "Y"})) == ["apiVersion", "kind", "a"]


def test_an_error_is_one_line() -> None:
    """Whatever a library put into its message."""
    assert output.one_line("a\n  b\tc") == "a b c"
