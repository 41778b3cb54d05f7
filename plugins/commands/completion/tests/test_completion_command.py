"""The script is the one that click makes for `ft`."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from finetooth_completion.command import command


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_completes_ft(shell: str) -> None:
    done = CliRunner().invoke(command, [shell])
    assert done.exit_code == 0
    assert "_FT_COMPLETE" in done.output and "ft" in done.output
