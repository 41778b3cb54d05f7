"""The folder for layers on the disk goes with its process, however that ends; one in use stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from finetooth_torch.roles.folder_on_disk import folder_for

OWNED = """
import sys
from finetooth_torch.roles.folder_on_disk import folder_for

class Model:
    pass

owner = Model()
print(folder_for(owner), flush=True)
sys.stdin.read()
"""


class Model:
    pass


@pytest.mark.skipif(os.name != "posix", reason="folders are held by locks of the system")
def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OWNED], env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    killed, lives = (Path(process.stdout.readline().strip()) for process in started if process.stdout)
    (killed / "layers.bin").write_bytes(b"x")
    started[0].kill()
    started[0].wait()
    assert killed.exists() and lives.exists() and killed != lives
    owner = Model()
    own = folder_for(owner)
    assert sorted(tmp_path.iterdir()) == sorted([lives, own])
    del owner
    started[1].communicate("")
    assert not list(tmp_path.iterdir())
