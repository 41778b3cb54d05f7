"""Weights that a recipe keeps from its quantizer: whether there are such, and how many are stored then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import BasePart


def without_skipped(base: BasePart) -> BasePart:
    """The same base, its experts counted without those that stay as they are. Without `quantization.skip`, or where
    files would have to be fetched first, as it was given.

    Raises:
        RecipeError: `quantization.skip` names what the model does not have.
    """
    return _counted(base) if base.model.files else base


def loaded(base: BasePart, load: Callable[[], Any]) -> Any:
    """Load a base of which `without_skipped` could not say everything.

    Raises:
        RecipeError: see there.
    """
    quantizer = base.quantizer
    if quantizer is None or not quantizer.skip:
        return load()
    if not base.model.files:  # now they are fetched anyway
        _counted(base)
    model = load()
    from finetooth_torchshared.quantised import check_skip

    check_skip(model, quantizer)
    return model


def _counted(base: BasePart) -> BasePart:
    quantizer = base.quantizer
    if quantizer is None or not quantizer.skip or "tensors" not in base.loader.capabilities:
        return base
    tensors = base.loader.tensors(base.model.reference, framework="torch", precision="fp32")
    if tensors is None:
        return base
    from finetooth_torchshared.quantised import check_skip, storable

    check_skip(tensors.model, quantizer)
    if not base.model.expert_weights:
        return base
    experts = sum(
        rows * columns
        for path, (rows, columns) in storable(tensors.model).items()
        if ".experts." in path and quantizer.takes(path, (rows, columns))
    )
    return replace(base, model=replace(base.model, expert_weights=experts))
