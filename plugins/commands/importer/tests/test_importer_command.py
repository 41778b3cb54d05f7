"""`ft import` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: rows.jsonl
    type: alpaca
adapter: lora
sequence_len: 2048
micro_batch_size: 2
gradient_accumulation_steps: 4
lora_alhpa: 3
"""


def ft(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetooth", "import", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("finetooth_core")
    (tmp_path / "a.yml").write_text(AXOLOTL)
    wrong = ft("a.yml", "--from", "trl", folder=tmp_path)
    assert wrong.returncode == 2 and "looks like a configuration of axolotl" in wrong.stderr
    done = ft("a.yml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Not taken:" in done.stdout and "lora_alhpa" in done.stdout and "recipe.yaml" in done.stdout
    again = ft("a.yml", folder=tmp_path)
    assert again.returncode == 2 and "recipe.yaml exists" in again.stderr
    found = json.loads(ft("a.yml", "--json", folder=tmp_path).stdout)
    assert found["tool"] == "axolotl" and found["recipe"]["train"]["batch_size"] == 8
