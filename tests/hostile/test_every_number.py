"""Every row of the list of hostile inputs has a test, and no test is for a row that does not exist."""

from __future__ import annotations

import importlib

from tests.hostile.scene import COVERED

# reference/threats.md, section 5: T, H and Z.
ROWS = (
    {f"T{number}" for number in range(1, 35)}
    | {f"H{number}" for number in range(1, 41)}
    | {f"Z{number}" for number in range(1, 17)}
)


def test_no_row_is_missing() -> None:
    """The figures in the tests' names are the rows' numbers."""
    for name in ("test_tls", "test_crl", "test_http2", "test_zds"):
        importlib.import_module(f"tests.hostile.{name}")
    assert sorted(ROWS - COVERED) == []
    assert sorted(COVERED - ROWS) == []
