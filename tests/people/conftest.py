"""`ft` as people type it, at a terminal: of this environment, or of another one that `FT_PEOPLE` names."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

QUESTIONS = (
    "Where is my parcel?", "Can I change the address?", "My voucher does not work.", "The shoe has a hole.",
    "Do you ship to Austria?", "How do I return shoes?", "When do you open?", "Is there a size 47?",
    "Can I pay by invoice?", "Who are you?",
)  # fmt: skip
ANSWERS = (
    "It left us yesterday; it comes within two days.", "Yes, until it is sent: My orders > Address.",
    "Vouchers count once, from 25 euro.", "Please send a photo; you get a new pair.",
    "Yes, to Austria, Germany and Switzerland.", "Free within thirty days, with the label from My orders.",
    "From nine to six, Monday to Saturday.", "From 36 to 48, in most models.", "Yes, for your second order.",
    "Lumi, the assistant of the shoe shop Lumo.",
)  # fmt: skip
GREETINGS = ("", "Hi! ", "Hello, ", "Good day. ", "Please: ", "A question: ")
ROWS = [(f"{greeting}{asks}", says) for greeting in GREETINGS for asks, says in zip(QUESTIONS, ANSWERS, strict=True)]

Typed = Callable[..., str]


@pytest.fixture
def program() -> list[str]:
    """`ft` as it is typed here."""
    return shlex.split(os.environ.get("FT_PEOPLE", f"{sys.executable} -m finetooth"))


@pytest.fixture
def rows() -> list[tuple[str, str]]:
    """Sixty questions to a shop, with its answers."""
    return ROWS


@pytest.fixture
def typed(program: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Types a command in a folder of its own, and answers to what it asks; returns all that the terminal showed."""
    pexpect = pytest.importorskip("pexpect", reason="typing takes the package pexpect")
    monkeypatch.chdir(tmp_path)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FT_PLUGINS")}
    own = {**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "xterm", "NO_COLOR": "1"}

    def run(command: str, answers: Sequence[tuple[str, str]] = (), code: int = 0) -> str:
        words = [*program[1:], *shlex.split(command)]
        terminal: Any = pexpect.spawn(
            program[0], words, env=own, encoding="utf-8", timeout=300, dimensions=(40, 100), cwd=str(tmp_path)
        )
        shown = ""
        for question, answer in answers:
            terminal.expect(question)
            shown += terminal.before + terminal.after
            terminal.sendline(answer)
        terminal.expect(pexpect.EOF)
        shown += terminal.before
        terminal.close()
        assert terminal.exitstatus == code, f"ft {command} ended with {terminal.exitstatus}:\n{shown}"
        return shown

    return run
