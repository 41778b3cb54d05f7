"""The loader of GGUF files, as in the contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import RecipeError
from finetooth_hooks.options import Options
from finetooth_hooks.protocols import Loader, ModelTensors, Quantizer
from finetooth_modelfiles.gguf.loader import GgufReader
from finetooth_modelfiles.gguf.reference import find

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class GgufOptions(Options):
    """Options of `gguf`."""

    keep_quantised: bool = False
    """Whether the linear weights stay in the file's quantised blocks and are dequantised layer by layer in each pass;
    only a low-rank adapter over them can train. Otherwise they are dequantised once, when loaded."""


class GgufLoader(GgufReader):
    """Loads a GGUF file; torch and transformers are imported with the first tokenizer or model."""

    capabilities = frozenset({"tensors", "widen", "write"})

    def __init__(self, options: GgufOptions) -> None:
        self._options = options
        super().__init__(keep_quantised=self._options.keep_quantised)

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None,
        meta: bool = False,
    ) -> Any:  # fmt: skip
        """A transformers model in eval mode, its weights dequantised or as they are stored.

        Raises:
            RecipeError: as `describe`, or a tensor cannot be dequantised or has no place in the model.
        """
        if meta:
            raise self._cannot("build a model without its weights", "meta")
        _check_framework(framework)
        import torch

        from finetooth_gguf.weights import build_config, build_model, build_quantised

        file, dtype = self.container(find(reference).path), getattr(torch, PRECISIONS[precision])
        from finetooth_torchshared.quantised import quantise, stores_apart

        if self._options.keep_quantised or (quantizer is not None and stores_apart(quantizer)):
            return build_quantised(file, build_config(file), dtype, device, quantizer)
        model: Any = build_model(file, build_config(file), dtype)
        return model.to(device) if quantizer is None else quantise(model, quantizer, device)

    def widen(self, model: Any, size: int, new: Sequence[int]) -> None:
        """Give a loaded model a row for every token."""
        from finetooth_torchshared.vocabulary import widen

        widen(model, size, new)

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        """Write a model with its tokenizer in transformers' layout."""
        from finetooth_torchshared.model_tensors import write_model

        write_model(of or self, reference, folder, precision=precision)

    def tensors(
        self, reference: str, *, framework: str, precision: str, quantizer: Quantizer | None = None
    ) -> ModelTensors | None:
        """See `protocols.Loader`.

        Raises:
            RecipeError: as `load`.
        """
        _check_framework(framework)
        import torch
        from finetooth_torchshared.model_tensors import as_stored

        from finetooth_gguf.weights import build_config, tensors

        file, keep = self.container(find(reference).path), self._options.keep_quantised and quantizer is None
        numbers = tensors(file, build_config(file), getattr(torch, PRECISIONS[precision]), keep_quantised=keep)
        return numbers if quantizer is None else as_stored(numbers, quantizer)


def _check_framework(framework: str) -> None:
    """
    Raises:
        RecipeError: it is not torch.
    """
    if framework != "torch":
        raise RecipeError(
            "model", f"the gguf loader loads for torch, not for {framework}", action="take the torch backend"
        )
