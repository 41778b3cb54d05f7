"""What a command is at is shown at a terminal, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from finetooth_toolbox.cli.working import time_left

pty = pytest.importorskip("pty", reason="terminals are made by the module pty")

WORK = """
import os, sys
from finetooth_toolbox.cli.working import show_share, lend_terminal, working
show_share(0.1)
with working("loading the weights") as show:
    print("for a pipe")
    show("rows [1] read", 0.5)
    with working("reading rows"):
        show_share(0.8)
        with working("tokenising them"):
            print("a note", file=sys.stderr)
    with lend_terminal(), working("never seen"):
        show_share(0.9)
"""


def said(**environment: str) -> tuple[str, str]:
    """What a process that works wrote into a pipe, and on the terminal that its stderr is."""
    terminal, side = pty.openpty()
    own = {**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment}
    done = subprocess.run([sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=side, env=own, check=True)
    os.close(side)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    return done.stdout.decode(), shown


def test_a_terminal_sees_what_is_done_and_a_pipe_only_what_was_printed() -> None:
    piped, shown = said()
    assert piped == "for a pipe\n"
    for text in ("loading the weights", "reading rows, 80%", "a note", "rows [1] read, 50%, 0:00 left", "0:00:00"):
        assert text in shown
    assert "never seen" not in shown and "90%" not in shown and "10%" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize(
    ("seconds", "share", "said"),
    [(30, 0.25, ", 25%, 1:30 left"), (1800, 0.25, ", 25%, 1:30:00 left"), (9, 1.0, ", 100%, 0:00 left"), (9, None, "")],
)
def test_what_is_left_takes_as_long_as_what_is_done(
    monkeypatch: pytest.MonkeyPatch, seconds: float, share: float | None, said: str
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + seconds)
    assert time_left(100.0, share) == said


def test_ranks_after_the_first_say_nothing() -> None:
    assert said(RANK="1") == ("for a pipe\n", "a note\r\n")


def test_without_a_terminal_nothing_is_shown() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("for a pipe\n", "a note\n")
