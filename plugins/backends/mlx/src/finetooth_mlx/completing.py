"""Adds to a model what its config asks for and mlx-lm's class does not compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gemma2
from mlx_lm.models.base import create_causal_mask

from finetooth_mlx.configs import WINDOWED
from finetooth_mlx.network import around
from finetooth_mlx.packing import Segments


def completed(model: Any, config: Mapping[str, Any]) -> Any:
    """The model, so that it computes the same as transformers does for this config."""
    kind = config["model_type"]
    if kind == "gemma":
        for layer in model.layers:
            layer.mlp.__class__ = gemma2.MLP  # GELU by tanh
    if kind == "glm":
        rope = config["rope_parameters"]
        turned = int(config["head_dim"] * rope.get("partial_rotary_factor", 1.0))
        for layer in model.layers:
            layer.self_attn.rope = nn.RoPE(turned, traditional=True, base=rope["rope_theta"])
    if kind == "gemma3_text":  # it scales embeddings by a factor in bf16, in any precision of the model
        root = config["hidden_size"] ** 0.5
        around(model.model, _embedding_by(root / float(mx.array(root, mx.bfloat16))))
    scaling = config.get("rope_parameters") or {}
    if kind == "gpt_oss" and scaling.get("rope_type") == "yarn" and not scaling.get("truncate", True):
        for layer in model.layers:
            layer.self_attn.rope._freqs = untruncated(config["head_dim"], scaling)
    for layer, window in zip(model.layers, added_windows(config), strict=False):
        if window:
            around(layer, _seeing(window))
    return model


def added_windows(config: Mapping[str, Any]) -> list[int]:
    """How many positions each layer attends to, 0 for all, for classes of mlx-lm that attend to all."""
    window = config.get("sliding_window")
    if not window or config["model_type"] not in WINDOWED:
        return []
    kinds = config.get("layer_types") or ["sliding_attention"] * config["num_hidden_layers"]
    return [window * (kind == "sliding_attention") for kind in kinds]


def untruncated(width: int, yarn: Mapping[str, Any]) -> mx.array:
    """(width / 2,) positions per radian, blended by YaRN's ramp between the model's and those times the factor (Peng et
    al., 2023, arXiv:2309.00071, section 3.2). The ramp's ends are not rounded to whole dimensions."""
    base, length = yarn["rope_theta"], yarn["original_max_position_embeddings"]
    ends = [
        width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (yarn.get("beta_fast") or 32, yarn.get("beta_slow") or 1)
    ]
    low, high = max(ends[0], 0), min(ends[1], width - 1)
    plain = base ** (mx.arange(0, width, 2, dtype=mx.float32) / width)
    ramp = mx.clip((mx.arange(width // 2, dtype=mx.float32) - low) / max(high - low, 0.001), 0, 1)
    turned: mx.array = 1 / ((1 - ramp) / plain + ramp / (yarn["factor"] * plain))
    return turned


def _embedding_by(ratio: float) -> Callable[..., mx.array]:
    def run(
        body: Any, call: Callable[..., mx.array], tokens: mx.array, cache: Any = None, embedded: Any = None
    ) -> mx.array:
        embedded = body.embed_tokens(tokens) if embedded is None else embedded
        return call(tokens, cache, embedded * ratio if embedded.dtype == mx.float32 else embedded)

    return run


def _seeing(window: int) -> Callable[..., mx.array]:
    def run(
        layer: Any, call: Callable[..., mx.array], hidden: mx.array, mask: Any = None, cache: Any = None
    ) -> mx.array:
        del layer, mask
        if isinstance(cache, Segments):
            return call(hidden, cache.make_mask(hidden.shape[1], window_size=window), cache)
        offset = 0 if cache is None else cache.offset
        return call(hidden, create_causal_mask(hidden.shape[1], offset, window_size=window), cache)

    return run


def with_stacked_experts(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """gpt-oss's experts (E, inputs, outputs) as plain numbers, in the layout that its class expects of quantised
    ones."""
    ends = ("experts.gate_up_proj", "experts.down_proj")
    return {
        f"{n}.weight" if n.endswith(ends) else n: a.swapaxes(1, 2) if n.endswith(ends) else a
        for n, a in weights.items()
    }
