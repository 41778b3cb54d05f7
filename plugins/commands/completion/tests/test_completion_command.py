"""The script is the one that click makes for `ft`; bash itself runs it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner
from finetooth_completion.command import CHANGES, command


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_completes_ft(shell: str) -> None:
    done = CliRunner().invoke(command, [shell])
    assert done.exit_code == 0
    assert "_FT_COMPLETE" in done.output and "ft" in done.output


ASKED = """
compopt() { echo "compopt $*"; }
env() { echo plain,data.; }
ask() { COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=($1) COMP_CWORD=1 COMPREPLY=()
_ft_completion ft; echo "$1: ${COMPREPLY[*]}"; }
complete -p ft
ask "ft run data"
ask "ft run method=d"
ask "ft export --to=d"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_paths_and_no_setting_after_an_equals_sign() -> None:
    script = CliRunner().invoke(command, ["bash"]).output
    done = subprocess.run(["bash", "--norc", "-c", script + ASKED], capture_output=True, text=True, check=True)
    registered, *answers = done.stdout.splitlines()
    assert "-o default" in registered  # bash's own word for file names where the function answers nothing
    assert answers == ["ft run data: data.", "ft run method=d: ", "ft export --to=d: data."]


ZSH = """
compset() { prefix=$2; }; compadd() { print -r -- "compadd $@"; }; _files() { print -r -- "files after $prefix"; }
compdef() { :; }; env() { print -r -- $given; }; ft() { :; }
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(
    ("given", "done"),
    [
        ("", "files after *="),
        (r"plain\ndata.train=\n_", "compadd -S  -U -V unsorted -a completions"),
        (r"plain\nsft\n_", "compadd -U -V unsorted -a completions"),
    ],
)
def test_zsh_completes_paths_where_ft_knows_no_answer(given: str, done: str) -> None:
    script = CliRunner().invoke(command, ["zsh"]).output.replace("$+commands[ft]", "1")
    ask = f"{ZSH}{script}\ngiven=$'{given}'; words=(ft run); CURRENT=2; _ft_completion"
    assert subprocess.run(["zsh", "-fc", ask], capture_output=True, text=True, check=True).stdout == f"{done}\n"


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("ft chat ro", "rows.jsonl\n"),
        ("ft run r.yaml data.train=ro", "data.train=rows.jsonl\n"),
        ("ft run --data=ro", "--data=rows.jsonl\n"),
    ],
)
def test_fish_completes_paths_where_ft_knows_no_answer(tmp_path: Path, line: str, answer: str) -> None:
    (tmp_path / "rows.jsonl").touch()
    script = CliRunner().invoke(command, ["fish"]).output
    ask = f"function env; end; function ft; end; {script}; complete -C '{line}'"
    done = subprocess.run(["fish", "-N", "-c", ask], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == answer


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_change_applies_to_the_script_that_click_makes(shell: str) -> None:
    made = get_completion_class(shell)
    assert made is not None
    assert [before for before, _ in CHANGES[shell] if made.source_template.count(before) == 0] == []
