"""Weights that a recipe does not quantise: whether they exist, and how many are quantised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import BasePart


def without_skipped(base: BasePart) -> BasePart:
    """The base, with its experts counted without the skipped ones. Unchanged without `quantization.skip`, or if files
    would have to be downloaded first.

    Raises:
        RecipeError: `quantization.skip` names what the model does not have.
    """
    return _counted(base) if base.model.files else base


def loaded(base: BasePart, load: Callable[[], Any]) -> Any:
    """Load a base that `without_skipped` could not fully count.

    Raises:
        RecipeError: see there.
    """
    quantizer = base.quantizer
    if quantizer is None or not quantizer.skip:
        return load()
    if not base.model.files:  # files are downloaded now anyway
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
