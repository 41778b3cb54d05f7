"""Facts of Gemma models: the text models and the text half of those that also see and hear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Pick
from finetooth_hooks.protocols import AttentionNeeds, Block, Head, ModelFacts
from finetooth_toolbox.llama_shape import HEAD_NORMS, llama_block, llama_facts, windowed_layers

TOWERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "gemma3": {"vision_config": ("model.vision_tower", "model.multi_modal_projector")},
    "gemma4": {
        "vision_config": ("model.vision_tower", "model.embed_vision"),
        "audio_config": ("model.audio_tower", "model.embed_audio"),
    },
}
"""Names of the towers in models that have more than the text model, by the part of the config that describes them."""

PER_LAYER = ("per_layer_input_gate", "per_layer_projection")
"""Linear modules of the layers of small Gemma 4 models, whose layers take an embedding of their own."""

HIGH_FIRST_LOSS = (0.02, 14.0)
"""Small Gemma 4 models begin at about 12 nats per token."""

RENDERERS: Mapping[str, Pick] = {
    "gemma": {"name": "gemma", "system": False},
    "gemma2": {"name": "gemma", "system": False},
    "gemma3_text": {"name": "gemma", "system": True},
}


class Gemma:
    """The family `gemma`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Text models have a block: norms add 1 to their weights and stand also after attention and feed-forward, and
        layers attend in turns to a window and to everything, from Gemma 3 on turned by different angles. Gemma 4, whose
        layers differ in more, and models that see have none.
        """
        kind = str(config.get("model_type", "gemma2"))
        text = config.get("text_config") if kind in TOWERS else config
        values: Mapping[str, Any] = {"tie_word_embeddings": True, "head_dim": 256, **(text or {})}
        facts = llama_facts(values, renderer=RENDERERS.get(kind, "jinja"), max_positions=8192)
        if "sliding_attention" in (values.get("layer_types") or ()) and not kind.startswith("gemma4"):
            windowed = windowed_layers(facts, values)
            facts = replace(facts, per_layer=tuple(replace(layer, norms=4, wide_norms=True) for layer in windowed))
        cap = values.get("final_logit_softcapping")
        facts = replace(facts, head=Head("lm_head", softcap=None if cap is None else float(cap)))
        facts = replace(facts, block=_block(kind, values))
        if values.get("attn_logit_softcapping"):
            facts = replace(facts, attention=AttentionNeeds(softcap=float(values["attn_logit_softcapping"])))
        if kind in TOWERS:
            towers = tuple(path for part, paths in TOWERS[kind].items() if config.get(part) for path in paths)
            layers = "model.language_model.layers"
            facts = replace(facts, layer_path=layers, body="model", towers=towers)
        if kind == "gemma3":  # those of Gemma 4 are not counted
            size = _tower_parameters(config.get("vision_config") or {}, facts.hidden_size)
            facts = replace(facts, tower_parameters=size)
        if kind.startswith("gemma4") and values.get("hidden_size_per_layer_input"):
            targets = facts.linear_targets + PER_LAYER
            facts = replace(facts, linear_targets=targets, first_loss=HIGH_FIRST_LOSS)
        if values.get("enable_moe_block"):  # experts are not linear modules; their router is one
            facts = replace(facts, untargeted=("proj",))
        return facts


AFTER = {
    "attention_after": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_after": "post_feedforward_layernorm",
}
"""Norms of a layer of Gemma 2 and 3 that Gemma's has not, as a `Block` calls them."""


def _block(kind: str, values: Mapping[str, Any]) -> Block | None:
    """How the layers compute; their embedding scales what it gives by itself."""
    if kind not in RENDERERS or values.get("use_bidirectional_attention"):
        return None
    config = {**values, "hidden_act": values.get("hidden_activation") or "gelu_pytorch_tanh"}
    if kind == "gemma":
        return llama_block(config, norms="rms_plus_one")
    scale = float(values.get("query_pre_attn_scalar") or 256) ** -0.5
    if kind == "gemma2":
        return llama_block(config, windows=True, norms="rms_plus_one", attention_scale=scale, **AFTER)
    kinds = tuple(values.get("layer_types") or ())
    block = llama_block(
        config, windows=True, norms="rms_plus_one", attention_scale=scale, rotations=kinds, **AFTER, **HEAD_NORMS
    )
    return block if kinds else None


def _tower_parameters(vision: Mapping[str, Any], hidden: int) -> int:
    """Parameters of a SigLIP tower, with its pooling head where the config does not leave it out, and of what projects
    its patches."""
    width, inner = int(vision.get("hidden_size", 768)), int(vision.get("intermediate_size", 3072))
    patch, side = int(vision.get("patch_size", 16)), int(vision.get("image_size", 224))
    layer = 4 * (width * width + width) + 2 * width * inner + width + inner + 4 * width
    ends = 3 * patch * patch * width + width + (side // patch) ** 2 * width + 2 * width
    pooled = width + 4 * (width * width + width) + 2 * width + 2 * width * inner + width + inner
    head = pooled if vision.get("vision_use_head", True) else 0
    return int(vision.get("num_hidden_layers", 12)) * layer + ends + head + width * hidden + width
