"""Families of models: the first loss and the first gradient of each are torch's, or one line refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
pytest.importorskip("finetooth_torch", reason="torch is not installed")

import finetooth
import mlx.core as mx
import torch
import transformers
from finetooth_hooks import Datum
from finetooth_kit import FakeContext
from finetooth_kit.families import EXPERTS, SIZES
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_mlx.adapters import LoraAdapter, LoraOptions
from finetooth_mlx.loader import MlxOptions, build
from mlx_lm.models.cache import make_prompt_cache
from safetensors.numpy import load_file, save_file

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {"hidden_size": 32},
    "glm4_moe": {**EXPERTS, "head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "phi3": {"sliding_window": 8},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
                "hidden_size": 32, "intermediate_size": 32},
}  # fmt: skip


def check_cache(folder: Path) -> None:
    """Token by token with a cache, and past the end of a window, logits are those of the whole row."""
    model = build(MlxOptions(), FakeContext(folder)).load(str(folder), framework="mlx", precision="fp32", device="cpu")
    tokens = mx.array([[*range(20, 42)]])
    whole, cache = np.array(model(tokens)), make_prompt_cache(model)
    parts = [np.array(model(tokens[:, at:end], cache)) for at, end in ((0, 12), *((i, i + 1) for i in range(12, 22)))]
    assert np.abs(np.concatenate(parts, axis=1) - whole).max() < 1e-4 * np.abs(whole).max()


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in ("phi3", "gpt_oss") else pytest.mark.slow) for kind in FAMILIES]
)
def test_the_first_gradient_is_torchs(tmp_path: Path, write: Callable[..., Path], kind: str) -> None:
    """One step of plain descent at rate 1: what moved is the gradient."""
    folder = tmp_path / "m"
    folder.mkdir()
    write(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **FAMILIES[kind]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **sizes)
        model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    model.save_pretrained(folder)
    rows = [{"prompt": f"{i}+1?", "completion": f"it is {i + 1}"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    results = {}
    for backend in ("torch", "mlx"):
        output = tmp_path / backend
        finetooth.run({
            "model": str(folder), "data": {"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml"},
            "method": "sft", "backend": backend, "adapter": {"name": "lora", "rank": 4},
            "optimizer": {"name": "sgd", "learning_rate": 1.0}, "schedule": "constant",
            "train": {"max_steps": 1, "batch_size": 8, "max_length": 60, "precision": "fp32", "max_grad_norm": 0.0},
            "trackers": ["jsonl"], "evaluate": {"evaluators": []}, "output": str(output),
        })  # fmt: skip
        lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        loss = next(line["loss"] for line in lines if line.get("grad_norm") is not None)
        results[backend] = loss, load_file(output / "artifact" / "adapter_model.safetensors")
    check_cache(folder)
    (wanted_loss, wanted), (loss, mine) = results["torch"], results["mlx"]
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert mine.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if "lora_B" in name:
            assert np.abs(tensor).max() > 0
            assert np.abs(mine[name] - tensor).max() < 1e-5 * np.abs(tensor).max() + 1e-7, name


def test_gpt_oss_trains_as_it_is_published(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    """Experts in mxfp4: the logits are transformers' over the numbers that blocks and scales stand for (OCP
    Microscaling Formats v1.0, section 5), and a LoRA's gradient is that over a folder of those numbers."""
    for name in ("plain", "published"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    sizes = {**SIZES, **FAMILIES["gpt_oss"], "vocab_size": 261}
    config = transformers.AutoConfig.for_model("gpt_oss", **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float()
    random, published = np.random.default_rng(3), {}
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = parameter.shape
            blocks = random.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
            scales = random.integers(121, 125, (experts, outputs, inputs // 32), dtype=np.uint8)
            nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:3], 32)
            signed = np.where(nibbles & 8, -1.0, 1.0) * levels[nibbles & 7]
            numbers = (signed * 2.0 ** (scales[..., None].astype(float) - 127)).reshape(experts, outputs, inputs)
            parameter.data = torch.from_numpy(numbers).float().transpose(1, 2).contiguous()
            published |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            published[name] = parameter.detach().numpy()
    model.save_pretrained(tmp_path / "plain")
    save_file(published, tmp_path / "published" / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((tmp_path / "plain" / "config.json").read_text(encoding="utf-8"))
    written["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "published" / "config.json").write_text(json.dumps(written), encoding="utf-8")
    info = build(MlxOptions(), FakeContext(tmp_path)).describe(str(tmp_path / "published"))
    assert info.parameters == sum(of.numel() for of in model.parameters()) and "mxfp4" in info.stored.name
    ids = np.arange(3, 20)
    with torch.no_grad():
        wanted = (
            model(torch.from_numpy(ids)[None])
            .logits.log_softmax(-1)[0, :-1]
            .gather(-1, torch.from_numpy(ids[1:, None]))
        )
    moved = {}
    for name in ("plain", "published"):
        engine = engine_of(tmp_path / name, family="gptoss", adapter=LoraAdapter(LoraOptions(rank=4)))
        (scored,) = engine.logprobs([Datum.from_tokens(ids.tolist())])
        np.testing.assert_allclose(scored, wanted[:, 0].numpy(), atol=1e-4)
        before = {key: np.array(array) for key, array in engine.weights().items()}
        engine.forward_backward([Datum.from_tokens(ids.tolist())], WEIGHTED_NLL)
        engine.step()
        moved[name] = {key: np.array(array) - before[key] for key, array in engine.weights().items()}
    for key, gradient in moved["plain"].items():
        np.testing.assert_allclose(moved["published"][key], gradient, atol=1e-5 * max(np.abs(gradient).max(), 1e-3))
