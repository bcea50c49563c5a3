"""A child that speaks JSON lines: every word has a deadline, every end a reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ambient.bench import talker
from ambient.bench.talker import ChildTalker
from ambient.errors import AmbientError


@contextmanager
def child(code: str) -> Iterator[ChildTalker]:
    """A Python child that is closed at the end."""
    made = ChildTalker([sys.executable, "-c", code], os.environ)
    try:
        yield made
    finally:
        made.close()


def test_a_conversation() -> None:
    """It says, we say, it answers; two events in one read are two."""
    code = 'import sys; print(\'{"event":"a"}\\n{"event":"b"}\',flush=True); w=sys.stdin.readline().strip();'
    code += 'print(\'{"event":"c","word":"%s"}\' % w, flush=True)'
    with child(code) as made:
        made.expect("a", 10)
        made.expect("b", 10)
        made.say("go")

        assert made.expect("c", 10)["word"] == "go"


def test_another_event_than_expected_is_an_error() -> None:
    """Out of step means that every later number would be of the wrong span."""
    with (
        child('print(\'{"event":"x"}\')') as made,
        pytest.raises(AmbientError, match="said 'x', not 'ready'"),
    ):
        made.expect("ready", 10)


def test_the_last_words_of_a_child_are_the_reason() -> None:
    """Its last line on stderr, not a traceback of ours."""
    with (
        child("import sys; sys.exit('no such link')") as made,
        pytest.raises(AmbientError, match="no such link"),
    ):
        made.expect("ready", 10)


def test_a_child_that_says_nothing_at_all() -> None:
    """Killed by the kernel, for one."""
    with child("") as made, pytest.raises(AmbientError, match="without a word"):
        made.expect("ready", 10)


def test_silence_has_a_deadline() -> None:
    """A hung generator must not hang the run."""
    with (
        child("import time; time.sleep(60)") as made,
        pytest.raises(AmbientError, match="no 'ready' in time"),
    ):
        made.expect("ready", 0.01)


def test_a_child_that_is_gone_cannot_be_told() -> None:
    """EPIPE is its end, with its reason."""
    with child("import sys; sys.stdin.close(); sys.exit('bye')") as made:
        made._child.wait(10)
        with pytest.raises(AmbientError, match="bye"):
            made.say("x" * 100_000)


def test_a_child_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may outlive the run."""
    monkeypatch.setattr(talker, "STOP_SECONDS", 0.05)
    code = "import signal,time; signal.signal(15, signal.SIG_IGN);"
    code += 'print(\'{"event":"a"}\',flush=True); time.sleep(60)'
    with child(code) as made:
        made.expect("a", 10)
        pid = made._child.pid

    assert made._child.returncode == -9
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
