"""What a CNI runtime asks of ambient-cni, and what it is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.redirect.cni_plan import Call, CniError, Code, Verb, failure, read_call, success

PREVIOUS = {"cniVersion": "1.0.0", "ips": [{"address": "10.244.1.2/24"}], "odd": {"b": 1, "a": [None]}}
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/proc/7/ns/net",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web",
}
CONFIG = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "type": "ambient-cni",
    "socket": "/run/cni.sock",
    "prevResult": PREVIOUS,
}


def read(environment: dict[str, str] | None = None, **config: Any) -> Call:
    body = {name: value for name, value in {**CONFIG, **config}.items() if value is not None}
    return read_call({**ENVIRONMENT, **(environment or {})}, json.dumps(body).encode())


def test_an_add_is_read_and_passes_the_previous_result_on() -> None:
    """Whatever is in it: it belongs to other plugins."""
    call = read()

    assert (call.verb, call.namespace, call.pod, call.netns, call.socket) == (
        Verb.ADD,
        "shop",
        "web",
        "/proc/7/ns/net",
        "/run/cni.sock",
    )
    assert json.loads(success(call)) == PREVIOUS
    assert list(json.loads(success(call))) == list(PREVIOUS)


@pytest.mark.parametrize(
    ("environment", "config", "code"),
    [
        ({"CNI_COMMAND": "FETCH"}, {}, Code.INVALID_ENVIRONMENT),
        ({"CNI_CONTAINERID": ""}, {}, Code.INVALID_ENVIRONMENT),
        ({"CNI_CONTAINERID": "../x"}, {}, Code.INVALID_ENVIRONMENT),
        ({"CNI_IFNAME": "a/b"}, {}, Code.INVALID_ENVIRONMENT),
        ({"CNI_IFNAME": "eth0123456789abc"}, {}, Code.INVALID_ENVIRONMENT),
        ({"CNI_NETNS": ""}, {}, Code.INVALID_ENVIRONMENT),
        ({"CNI_ARGS": ""}, {}, Code.INVALID_ENVIRONMENT),
        ({"CNI_COMMAND": "STATUS"}, {}, Code.INVALID_ENVIRONMENT),
        ({}, {"cniVersion": "0.2.0"}, Code.INCOMPATIBLE_VERSION),
        ({}, {"prevResult": None}, Code.INVALID_CONFIG),
        ({}, {"prevResult": []}, Code.INVALID_CONFIG),
        ({}, {"socket": None}, Code.INVALID_CONFIG),
        ({}, {"socket": "cni.sock"}, Code.INVALID_CONFIG),
        ({}, {"timeout": True}, Code.INVALID_CONFIG),
        ({}, {"timeout": 0}, Code.INVALID_CONFIG),
        ({}, {"timeout": 1e9}, Code.INVALID_CONFIG),
    ],
)
def test_refused_with_the_specifications_code(
    environment: dict[str, str], config: dict[str, Any], code: Code
) -> None:
    """A runtime decides by the number whether to try again."""
    with pytest.raises(CniError) as caught:
        read(environment, **config)

    said = json.loads(failure(caught.value))
    assert said["code"] == code
    assert said["msg"]


def test_a_del_asks_for_little() -> None:
    """The namespace may be gone, and nobody may remember the result."""
    call = read({"CNI_COMMAND": "DEL", "CNI_NETNS": "", "CNI_ARGS": ""}, prevResult=None)

    assert call.verb is Verb.DEL
    assert success(call) == b""


@pytest.mark.parametrize("verb", ["STATUS", "GC"])
def test_the_verbs_of_1_1(verb: str) -> None:
    """They are about no attachment."""
    call = read_call(
        {"CNI_COMMAND": verb}, json.dumps({**CONFIG, "cniVersion": "1.1.0", "prevResult": None}).encode()
    )

    assert call.verb.value == verb
    assert success(call) == b""


def test_version_needs_no_configuration() -> None:
    """A runtime asks it first of all."""
    call = read_call({"CNI_COMMAND": "VERSION"}, b"")

    assert json.loads(success(call))["supportedVersions"] == ["0.4.0", "1.0.0", "1.1.0"]


@given(st.dictionaries(st.sampled_from(list(ENVIRONMENT)), st.text(max_size=20)), st.binary(max_size=200))
def test_garbage_is_an_error_of_the_specifications_form(environment: dict[str, str], data: bytes) -> None:
    """Never a traceback: the runtime parses what is printed."""
    said = {"cniVersion": "", "code": 0, "msg": ""}
    try:
        read_call(environment, data)
    except CniError as exc:
        said = json.loads(failure(exc))

    assert set(said) >= {"cniVersion", "code", "msg"}
