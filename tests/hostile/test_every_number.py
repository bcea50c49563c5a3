"""Every row of the list of hostile inputs has a test, and no test is for a row that does not exist."""

from __future__ import annotations

from tests.hostile import test_crl, test_http2, test_tls, test_zds
from tests.hostile.scene import COVERED

# reference/threats.md, section 5: T, H and Z.
ROWS = (
    {f"T{number}" for number in range(1, 35)}
    | {f"H{number}" for number in range(1, 41)}
    | {f"Z{number}" for number in range(1, 17)}
)


def test_no_row_is_missing() -> None:
    """The figures in the tests' names are the rows' numbers."""
    assert test_tls and test_http2 and test_zds and test_crl
    assert ROWS - COVERED == set()
    assert COVERED - ROWS == set()
