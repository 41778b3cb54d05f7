"""A transformers model stored in fewer bits, and back, and an optimizer's state kept elsewhere, from Python: without a
recipe, in its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from finetooth_hooks.errors import RecipeError


def quantize(
    model: Any, quantization: str | Mapping[str, Any], *, device: str | None = None,
    build: Callable[[str, str | Mapping[str, Any], str, str], tuple[Any, str]],
) -> Any:  # fmt: skip
    """Store the linear weights of a transformers model in fewer bits, as `quantization` in a recipe does.

    Example:
        >>> model = finetooth.quantize(model, {"name": "int4", "group": 64})  # doctest: +SKIP

    Args:
        model: of torch; changed in place. Head, embeddings and norms stay as they are.
        quantization: what a recipe says there, a name or a mapping with options.
        device: where the result goes; None: where the model is.
        build: makes an entry and says its full name; `finetooth` gives it.

    Returns:
        The model.

    Raises:
        RecipeError: the options are wrong, the quantizer wants rows to be calibrated with, or it takes no module.
        PluginError: no such quantizer, or its library is missing.
    """
    setting = "quantization"
    quantizer, name = build("quantizer", quantization, setting, "torch")
    if "calibrate" in quantizer.capabilities:
        raise RecipeError(
            setting,
            f"{name} is calibrated with rows of a recipe's data, and there is none here",
            action="use it in a recipe, or choose another",
        )
    library = _library()
    if library.is_quantised(model):
        raise RecipeError(setting, "the model is quantised already", action="give the model as it was before")
    library.check_skip(model, quantizer)
    return library.quantise(model, quantizer, device or str(next(model.parameters()).device))


def dequantize(model: Any, *, precision: str = "fp32") -> Any:
    """Turn the linear weights that `quantize`, or a recipe's `quantization`, has stored into plain numbers: those that
    the model computed with.

    Example:
        >>> model = finetooth.dequantize(model, precision="bf16")  # doctest: +SKIP

    Args:
        model: changed in place.
        precision: of the numbers, as `train.precision` says it: `fp32`, `bf16`, `fp16`.

    Returns:
        The model.

    Raises:
        RecipeError: no such precision, or a module's weight cannot be read as numbers.
    """
    library = _library()
    if precision not in library.PRECISIONS:
        names = ", ".join(library.PRECISIONS)
        raise RecipeError("precision", f"unknown precision {precision!r}", action=f"choose one of {names}")
    return library.dequantise(model, library.PRECISIONS[precision])


def offload(optimizer: Any, where: str | None = None) -> Any:
    """Keep the state of a torch optimizer elsewhere between its steps, as `optimizer.offload` in a recipe does: on the
    device is the state of one parameter at a time. The numbers are the same; a step takes longer.

    Example:
        >>> optimizer = finetooth.offload(torch.optim.AdamW(model.parameters()), "disk")  # doctest: +SKIP

    Args:
        optimizer: one that updates each parameter from its own gradient and state alone, as Adam does and L-BFGS does
            not. What it keeps already is moved; from here on the one that is returned is stepped, saved and loaded.
        where: `cpu` (host memory) or `disk` (files of the system's temporary folder, TMPDIR); None: host memory.

    Returns:
        An optimizer that shares parameter groups with the one given, so that schedulers of either set its rates.

    Raises:
        RecipeError: the place is unknown, the optimizer counts for all parameters together, or its state is kept
            elsewhere already.
    """
    library = import_module("finetooth_torchshared.offloaded")
    return library.offloaded(optimizer, where or library.HOST)


def _library() -> Any:
    """What stores modules of a transformers model; it imports a framework, so it waits until it is asked for."""
    return import_module("finetooth_torchshared.quantised")
