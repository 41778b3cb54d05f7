"""A base in fewer bits: what the recipe stores it with, and whether the rest of the recipe can live with that."""

from __future__ import annotations

from finetooth_hooks.entries import Adapter
from finetooth_hooks.errors import PlanError

from finetooth_core.context import RunContext
from finetooth_core.part_builder import Built


def build_quantizer(context: RunContext) -> Built | None:
    """What the recipe says the base is stored with; None if it says nothing."""
    pick = context.recipe.quantization
    if pick is None:
        return None
    return context.builder.section("quantizer", pick, "quantization", framework=context.framework)


def check_quantised(context: RunContext, adapter: Built, quantizer: Built | None) -> None:
    """A base in fewer bits must be one that the adapter leaves alone.

    Raises:
        PlanError: it trains or reads the weights, or the file is quantised already.
    """
    stored, named = context.model.stored, "" if quantizer is None else quantizer.registered.full_name
    if quantizer is not None and stored is not None:
        raise PlanError(
            f"quantization: {named}, and model {context.recipe.model.name} is stored as {stored.name} already",
            action="remove quantization, or name a model that is not quantised",
        )
    stored = stored if quantizer is None else quantizer.part.stored
    entry = adapter.registered.entry
    if stored is None or (isinstance(entry, Adapter) and entry.accepts_quantised):
        return
    which = (
        f"model: {context.recipe.model.name} is stored as {stored.name}"
        if quantizer is None
        else f"quantization: {named} stores the base as {stored.name}"
    )
    raise PlanError(
        f"{which}, and adapter: {adapter.registered.full_name} needs its weights as plain numbers",
        action="pick a low-rank adapter, or " + ("another model" if quantizer is None else "remove quantization"),
    )
