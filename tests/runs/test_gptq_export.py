"""`ft export --to gptq`: what it writes, unpacked by a reader that knows the layout alone, and by finetooth itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_core.cli import main
from numpy.typing import NDArray
from safetensors.numpy import load_file


def codes_of(words: NDArray[np.int32], bits: int) -> NDArray[np.int64]:
    """(n, m) numbers as (n * 32 / bits, m) codes, the first in the lowest bits."""
    each = 32 // bits
    found = np.zeros((len(words) * each, words.shape[1]), np.int64)
    for place in range(each):
        found[place::each] = (words.view(np.uint32) >> np.uint32(bits * place)) & np.uint32((1 << bits) - 1)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run with held-out rows."""
    folder = tmp_path_factory.mktemp("gptq") / "run"
    rows = {"name": "tasks", "task": "family", "seed": 5}
    finetooth.run(
        {
            "model": str(tiny_model),
            "data": {"train": {**rows, "count": 24}, "eval": {**rows, "count": 8, "seed": 6}, "renderer": "chatml"},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 4},
            "optimizer": {"name": "adamw", "learning_rate": 1e-2},
            "train": {"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": 4},
            "evaluate": {"evaluators": ["loss"]},
            "trackers": [],
            "output": str(folder),
        }
    )
    return folder


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_an_independent_reader_finds_nearly_the_weights(
    run: Path, tmp_path: Path, bits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """q = scale (code - zero): within half a step of 8 bits almost everywhere; and the held-out loss is said."""
    target, plain = tmp_path / "packed", tmp_path / "plain"
    told = [f"bits={bits}", "group=32", "rows=16", "--output", str(target), "--bound", "1"]
    assert main(["export", str(run), "--to", "gptq", *told]) == 0
    assert "of the run" in (said := capsys.readouterr().out) and "read back as they were rounded" in said
    assert main(["export", str(run), "--to", "safetensors", "precision=fp32", "--output", str(plain)]) == 0
    config = json.loads((target / "config.json").read_text())
    stored = json.loads((target / "quantize_config.json").read_text())
    assert config["quantization_config"] == stored and config["dtype"] == "float16"
    assert (stored["bits"], stored["group_size"], stored["sym"], stored["desc_act"]) == (bits, 32, True, False)
    tensors, weights = load_file(target / "model.safetensors"), load_file(plain / "model.safetensors")
    paths = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    assert len(paths) == 14 and not any(f"{path}.weight" in tensors for path in paths)
    for path in paths:
        wanted = weights.pop(f"{path}.weight")
        codes = codes_of(tensors[f"{path}.qweight"], bits).T
        zeros = codes_of(tensors[f"{path}.qzeros"].T, bits).T + 1
        scales, groups = tensors[f"{path}.scales"], tensors[f"{path}.g_idx"]
        assert codes.shape == wanted.shape and scales.dtype == np.float16 and (zeros == 1 << bits - 1).all()
        assert (groups == np.arange(wanted.shape[1]) // 32).all()
        steps = scales.astype(np.float64)[groups].T
        off = np.abs(steps * (codes - zeros[groups].T) - wanted) / steps
        assert np.median(off) < 0.5 and np.percentile(off, 99) < 4
    for name, kept in weights.items():
        np.testing.assert_array_equal(tensors[name], kept.astype(np.float16))


@pytest.mark.slow
def test_another_run_begins_from_it(run: Path, tmp_path: Path, recipe: Callable[..., Any]) -> None:
    target = tmp_path / "packed"
    told = ["bits=8", "group=32", "rows=8", "--output", str(target), "--bound", "1"]
    assert main(["export", str(run), "--to", "gptq", *told]) == 0
    given = recipe(model=str(target), train={"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": 1})
    assert finetooth.run(given).steps == 1


def test_what_cannot_be_packed_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Groups that do not divide a module's inputs; rows that are no text. Nothing is left behind."""
    target = tmp_path / "packed"
    assert main(["export", str(run), "--to", "gptq", "group=128", "--output", str(target)]) == 2
    assert "inputs cannot be packed in groups of 128" in capsys.readouterr().err
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    told = ["group=32", f"calibrate_on={tmp_path / 'pairs.jsonl'}", "--output", str(target)]
    assert main(["export", str(run), "--to", "gptq", *told]) == 2
    assert "set calibrate_on=FILE" in capsys.readouterr().err
    assert not target.exists()
