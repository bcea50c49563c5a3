"""The descriptive headers of HBONE, as Istio's ztunnel writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.model.workload import Workload
from ambient.wire.baggage import (
    MAX_BAGGAGE_BYTES,
    Baggage,
    baggage_of,
    format_baggage,
    format_forwarded,
    format_traceparent,
    is_traceparent,
    next_traceparent,
    parse_baggage,
    parse_forwarded,
    traceparent_in,
)

TRACE = f"00-{'ab' * 16}-{'cd' * 8}-00"

REVIEWS = Workload(
    uid="u",
    name="reviews-v1-0",
    namespace="bookinfo",
    workload_name="reviews-v1",
    canonical_name="reviews",
    canonical_revision="v1",
)


def test_a_deployments_pod_in_ztunnels_order() -> None:
    """Istio's own peers read this header."""
    assert format_baggage(baggage_of(REVIEWS, "Kubernetes")) == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=bookinfo,k8s.deployment.name=reviews-v1,"
        "service.name=reviews,service.version=v1"
    )


def test_a_bare_pod_is_named_as_a_pod() -> None:
    """It has no Deployment, and no labels either."""
    bare = Workload(uid="u", name="sleeper", namespace="bookinfo")

    assert format_baggage(baggage_of(bare, "")) == "k8s.namespace.name=bookinfo,k8s.pod.name=sleeper"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Baggage()),
        (
            "k8s.namespace.name=shop;ttl=3 , service.name = a%2Cb ",
            Baggage(namespace="shop", service_name="a,b"),
        ),
        ("k8s.cronjob.name=nightly", Baggage(workload_type="cronjob", workload_name="nightly")),
        ("k8s.container.name=x,other=1,nonsense,cloud.region=r", Baggage(region="r")),
        ("service.name=" + "x" * MAX_BAGGAGE_BYTES, Baggage()),
    ],
    ids=["empty", "spaces-and-properties", "cronjob", "unknown", "too-long"],
)
def test_reading_skips_what_it_does_not_know(text: str, expected: Baggage) -> None:
    """A header that only describes must never be a reason to refuse."""
    assert parse_baggage(text) == expected


values = st.text(max_size=30)


@given(
    st.builds(
        Baggage,
        cluster=values,
        namespace=values,
        workload_name=st.text(min_size=1, max_size=30),
        workload_type=st.sampled_from(["deployment", "pod", "job", "cronjob"]),
        service_name=values,
        revision=values,
        region=values,
        zone=values,
    )
)
def test_what_is_written_is_read_again(baggage: Baggage) -> None:
    """No value can end its member or begin another."""
    text = format_baggage(baggage)

    assert text.isascii()
    assert parse_baggage(text) == (baggage if len(text) <= MAX_BAGGAGE_BYTES else Baggage())


@pytest.mark.parametrize(
    ("source", "host"),
    [("10.0.0.1:80", ""), ("[fd00::1]:65535", "api.shop.svc.cluster.local")],
    ids=["v4", "v6-with-host"],
)
def test_forwarded_names_the_source(source: str, host: str) -> None:
    """The destination's log shows it; its policy never sees it."""
    text = format_forwarded(source, host)

    assert text.startswith(f'for="{source}"')
    assert parse_forwarded(text) == (source, host)


@pytest.mark.parametrize("text", ["", "for=unknown", 'for="10.0.0.1:80";host=a b', 'for="10.0.0.1"'])
def test_another_form_of_forwarded_is_not_read(text: str) -> None:
    """RFC 7239 allows much more than HBONE uses."""
    assert parse_forwarded(text) is None


def test_a_traceparent_has_fifty_five_characters() -> None:
    """ztunnel accepts no other length."""
    text = format_traceparent(2**128 + 0xABC, 2**64 + 0xDEF)

    assert text == f"00-{'abc':0>32}-{'def':0>16}-00"
    assert len(text) == 55
    assert is_traceparent(text)


def test_a_trace_goes_on_under_a_span_of_our_own() -> None:
    """W3C Trace Context 3.2: the same trace and flags, another parent."""
    theirs = f"00-{'ab' * 16}-{'cd' * 8}-01"

    ours = next_traceparent(theirs, 7)

    assert ours == f"00-{'ab' * 16}-{7:016x}-01"
    assert is_traceparent(ours)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ((), ""),
        ((("baggage", "x"), ("traceparent", TRACE)), TRACE),
        ((("traceparent", TRACE), ("traceparent", TRACE)), ""),
        ((("traceparent", TRACE[:-1]),), ""),
        ((("traceparent", TRACE + "\r\nevil: 1"),), ""),
    ],
    ids=["none", "one", "two", "short", "long"],
)
def test_only_one_good_traceparent_is_believed(headers: tuple[tuple[str, str], ...], found: str) -> None:
    """It ends up in a log."""
    assert traceparent_in(headers) == found


@pytest.mark.parametrize("text", ["", "00-" + "0" * 52, "00-" + "A" * 32 + "-" + "0" * 16 + "-00"])
def test_what_is_no_traceparent_is_not_passed_on(text: str) -> None:
    """It came from a peer."""
    assert not is_traceparent(text)
