"""`ft quantize --to awq`: what mlx-lm makes of the folder, and that scaling by what is read helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_gptq.awq import best_scales, clipped, nearest_clipped
from finetooth_gptq.rounding import nearest
from finetooth_hooks import Datum
from finetooth_torchshared.grouped_linear import GroupedLinear

ROWS = [{"prompt": f"{n} and 3?", "completion": str(n + 3)} for n in range(8)]


@pytest.mark.slow
def test_mlx_lm_loads_the_numbers_that_finetooth_reads(
    tiny_model: Path, ft: Callable[..., Any], recipe: Callable[..., Any], tmp_path: Path
) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx

    rows, target = tmp_path / "rows.jsonl", tmp_path / "awq"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    given = ("quantize", tiny_model, "group=32", "--to", "awq", "--data", rows, "--output", target, "--bound", "1")
    code, out, err = ft(*given)
    assert code == 0, out + err
    assert "14 linear modules of 4 bits read back as they were rounded" in " ".join(out.split())
    made = recipe(model=str(target), output=str(tmp_path / "a"), train={"precision": "fp32"})
    ours = finetooth.session(made, data=False).engine.logprobs([Datum.from_tokens(list(range(20, 60)))])[0]
    model, _ = mlx_lm.utils.load_model(target)
    model.set_dtype(mx.float32)
    logits = np.array(model(mx.arange(20, 60)[None])[0].astype(mx.float32))
    theirs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(theirs[np.arange(39), np.arange(21, 60)], ours[:39], atol=5e-3)


def test_scales_lower_the_error_where_some_inputs_are_large() -> None:
    """Against float64: with inputs of which one in sixteen is thirty times the others, half the error or less."""
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(48, 64, generator=draw)
    read = torch.randn(200, 64, generator=draw) * torch.where(torch.arange(64) % 16 == 3, 30.0, 1.0)
    scales = best_scales([weight], read.T @ read, 32)
    plain = GroupedLinear(nearest(weight, 32, 4)).dequantised(torch.float32)
    scaled = GroupedLinear(nearest(weight * scales, 32, 4)).dequantised(torch.float32) / scales

    def error(made: Any) -> float:
        return float((read.double() @ (weight - made).double().T).square().sum())

    assert error(scaled) < 0.5 * error(plain)
    even = best_scales([weight], torch.eye(64) * 7, 32)
    assert torch.equal(even, torch.ones(64))


def test_clipping_lowers_the_error_where_a_group_has_one_large_weight() -> None:
    """Against float64, of the whole product: with a weight in each group that is several times the others and hardly
    read, a fifth less error or better; even weights that are read alike keep nearly all of their range."""
    draw = torch.Generator().manual_seed(4)
    weight = torch.randn(48, 64, generator=draw)
    weight[:, ::32] *= 4
    read = torch.randn(400, 64, generator=draw) * torch.where(torch.arange(64) % 32 == 0, 0.1, 1.0)

    def error(made: torch.Tensor) -> float:
        stored = GroupedLinear(nearest(made, 32, 4)).dequantised(torch.float32)
        return float((read.double() @ (weight - stored).double().T).square().sum())

    cut = clipped(weight, read.T @ read, 32)
    assert error(cut) < 0.8 * error(weight)
    assert bool((cut.abs() <= weight.abs()).all()) and bool((cut.sign() == weight.sign()).all())


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "qkv_proj", "Wqkv", "query_key_value", "q_b_proj", "in_proj_qkv"])
def test_queries_and_keys_are_not_clipped(name: str) -> None:
    """As in the authors' code; all other modules are, which moves codes of the same weight."""
    draw = torch.Generator().manual_seed(4)
    weight = torch.randn(8, 64, generator=draw)
    weight[:, ::32] *= 4
    hessian = torch.diag(torch.where(torch.arange(64) % 32 == 0, 0.01, 1.0))
    plain = nearest(weight, 32, 4)
    for path, same in ((f"model.layers.0.self_attn.{name}", True), ("layers.0.mlp.gate_proj", False),
                       ("layers.0.self_attn.v_proj", False), ("layers.0.self_attn.kv_b_proj", False)):  # fmt: skip
        made = nearest_clipped(path, weight, hessian, 32)
        assert torch.equal(made.codes, plain.codes) == same, path
