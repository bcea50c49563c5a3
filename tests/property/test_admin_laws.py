"""Whatever is sent to the operators' ports: only a plain local request for a known path does anything."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from ambient.engine.pages import Answer, Found, Query, find

METHODS = ["GET", "POST", "PUT", "HEAD", "get", "CONNECT", "OPTIONS", ""]
PATHS = ["/config_dump", "/quitquitquit", "/logging", "/", "/debug/..", "//config_dump", "/config_dump/", "*"]
HOSTS = [
    "localhost",
    "localhost:15000",
    "127.0.0.1",
    "[::1]:1",
    "LOCALHOST",
    "evil.example",
    "127.0.0.1.x",
    "",
]
NAMES = ["Host", "host", "Origin", "Sec-Fetch-Site", "X-Forwarded-Host", "Content-Length", "Host ", "\tHost"]
VALUES = [*HOSTS, "null", "same-origin", "cross-site", "none", "http://localhost:3000"]

texts = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20)
fields = st.tuples(st.sampled_from(NAMES) | texts, st.sampled_from(VALUES) | texts)
queries = st.sampled_from(["", "?", "?level=info", "?level=a&level=b", "?a", "?a=%zz", "?%00=%ff"]) | texts
called: list[str] = []


def route(name: str) -> dict[str, object]:
    return {"GET": lambda query: called.append(name), "POST": lambda query: called.append(name)}


ROUTES = {path: route(path) for path in ("/", "/config_dump", "/quitquitquit", "/logging")}
LOCAL = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")


@given(
    st.sampled_from(METHODS) | texts,
    st.sampled_from(PATHS) | texts,
    queries,
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", ""]),
    st.lists(fields, max_size=4),
)
@example("POST", "/quitquitquit", "", "HTTP/1.1", [("Host", "localhost"), ("Origin", "null")])
@example("POST", "/quitquitquit", "", "HTTP/1.1", [("Host", "localhost"), ("host", "evil.example")])
@example("GET", "/config_dump", "", "HTTP/1.1", [("host", "localhost\x00.evil.example")])
def test_only_a_plain_local_request_is_found(
    method: str, path: str, query: str, version: str, headers: list[tuple[str, str]]
) -> None:
    """Law: one Host, of this machine; no page's mark; a path and a method to the letter."""
    lines = [f"{method} {path}{query} {version}", *(f"{name}: {value}" for name, value in headers)]
    found = find("\r\n".join(lines).encode("latin-1"), ROUTES, True)  # type: ignore[arg-type]

    assert isinstance(found, Found | Answer)
    assert called == []
    if isinstance(found, Answer):
        assert 400 <= found.status < 500
        return
    hosts = [value.strip() for name, value in headers if name.lower() == "host"]
    assert len(hosts) == 1
    assert LOCAL.fullmatch(hosts[0])
    assert not [name for name, value in headers if name.lower() == "origin" and value.strip()]
    assert (path + query).partition("?")[0] in ROUTES
    assert method in ("GET", "POST")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=5))
def test_a_query_reads_back(query: dict[str, str]) -> None:
    """Law: what curl --data-urlencode sends is what the route gets (as bytes of latin-1)."""

    def quoted(text: str) -> str:
        return "".join(f"%{byte:02X}" for byte in text.encode("latin-1", "replace"))

    wanted: Query = {
        name.encode("latin-1", "replace").decode("latin-1"): value.encode("latin-1", "replace").decode(
            "latin-1"
        )
        for name, value in query.items()
    }
    if len(wanted) != len(query):
        return  # Two names became one: refused, as any name that stands twice.
    text = "&".join(f"{quoted(name)}={quoted(value)}" for name, value in query.items())
    found = find(f"GET /?{text} HTTP/1.1\r\nHost: localhost".encode(), ROUTES, True)  # type: ignore[arg-type]

    assert isinstance(found, Found)
    assert found.query == wanted
