"""The names of Istio's ztunnel: each is known, and means something or is said to mean nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ambient.model import durations
from ztunnel import environment, settings
from ztunnel.environment import HONOURED, NOT_HONOURED, OURS, help_text, ignored

# src/config.rs of Istio's ztunnel, 1.31.0-alpha; the metadata of its own pod, which describes and does
# nothing, left out.
TEXT = """
ENABLE_PROXY PROXY_MODE PROXY_WORKLOAD_INFO NETWORK NODE_NAME CLUSTER_ID CLUSTER_DOMAIN TRUST_DOMAIN
XDS_ADDRESS CA_ADDRESS XDS_ROOT_CA CA_ROOT_CA ALT_XDS_HOSTNAME ALT_CA_HOSTNAME AUTH_TOKEN SECRET_TTL FAKE_CA
LOCAL_XDS_PATH LOCAL_XDS XDS_ON_DEMAND HTTP2_STREAM_WINDOW_SIZE HTTP2_CONNECTION_WINDOW_SIZE HTTP2_FRAME_SIZE
POOL_MAX_STREAMS_PER_CONNECTION POOL_UNUSED_RELEASE_TIMEOUT CONNECTION_TERMINATION_DEADLINE
TERMINATION_GRACE_PERIOD_SECONDS KEEPALIVE_ENABLED KEEPALIVE_TIME KEEPALIVE_INTERVAL KEEPALIVE_RETRIES
USER_TIMEOUT_ENABLED INPOD_UDS INPOD_PORT_REUSE PACKET_MARK ENABLE_ORIG_SRC IPV6_ENABLED
ISTIO_META_DNS_CAPTURE ISTIO_META_DNS_PROXY_ADDR PREFERED_SERVICE_NAMESPACE UNSTABLE_ENABLE_SOCKS5
LOCALHOST_APP_TUNNEL ENABLE_RESPONSE_BAGGAGE CRL_PATH AUTHZ_POLICY_INFO_LOGGING TLS12_ENABLED
COMPLIANCE_POLICY ZTUNNEL_WORKER_THREADS RUST_LOG LOG_FORMAT PROXY_CONFIG
"""
ISTIOS = re.findall(r"[A-Z0-9_]+", TEXT)


def test_every_name_of_istios_is_known() -> None:
    """Nobody's manifest is obeyed by half without a word."""
    known = HONOURED.keys() | NOT_HONOURED.keys()

    assert known >= set(ISTIOS), sorted(set(ISTIOS) - known)
    assert not HONOURED.keys() & NOT_HONOURED.keys()


def test_what_is_said_to_be_honoured_is_read() -> None:
    """And what is read is said."""
    text = Path(settings.__file__).read_text() + Path(durations.__file__).read_text()
    read = set(re.findall(r'"([A-Z0-9_]{6,})"', text))

    assert (HONOURED.keys() | OURS.keys()) - read == {"AMBIENT_CONTROL_FD"}
    assert read <= HONOURED.keys() | OURS.keys()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ()),
        ({"XDS_ADDRESS": "https://istiod:15012", "CA_ADDRESS": "/x"}, ("CA_ADDRESS", "XDS_ADDRESS")),
        ({"PROXY_MODE": "shared", "FAKE_CA": "False", "CA_ADDRESS": ""}, ()),
        ({"PROXY_MODE": "dedicated"}, ("PROXY_MODE",)),
        ({"XDS_HEADER_foo": "bar", "ISTIO_META_CLUSTER_ID": "x"}, ("XDS_HEADER_foo",)),
    ],
    ids=["none", "two", "as-we-do-anyway", "otherwise", "families"],
)
def test_only_what_would_have_changed_something_is_news(
    environ: dict[str, str], expected: tuple[str, ...]
) -> None:
    """A warning about nothing teaches people not to read them."""
    assert ignored(environ) == expected


def test_help_lists_every_name() -> None:
    """The table that people look for."""
    text = help_text()

    assert all(name in text for name in (*HONOURED, *OURS, *NOT_HONOURED))
    assert max(map(len, text.splitlines())) <= 140
    assert environment.__doc__


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [(["--help"], 0, "usage:"), (["version"], 0, "."), (["serve"], 2, "help is understood")],
)
def test_ztunnels_words(arguments: list[str], code: int, text: str) -> None:
    """proxy, version, help."""
    done = subprocess.run(
        [sys.executable, "-m", "ztunnel", *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == code
    assert text in done.stdout + done.stderr
