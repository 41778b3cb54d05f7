"""Sizes of modules that carry an adapter: those of the model where its layers are not built like Llama's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from finetooth_hooks import RecipeError
from finetooth_hooks.protocols import Head, ModelFacts
from finetooth_modelfiles.sizes import shapes
from finetooth_modelfiles.targets import resolve

USUAL = ModelFacts(
    hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn_size=20, vocab_size=17, max_positions=64,
    layer_path="trunk.blocks", body="trunk", head=Head("out"), attention_targets=("q_proj",),
    linear_targets=("q_proj", "up_proj"), renderer="plain",
)  # fmt: skip
MODEL = {
    "trunk.words": (17, 8), "trunk.blocks.0.attn.wqkv": (8, 16), "trunk.blocks.0.attn.q_proj": (8, 8),
    "trunk.experts.0.w13": (8, 40), "out": (8, 17),
}  # fmt: skip


def facts(*linear: str) -> tuple[ModelFacts, list[int]]:
    """And how often the model was looked at."""
    asked: list[int] = []

    def modules() -> Mapping[str, tuple[int, int]]:
        asked.append(1)
        return MODEL

    return replace(USUAL, linear_targets=linear or USUAL.linear_targets, modules=modules), asked


def test_a_target_outside_the_layers_is_one_of_the_model() -> None:
    of, asked = facts()
    sizes = shapes(of, ["w13"])
    assert resolve(["w13"], of, tuple(sizes)).modules == ("trunk.experts.0.w13",)
    assert sizes["trunk.experts.0.w13"] == (8, 40) and asked


def test_layers_of_another_build_have_the_sizes_of_the_model() -> None:
    of, _ = facts("wqkv")
    sizes = shapes(of, "all-linear")
    assert resolve("all-linear", of, tuple(sizes)).modules == ("trunk.blocks.0.attn.wqkv",)
    assert sizes["trunk.blocks.0.attn.wqkv"] == (8, 16)  # fused: no formula of ours knows it


def test_the_model_is_not_built_where_its_layers_are_usual() -> None:
    of, asked = facts()
    assert shapes(of, ["q_proj"]) == shapes(USUAL) == shapes(of, "all-linear") and not asked


def test_a_target_that_nothing_has_names_modules_that_the_model_has() -> None:
    of, _ = facts()
    with pytest.raises(RecipeError, match=r"'w31' matches no linear module of the model; nearest: .*w13") as refused:
        resolve(["w31"], of, tuple(shapes(of, ["w31"])))
    assert "embed_tokens" not in str(refused.value)
