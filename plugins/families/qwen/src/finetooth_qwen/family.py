"""Facts of Qwen models: Qwen2, Qwen2.5 and Qwen3, Qwen3-Next and the text of Qwen3.5; dense and mixtures of experts.

Qwen3-Next and Qwen3.5 are hybrids: every fourth layer has full attention, the others a linear attention (gated delta
net). Adapters go onto full attention and feed-forward layers; the projections of linear attention are left alone, since
inference engines merge them and cannot serve an adapter on them. The experts of a mixture are fused parameters, no
linear modules: adapters reach only an expert that all tokens share, and that one not in Qwen3-Next, where peft takes
its names (`gate_proj`) for those of the fused experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Pick
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import ATTENTION, HEAD_NORMS, MLP, llama_facts

from finetooth_qwen.layers import layers_of

DENSE = ("qwen2", "qwen3")
TAGGED = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
"""Qwen3.5 and 3.6, which speak alike."""
THINKING_POSITIONS = 40960
"""Positions of Qwen3 as first released, thinking and not in one model; of base models there are fewer. The variants of
July 2025 have more, and whether they think only their template tells."""

NEXT_LINEAR = ("in_proj_qkvz", "in_proj_ba", "out_proj")
QWEN35_LINEAR = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
SHARED_GATE = "shared_expert_gate"
UNTARGETED: Mapping[str, tuple[str, ...]] = {
    "qwen3_next": (*NEXT_LINEAR, *MLP, SHARED_GATE),
    "qwen3_5_text": QWEN35_LINEAR,
    "qwen3_5_moe_text": (*QWEN35_LINEAR, SHARED_GATE),
}


class Qwen:
    """The family `qwen`.

    Args:
        context: builds the family `auto`, of models that also see.
    """

    def __init__(self, context: Context | None = None) -> None:
        self._context = context

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config. One that also sees, as Qwen3.5 is published, has its
        layers elsewhere: family `auto` finds them and the towers."""
        own = config.get("text_config")
        text = {"tie_word_embeddings": config.get("tie_word_embeddings"), **own} if isinstance(own, Mapping) else config
        kind = str(text.get("model_type") or config.get("model_type", "qwen2"))
        # mixtures without a dense layer state no size of one
        width = text.get("intermediate_size") or text.get("moe_intermediate_size")
        facts = llama_facts(
            {**text, "intermediate_size": width},
            renderer=_renderer(kind, text),
            max_positions=32768,
            block=HEAD_NORMS if kind == "qwen3" else {},
        )
        if kind in DENSE:
            return facts
        if str((config.get("architectures") or [""])[0]).endswith("ForConditionalGeneration"):
            assert self._context is not None
            whole = self._context.build("family", "auto").facts(config)
            facts = replace(
                facts, layer_path=whole.layer_path, body=whole.body, head=whole.head, towers=whole.towers,
                tower_parameters=whole.tower_parameters,
            )  # fmt: skip
        layers = layers_of(facts, kind, text)
        return replace(
            facts,
            block=None,
            linear_targets=_targets(kind, text),
            untargeted=UNTARGETED.get(kind, ()),
            per_layer=layers,
        )


def _targets(kind: str, text: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the linear modules that carry adapters."""
    if kind == "qwen3_next" or (kind == "qwen3_moe" and not _dense_layers(text)):
        return ATTENTION
    return ATTENTION + MLP


def _dense_layers(text: Mapping[str, Any]) -> bool:
    """Some layers of a mixture have a plain feed-forward."""
    return bool(text.get("mlp_only_layers")) or int(text.get("decoder_sparse_step") or 1) > 1


def _renderer(kind: str, text: Mapping[str, Any]) -> Pick:
    """The markup, as far as a config tells."""
    if kind == "qwen2":
        return "qwen"
    if kind in ("qwen3", "qwen3_moe") and int(text.get("max_position_embeddings") or 0) <= THINKING_POSITIONS:
        return "qwen3"
    return "qwen3_5" if kind in TAGGED else "jinja"
