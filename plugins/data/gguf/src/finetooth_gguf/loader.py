"""The loader: what the contract asks for, over a GGUF file."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from finetooth_hooks.bases import LoaderBase
from finetooth_hooks.context import Context
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.options import NoOptions
from finetooth_hooks.protocols import ModelInfo, Quantizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

from finetooth_gguf import container
from finetooth_gguf.architectures import config_values
from finetooth_gguf.reference import find, published

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class GgufLoader(LoaderBase):
    """Loads a GGUF file; torch and transformers are imported with the first tokenizer or model."""

    def __init__(self) -> None:
        self._read: tuple[tuple[Path, int, int], container.Container] | None = None

    def describe(self, reference: str) -> ModelInfo:
        """Config and sizes, from the file's header alone.

        Raises:
            RecipeError: the file or its package is missing, is not a GGUF file, is truncated, or is a model of another
                architecture than those supported.
        """
        found = find(reference)
        file = self._container(found.path)
        config = config_values(file)
        return ModelInfo(
            reference=reference,
            loader="gguf",
            model_type=config["model_type"],
            config=config,
            parameters=sum(prod(tensor.shape) for tensor in file.tensors.values()),
            weight_bytes=found.path.stat().st_size,
            files=(found.path,),
            revision=found.revision,
            published=published(reference),
        )

    def tokenizer(self, reference: str) -> FastTokenizer:
        """The file's tokenizer.

        Raises:
            RecipeError: as `describe`, or the tokenizer is of an unsupported kind.
        """
        from finetooth_gguf.tokenizer import build_tokenizer

        return FastTokenizer(build_tokenizer(self._container(find(reference).path)))

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None
    ) -> Any:
        """A transformers model in eval mode with the dequantised weights.

        Raises:
            RecipeError: as `describe`, or a tensor cannot be dequantised or has no place in the model.
        """
        if framework != "torch":
            raise RecipeError(
                "model", f"the gguf loader loads for torch, not for {framework}", action="take the torch backend"
            )
        import torch

        from finetooth_gguf.weights import build_config, build_model

        file = self._container(find(reference).path)
        model: Any = build_model(file, build_config(file), getattr(torch, PRECISIONS[precision]))
        if quantizer is None:
            return model.to(device)
        from finetooth_toolbox.torch.quantised import quantise

        return quantise(model, quantizer, device)

    def _container(self, path: Path) -> container.Container:
        """The file's header, read once for all that a run asks for; again if the file has changed since."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if self._read is None or self._read[0] != key:
            self._read = (key, container.read(path))
        return self._read[1]


def build(options: NoOptions, context: Context) -> GgufLoader:
    """Build the loader."""
    return GgufLoader()
