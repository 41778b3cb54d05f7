"""A tiny model folder without any framework, and MLX engines over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed")
pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import tokenizers
import transformers
from finetooth_hooks import MemoryEstimate, Plan
from finetooth_hooks.plan import TrainSettings
from finetooth_hooks.protocols import (
    BasePart,
    Device,
    EngineRequest,
    HardwareFacts,
    PlacePart,
    TextPart,
    TrainsPart,
    UpdatesPart,
)
from finetooth_kit import FakeContext
from finetooth_mlx.adapters import FullAdapter, LoraAdapter, LoraOptions
from finetooth_mlx.backend import MlxBackend, MlxBackendOptions
from finetooth_mlx.loader import MlxOptions, build
from finetooth_mlx.optimizers import SgdOptions, build_sgd
from safetensors.numpy import save_file

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
TRAIN = TrainSettings(
    epochs=1, max_steps=None, batch_size=4, max_length=64, excess_length="drop", seed=3, shuffle=False,
    precision="fp32", micro_batch_tokens=24, gradient_checkpointing=False, max_grad_norm=0.0,
)  # fmt: skip
CPU = HardwareFacts("finetooth-mlx:mlxcpu", (Device("cpu", "2 CPU cores", 8 * 2**30),), ("fp32",), ("bf16", "fp16"))


def write_model(
    folder: Path, kind: str = "llama", *, tied: bool = False, seed: int = 5, width: int = 16, **changes: Any
) -> Path:  # fmt: skip
    """A tiny model of a kind in transformers' layout: config, tokenizer over bytes, random weights."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {letter: i for i, letter in enumerate([*alphabet, "th"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(words, [("t", "h")]))  # GGUF files need a merge
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.save_pretrained(folder)
    ffn, layers, heads, kv, head = width * 3 // 2, 2, 4, 2, changes.get("head_dim", 4 if kind == "qwen2" else 8)
    config = {
        "model_type": kind, "architectures": [f"{kind.capitalize()}ForCausalLM"], "vocab_size": len(tokenizer),
        "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": head, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied, "eos_token_id": tokenizer.eos_token_id, "rope_theta": 50000.0, **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens": (config["vocab_size"], width), "model.norm": (width,)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.input_layernorm": (width,), f"{at}.post_attention_layernorm": (width,)}
        shapes |= {f"{at}.self_attn.{n}_proj": (size, width) for n, size in (("q", heads * head), ("k", kv * head))}
        shapes |= {f"{at}.self_attn.v_proj": (kv * head, width), f"{at}.self_attn.o_proj": (width, heads * head)}
        shapes |= {f"{at}.mlp.{n}_proj": (ffn, width) for n in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": (width, ffn)}
        if kind == "qwen3":
            shapes |= {f"{at}.self_attn.{n}_norm": (head,) for n in ("q", "k")}
    if not tied:
        shapes["lm_head"] = (config["vocab_size"], width)
    tensors = {
        f"{name}.weight": random.normal(size=shape, scale=0.2).astype(np.float32) + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    if kind == "qwen2":
        for i in range(layers):
            for n, size in (("q", heads * head), ("k", kv * head), ("v", kv * head)):
                bias = random.normal(size=size, scale=0.1).astype(np.float32)
                tensors[f"model.layers.{i}.self_attn.{n}_proj.bias"] = bias
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_quantised(folder: Path, plain: Path, bits: int, mode: str = "affine") -> Path:
    """The same model as `mlx_lm.convert -q` writes it."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = quantize_model(*load_model(plain), 32, bits, mode=mode)
    for file in plain.glob("token*.json"):
        shutil.copyfile(file, folder / file.name)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


@dataclass
class Constant:
    """A schedule that stays."""

    def factor(self, step: int, total: int | None) -> float:
        return 1.0

    def observe(self, metrics: Mapping[str, float]) -> None: ...

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


def make_engine(
    folder: Path, *, adapter: Any = None, optimizer: Any = None, head: Any = None, roles: Any = None,
    options: Any = None, quantizer: Any = None, family: str = "", **train: Any,
) -> Any:  # fmt: skip
    """An engine over the model in a folder: fp32, no clipping, plain gradient descent."""
    context = FakeContext(folder, installed=True)
    loader = build(MlxOptions(), context)
    info = loader.describe(str(folder))
    family = family or ("qwen" if "qwen" in info.model_type else "llama")
    facts = context.build("family", family).facts(info.config)
    adapter = adapter or LoraAdapter(LoraOptions(rank=4, targets="all-linear"))
    decided = replace(TRAIN, **train)
    low = not isinstance(adapter, FullAdapter)
    request = EngineRequest(
        plan=Plan({}, {}, {}, decided, (), MemoryEstimate({}), total_steps=10),
        base=BasePart(info, facts, loader, quantizer),
        trains=TrainsPart(
            adapter,
            1000,
            can_disable=low,
            base_frozen=low,
            generator=np.random.default_rng([decided.seed, 5]),
            head=head,
            head_generator=np.random.default_rng([decided.seed, 6]),
        ),
        updates=UpdatesPart(optimizer or build_sgd(SgdOptions(learning_rate=0.1), context), Constant()),
        text=TextPart(loader.tokenizer(str(folder)), (2,)),
        place=PlacePart(CPU, None, decided.seed),
        roles=roles or {},
    )
    return MlxBackend(MlxBackendOptions(**(options or {}))).engine(request)


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """`write(folder, kind, ...)` writes a tiny model there."""
    return write_model


@pytest.fixture(scope="session")
def quantised() -> Callable[..., Path]:
    """`quantised(folder, plain, bits, mode)` stores a model in fewer bits, as mlx-lm does."""
    return write_quantised


@pytest.fixture(scope="session")
def engine_of() -> Callable[..., Any]:
    """`engine_of(folder, ...)` builds an engine."""
    return make_engine
