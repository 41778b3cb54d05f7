"""A quantised base: the recipe's quantizer, and whether the rest of the recipe works with it."""

from __future__ import annotations

from finetooth_hooks.entries import Adapter
from finetooth_hooks.errors import PlanError
from finetooth_hooks.protocols import Stored

from finetooth_core.planning.context import RunContext
from finetooth_core.plugins.part_builder import BuiltPart


def build_quantizer(context: RunContext) -> BuiltPart | None:
    """The recipe's quantizer of the base; None without one."""
    pick = context.recipe.quantization
    if pick is None:
        return None
    return context.builder.section("quantizer", pick, "quantization", framework=context.framework)


def check_quantised(context: RunContext, adapter: BuiltPart, quantizer: BuiltPart | None) -> None:
    """Check that the adapter does not touch a quantised base, and that there is a quantizer if the adapter starts from
    the quantisation error.

    Raises:
        PlanError: the adapter trains or reads the weights, or the file is already quantised; or no quantizer is
            installed.
    """
    stored, entry = context.model.stored, adapter.registered.entry
    assert isinstance(entry, Adapter)
    if quantizer is not None and stored is not None:
        raise PlanError(
            f"quantization: {quantizer.registered.full_name}, and model {context.recipe.model.name} is stored as "
            f"{stored.name} already",
            action="remove quantization, or name a model that is not quantised",
        )
    if quantizer is None and "makes_up" in adapter.part.capabilities:
        raise _nothing_lost(context, adapter, stored)
    if quantizer is not None:
        made: Stored = quantizer.part.stored
        which = f"quantization: {quantizer.registered.full_name} stores the base as {made.name}"
    elif stored is not None:
        which = f"model: {context.recipe.model.name} is stored as {stored.name}"
    else:
        return
    if entry.accepts_quantised:
        return
    raise PlanError(
        f"{which}, and adapter: {adapter.registered.full_name} needs its weights as plain numbers",
        action="pick a low-rank adapter, or " + ("another model" if quantizer is None else "remove quantization"),
    )


def _nothing_lost(context: RunContext, adapter: BuiltPart, stored: Stored | None) -> PlanError:
    name = context.recipe.model.name
    base = "the recipe has none" if stored is None else f"model: {name} is stored as {stored.name} already"
    which = "pick one" if stored is None else "name the model as it was before, with quantization"
    return PlanError(
        f"adapter: {adapter.registered.full_name} as it is set starts from the error of a quantizer, and {base}",
        action=f"{which}, or let the adapter begin another way",
    )
