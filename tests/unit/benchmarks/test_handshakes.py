"""What a handshake costs is what a tunnel with one costs beyond a tunnel without."""

from __future__ import annotations

from benchmarks.handshakes import row


def test_a_row_names_both_costs_and_what_fits_into_a_second() -> None:
    """Medians for the figures, the rounds' own ratios for the comparison."""
    unpooled = {"server/ours": [1000.0, 2000.0, 9000.0], "server/envoy": [500.0, 500.0, 4500.0]}
    pooled = {"server/ours": [400.0, 500.0, 600.0], "server/envoy": [100.0, 200.0, 300.0]}

    assert row("server", unpooled, pooled) == {
        "metric": "server_cpu_per_unpooled_tunnel",
        "unit": "us",
        "ours": 2000.0,
        "envoy": 500.0,
        "ratio": 2.0,
        "handshake_ours_us": 1500.0,
        "handshake_envoy_us": 300.0,
        "ours_per_core_second": 500,
        "envoy_per_core_second": 2000,
    }
