"""`make demo` says where `ft` is, however the run ends, to somebody who has no `ft` on the PATH."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ENDS = {  # what stands in place of `ft`; a signal to 0 reaches make, its shell and `ft`, as Ctrl-C does
    "done": "echo done",
    "refused": "echo refused; exit 2",
    "interrupted": "trap 'echo interrupted; exit 130' INT; kill -INT 0",
}


@pytest.mark.parametrize("ending", ENDS)
def test_the_demo_says_where_ft_is(ending: str, tmp_path: Path) -> None:
    ft = tmp_path / "bin/ft"
    ft.parent.mkdir()
    ft.write_text(f"#!/bin/sh\n{ENDS[ending]}\n")
    ft.chmod(0o755)
    done = subprocess.run(
        ["make", "-o", "install", "demo", f"VENV={tmp_path}"],
        cwd=ROOT,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.stdout.index(ending) < done.stdout.index(f"ft is {ft} here"), done.stderr
    assert (done.returncode == 0) == (ending == "done")
