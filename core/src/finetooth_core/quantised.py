"""A base in fewer bits: what the recipe stores it with, and whether the rest of the recipe can live with that."""

from __future__ import annotations

from finetooth_hooks.entries import Adapter
from finetooth_hooks.errors import PlanError
from finetooth_hooks.protocols import Quantizer

from finetooth_core.context import RunContext


def build_quantizer(context: RunContext) -> Quantizer | None:
    """What the recipe says the base is stored with; None if it says nothing."""
    pick = context.recipe.quantization
    if pick is None:
        return None
    built: Quantizer = context.section("quantizer", pick, "quantization")
    return built


def check_quantised(context: RunContext, adapter: Adapter, quantizer: Quantizer | None) -> None:
    """A base in fewer bits must be one that the adapter leaves alone.

    Raises:
        PlanError: it trains or reads the weights, or the file is quantised already.
    """
    stored = context.model.stored
    if quantizer is not None and stored is not None:
        raise PlanError(
            f"quantization: {context.picked['quantizer']}, and model {context.recipe.model.name} is stored as "
            f"{stored.name} already",
            action="remove quantization, or name a model that is not quantised",
        )
    stored = stored if quantizer is None else quantizer.stored
    if stored is None or adapter.accepts_quantised:
        return
    which = (
        f"model: {context.recipe.model.name} is stored as {stored.name}"
        if quantizer is None
        else f"quantization: {context.picked['quantizer']} stores the base as {stored.name}"
    )
    raise PlanError(
        f"{which}, and adapter: {context.picked['adapter']} needs its weights as plain numbers",
        action="pick a low-rank adapter, or " + ("another model" if quantizer is None else "remove quantization"),
    )
