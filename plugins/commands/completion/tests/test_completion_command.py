"""The script is the one that click makes for `ft`; bash itself runs it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.testing import CliRunner
from finetooth_completion.command import command


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_completes_ft(shell: str) -> None:
    done = CliRunner().invoke(command, [shell])
    assert done.exit_code == 0
    assert "_FT_COMPLETE" in done.output and "ft" in done.output


ASKED = """
compopt() { :; }
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
