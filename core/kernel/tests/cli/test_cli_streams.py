"""What is printed where the output has no code for a character."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from finetooth_chat import command as chat
from finetooth_core.cli import main
from finetooth_core.cli.state import warn


@dataclass(frozen=True)
class Printed:
    """What a command printed, decoded as the terminal would."""

    code: int
    out: str
    err: str


@pytest.fixture
def printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Printed]:
    """Runs `ft ARGUMENTS` with streams of an encoding."""
    (folder / "\u4f60\U0001f44b.toy").write_text("What?\tThat.\n" * 4, encoding="utf-8")

    def call(encoding: str, *arguments: str) -> Printed:
        raw = io.BytesIO(), io.BytesIO()
        for name, buffer in zip(("stdout", "stderr"), raw, strict=True):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
        code = main(list(arguments))
        return Printed(code, *(buffer.getvalue().decode(encoding) for buffer in raw))

    return call


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "cp932", "ascii"])
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_the_encoding_lacks_is_replaced(printed: Callable[..., Printed], encoding: str, command: str) -> None:
    answer = printed(encoding, command, "recipe.yaml", "data.train=\u4f60\U0001f44b.toy")
    assert answer.code == 0, answer.err
    assert "bug" not in answer.err
    assert "\\U0001f44b.toy" in answer.out
    sign = "-" if encoding == "ascii" else "\u00b7" if encoding != "cp932" else "[-\u30fb\u00b7]"
    assert re.search(f"4 optimizer steps {sign} plan", answer.out)  # a sign of ours has a look-alike


def test_a_name_that_is_no_text_is_printed(ft: Callable[..., Printed]) -> None:
    answer = ft("run", "\udcff.yaml")  # bytes of a file name that are no UTF-8
    assert answer.code == 2
    assert answer.err.startswith("error: ") and "\\udcff.yaml" in answer.err


NASTY = "\x1b[2Jgone\x1b]0;title\x07\r\x9b1mover"


def test_what_a_model_writes_reaches_no_terminal_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    chat._say(NASTY)
    assert capsys.readouterr().out == "\\x1b[2Jgone\\x1b]0;title\\x07\\r\\x9b1mover"


def test_errors_and_notes_that_quote_data_reach_no_terminal_as_escapes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", f"{NASTY}.yaml"]) == 2
    warn(f"row {NASTY}")
    said = capsys.readouterr().err
    assert not set("\x1b\x07\r\x9b") & set(said) and said.count("\\x1b[2Jgone") == 2 and len(said.splitlines()) == 2


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_what_is_said_in_bytes_that_are_no_text_is_refused_before_anything_is_loaded(
    ft: Callable[..., Printed], option: str
) -> None:
    given = {"--prompt": "Hi"} | {option: "caf\udcc3\udca9"}
    answer = ft("chat", "toy", *(word for pair in given.items() for word in pair))
    assert answer.code == 2 and "loading" not in answer.err
    assert answer.err.startswith(f"error: {option}: ") and answer.err.endswith(
        " is not utf-8 text (set PYTHONUTF8=1)\n"
    )
