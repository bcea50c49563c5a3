"""What a command prints: tables as kubectl aligns them, JSON, YAML, names; and times as people read them.

Floor 6, pure but for ``Desk`` callers: every function returns text. Data goes to stdout, all the rest to
stderr; that split is the caller's one duty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ambient.errors import ConfigError

API_VERSION = "ambient/v1"
# kubectl's tabwriter: three blanks between columns.
GAP = "   "

Row: TypeAlias = Sequence[object]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def table(headers: Sequence[str], rows: Iterable[Row]) -> str:
    """Align *rows* under upper-case *headers*; no trailing blanks, one final newline."""
    lines = [list(headers), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    text = [GAP.join(part.ljust(width) for part, width in zip(line, widths, strict=True)) for line in lines]
    return "".join(line.rstrip() + "\n" for line in text)


def cell(value: object) -> str:
    """One value of a table; kubectl writes ``<none>`` where there is nothing."""
    if value is None or value == "":
        return "<none>"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def document(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return *body* with the two keys every document of ours begins with."""
    rest = {key: value for key, value in body.items() if key not in ("apiVersion", "kind")}
    return {"apiVersion": API_VERSION, "kind": kind, **rest}


def to_json(value: Any) -> str:
    """One JSON document for people and scripts."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def to_yaml(value: Any) -> str:
    """The same document as YAML, keys in their given order."""
    import yaml  # Costs 30 ms, and most commands never print YAML.

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def parse_duration(text: str) -> float:
    """Read a Go duration such as ``15s`` or ``1m30s``, or plain seconds; return seconds.

    Raises:
        ConfigError: *text* is neither.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"not a duration such as 15s or 1m30s: {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def age(seconds: float) -> str:
    """A span as kubectl shortens it: ``45s``, ``12m``, ``3h``, ``5d``."""
    whole = max(0, int(seconds))
    for size, unit, limit in ((1, "s", 120), (60, "m", 120 * 60), (3600, "h", 48 * 3600)):
        if whole < limit:
            return f"{whole // size}{unit}"
    return f"{whole // 86400}d"


def one_line(text: str) -> str:
    """*text* on one line: an error is never more."""
    return " ".join(text.split())
