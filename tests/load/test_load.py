"""A short form of `make load`: 16 clients in 4 tenants, the server killed once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("finetooth_server")


@pytest.mark.slow
def test_nothing_is_lost_doubled_or_shared(tmp_path: Path) -> None:
    output = tmp_path / "service.json"
    command = [sys.executable, str(Path(__file__).parent / "run.py"), "--clients", "16", "--seconds", "20"]
    done = subprocess.run([*command, "--kills", "1", "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(output.read_text())
    assert found["kills"] == 1 and found["futures"]["calls"] > 50 and found["across_tenants"]["tried"] > 10
    assert {"forward_backward", "step", "generate", "sample", "stream"} <= found["milliseconds"].keys()
