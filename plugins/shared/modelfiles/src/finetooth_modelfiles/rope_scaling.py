"""Positions beyond those that a model was made for: its rotary embeddings turned more slowly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from finetooth_hooks import Options, RecipeError
from pydantic import Field

SETTING = "model.loader.rope_scaling"


class RopeScaling(Options):
    """How rotary embeddings are scaled."""

    rope_type: Literal["linear", "ntk", "dynamic", "yarn", "llama3"]
    """`yarn` (arXiv:2309.00071) keeps fast frequencies and slows the others down; the usual choice. `linear`
    (arXiv:2306.15595) slows all down equally. `ntk` raises the base. `dynamic` raises it with the length of each row,
    and leaves rows within the original positions as they are; it trains longer rows, and samples none. `llama3` is that
    of Llama 3.1."""
    factor: float = Field(gt=1)
    """By how much the number of positions grows."""
    attention_factor: float | None = Field(default=None, gt=0)
    """For `yarn`: factor of queries and keys; null is the paper's 1 + 0.1 ln(factor)."""
    beta_fast: float | None = Field(default=None, gt=0)
    """For `yarn`: frequencies with at least this many rotations within the original positions stay as they are; null is
    32."""
    beta_slow: float | None = Field(default=None, gt=0)
    """For `yarn`: frequencies with at most this many rotations are slowed down by the whole factor; null is 1."""
    low_freq_factor: float | None = Field(default=None, gt=0)
    """For `llama3`: original positions divided by the longest wavelength between the two; null is 1."""
    high_freq_factor: float | None = Field(default=None, gt=0)
    """For `llama3`: original positions divided by the shortest wavelength between the two; null is 4."""

    def digest(self) -> str:
        """SHA-256 of the settings, since an adapter does not fit a base with other positions."""
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()


OWN: Mapping[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
"""Options of one type alone."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scale_positions(config: Any, scaling: RopeScaling, reference: str) -> None:
    """Write the scaling into transformers' config of a model, so that whatever is built or written by it has it.

    The base of `ntk` is theta x factor^(d / (d - 2)) for d rotated dimensions of a head. That of `dynamic` is theta x
    (factor x length / original - factor + 1)^(d / (d - 2)) for a row of more than the original positions, of which
    transformers' config keeps the number.

    Raises:
        RecipeError: an option of another type, or a model that has no rotary embeddings of one plain kind.
    """
    text = config.get_text_config()
    for kind, names in OWN.items():
        stray = [name for name in names if getattr(scaling, name) is not None]
        if stray and kind != scaling.rope_type:
            raise RecipeError(
                f"{SETTING}.{stray[0]}", f"it is an option of {kind}, not of {scaling.rope_type}", action="leave it out"
            )
    present = getattr(text, "rope_parameters", None)
    if not present or any(isinstance(value, Mapping) for value in present.values()):
        why = "other rotary embeddings in different layers" if present else "no rotary embeddings"
        raise RecipeError(SETTING, f"{reference} has {why}", action="leave it out")
    if (kind := present.get("rope_type", "default")) != "default":
        raise RecipeError(
            SETTING, f"the positions of {reference} are scaled already ({kind})",
            action="leave it out, or change rope_parameters in the model's own config.json",
        )  # fmt: skip
    original = int(text.max_position_embeddings)
    text.rope_parameters = {**present, **_parameters(text, scaling, original, float(present["rope_theta"]))}
    if scaling.rope_type != "dynamic":
        text.max_position_embeddings = int(original * scaling.factor)


def _parameters(text: Any, scaling: RopeScaling, original: int, theta: float) -> dict[str, Any]:
    if scaling.rope_type == "ntk":
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        rotated = int(head * (text.rope_parameters.get("partial_rotary_factor") or 1.0))
        return {"rope_theta": theta * scaling.factor ** (rotated / (rotated - 2))}
    named = {name: getattr(scaling, name) for name in OWN.get(scaling.rope_type, ())}
    chosen = {name: value for name, value in named.items() if value is not None}
    if scaling.rope_type == "llama3":
        chosen = {**LLAMA3, **chosen}
    length = {} if scaling.rope_type in ("linear", "dynamic") else {"original_max_position_embeddings": original}
    return {"rope_type": scaling.rope_type, "factor": scaling.factor, **chosen, **length}
