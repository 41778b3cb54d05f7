"""Reads the parts of a GGUF file before its weights, for loaders of any framework."""

from __future__ import annotations

from math import prod
from pathlib import Path

from finetooth_hooks.bases import LoaderBase
from finetooth_hooks.protocols import ModelInfo
from finetooth_toolbox.files.contents import FileContents
from finetooth_toolbox.text.tokenizers import FastTokenizer

from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.configs import config_values
from finetooth_modelfiles.gguf.reference import find, published
from finetooth_modelfiles.gguf.stored import stored_as


class GgufReader(LoaderBase):
    """Describes a GGUF file and rebuilds its tokenizer; transformers is imported with the first tokenizer.

    Args:
        keep_quantised: linear weights stay in the blocks of the file.
    """

    def __init__(self, *, keep_quantised: bool = False) -> None:
        self._keep = keep_quantised
        self._read: tuple[tuple[Path, int, int], container.Container] | None = None

    def describe(self, reference: str) -> ModelInfo:
        """Config and sizes, from the file's header alone.

        Raises:
            RecipeError: the file or its package is missing, is not a GGUF file, is truncated, or is a model of another
                architecture than those supported; or it is to stay quantised and has a type without a reader.
        """
        location = find(reference)
        file = self.container(location.path)
        config = config_values(file)
        stored, weights = stored_as(file) if self._keep else (None, 0)
        return ModelInfo(
            reference=reference,
            loader="gguf",
            model_type=config["model_type"],
            config=config,
            parameters=sum(prod(tensor.shape) for tensor in file.tensors.values()),
            weight_bytes=location.path.stat().st_size,
            files=(location.path,),
            revision=location.revision,
            stored=stored,
            stored_weights=weights,
            published=published(reference),
            contents=FileContents({location.path.name: location.path.absolute()}),
        )

    def tokenizer(self, reference: str) -> FastTokenizer:
        """The file's tokenizer.

        Raises:
            RecipeError: as `describe`, or the tokenizer is of an unsupported kind.
        """
        from finetooth_modelfiles.gguf.tokenizer import build_tokenizer

        return FastTokenizer(build_tokenizer(self.container(find(reference).path)))

    def container(self, path: Path) -> container.Container:
        """The file's header, read once for all that a run asks for; again if the file has changed since."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if self._read is None or self._read[0] != key:
            self._read = (key, container.read(path))
        return self._read[1]
