"""Sizes in a config that no model can have: each is named before anything is built by it."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_hooks import RecipeError
from finetooth_modelfiles.config_bounds import DEEPEST, check_config, check_sizes

GOOD: dict[str, Any] = {"num_hidden_layers": 94, "hidden_size": 16_384,
                        "vocab_size": 262_208, "num_attention_heads": 128,
                        "num_experts": 512, "rope_theta": 5e6, "tie_word_embeddings": True}  # fmt: skip


def nested(depth: int) -> dict[str, Any]:
    return {"text_config": nested(depth - 1)} if depth else {}


def test_sizes_of_real_models_pass() -> None:
    check_config({**GOOD, "vision_config": {"num_hidden_layers": 0, "hidden_size": 1280}}, "m")
    check_config(nested(DEEPEST), "m")


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("num_hidden_layers", 10**9, "1,000,000,000, which must be at most 4,096"),
        ("num_hidden_layers", -5, "-5, which must be 0 or more"),
        ("num_key_value_heads", -1, "-1, which must be 0 or more"),
        ("hidden_size", 10**12, "1,000,000,000,000, which must be at most 4,194,304"),
        ("hidden_size", 0, "0, which must be more than 0"),
        ("vocab_size", 10**13, "10,000,000,000,000, which must be at most 1,073,741,824"),
        ("rope_theta", float("nan"), "nan, which must be more than 0"),
        ("n_routed_experts", 10**6, "1,000,000, which must be at most 65,536"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_another_is_named_with_its_bound(name: str, value: float, bound: str, inside: bool) -> None:
    config = {**GOOD, name: value}
    with pytest.raises(RecipeError) as refused:
        check_config({"text_config": config} if inside else config, "some/model")
    assert f"some/model: its config.json has {name}: {bound}" in str(refused.value)


def test_sections_that_are_nested_without_an_end_are_refused() -> None:
    with pytest.raises(RecipeError, match="nested too deep"):
        check_config(nested(DEEPEST + 2), "m")


@pytest.mark.parametrize("config", [{}, {"model_type": "llama", "bos_token_id": 1, "rms_norm_eps": 1e-5}])
def test_a_config_without_sizes_is_no_model(config: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"m: its config.json lacks the model's sizes \(hidden_size, "):
        check_sizes(config, "m")
    check_sizes({**config, "auto_map": {"AutoConfig": "own.Config"}}, "m")
    check_sizes({**config, "text_config": {"num_hidden_layers": 2}}, "m")
