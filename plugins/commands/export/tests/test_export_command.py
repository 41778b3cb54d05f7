"""`ft export` refuses what it cannot write, before it reads anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_core.cli import main


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "none"), "--to", "safetensors"]) == 2
    assert "no run has this name (" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["name=gguf", "a.b=1"])
def test_what_is_no_option_is_named(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--to", "safetensors", option]) == 2
    assert f"{option!r} is not an option of an entry (write key=value)" in capsys.readouterr().err
