"""Bounds on the numbers of a config, which are looked at before a model is built by them: building a billion layers
without memory still takes days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_hooks import RecipeError

MOST: Mapping[str, int] = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 4096
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 65_536),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 65_536),
    **dict.fromkeys(("hidden_size", "intermediate_size", "n_embd", "d_model", "head_dim"), 1 << 22),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 1 << 30),
}
"""The largest that each may be; the largest that is known of any model is a tenth of it."""

POSITIVE = ("rope_theta", "max_position_embeddings", "vocab_size", "hidden_size", "num_attention_heads")
"""Sizes that cannot be 0 in a model."""

DEEPEST = 64
"""Sections within each other."""


def check_config(config: Mapping[str, Any], reference: str) -> None:
    """See that a model of these sizes can be.

    Raises:
        RecipeError: a number is out of bounds; names it.
    """
    for name, value in _numbers(config, reference, 0):
        most = MOST.get(name)
        too_many, too_few = most is not None and value > most, name in POSITIVE and not value > 0
        if too_many or too_few or (most is not None and value < 0):
            bounds = f"at most {most:,}" if too_many else "more than 0" if too_few else "0 or more"
            raise RecipeError(
                "model", f"{reference}: its config.json has {name}: {value:,}, which must be {bounds}",
                action="fetch the model again, or fix its config.json",
            )  # fmt: skip


def check_sizes(config: Mapping[str, Any], reference: str) -> None:
    """See that a config.json says how large the model is: transformers would fill in the sizes of another one. A model
    with code of its own may have them there.

    Raises:
        RecipeError: it names no size.
    """
    if "auto_map" not in config and not any(
        isinstance(value, int) and not name.endswith("_id") for name, value in _numbers(config, reference, 0)
    ):
        raise RecipeError(
            "model", f"{reference}: its config.json lacks the model's sizes (hidden_size, num_hidden_layers, ...)",
            action="fetch the model again, or complete its config.json",
        )  # fmt: skip


def _numbers(section: Mapping[str, Any], reference: str, depth: int) -> Iterator[tuple[str, float]]:
    if depth > DEEPEST:
        raise RecipeError("model", f"{reference}: its config.json is nested too deep", action="fetch the model again")
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, reference, depth + 1)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
