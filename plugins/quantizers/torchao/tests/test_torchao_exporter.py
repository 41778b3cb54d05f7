"""Folders that torchao's exporters write: transformers and torchao load them, and finetooth reads the same numbers."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchao", reason="needs torchao: pip install finetooth[torchao]")

import torch
from finetooth_core.cli import main
from finetooth_torchshared.packed_files import modules_of

sys.path.insert(0, str(Path(__file__).parents[4] / "tests" / "bits"))
from tiny import write_model

FORMS = ("int8", "fp8", "mxfp8", "mxfp4", "nvfp4")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_stranger_loads_the_numbers_that_finetooth_reads(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss is said before and after; the numbers are those of torchao's own `dequantize`, to a
    rounding in bf16."""
    from transformers import AutoModelForCausalLM

    model, target, rows = tmp_path / "model", tmp_path / "small", tmp_path / "rows.jsonl"
    write_model(model)
    rows.write_text('{"prompt": "2 and 3?", "completion": "5"}\n' * 4, encoding="utf-8")
    given = ["quantize", str(model), "--to", f"torchao_{form}", "--data", str(rows), "--output", str(target)]
    assert main([*given, "--bound", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "14 linear modules stored by torchao" in said
    ((before, after),) = re.findall(r"loss: ([\d.]+) before, ([\d.]+) after", said)
    assert 0 < abs(float(before) - float(after)) < 0.2
    load: Any = AutoModelForCausalLM.from_pretrained
    theirs = load(target)
    with torch.no_grad():
        assert torch.isfinite(theirs(input_ids=torch.arange(20, 60)[None]).logits).all()
    weights = {
        path: module.weight.dequantize().float()
        for path, module in theirs.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module.weight.data) is not torch.Tensor
    }
    assert len(weights) == 14
    if form == "int8":  # torchao reads it
        assert list(modules_of(target, weights)) == []
        return
    ours = dict(modules_of(target, weights))
    for path, wanted in weights.items():
        found = ours[path].dequantised(torch.bfloat16).float()
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=0)
