"""Opens clients' images for the served base models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from finetooth_hooks import CommandContext, DataError, ImageChunk
from finetooth_hooks.data.examples import Image
from finetooth_hooks.protocols import Tokenizer
from finetooth_hooks.renderers import Processor


class Images:
    """Opens images; a model's processor is made at its first image.

    Args:
        models: recipe by the name of each base model.
        tokenizer: of a base model.
    """

    def __init__(
        self,
        context: CommandContext,
        models: Mapping[str, Mapping[str, Any]],
        tokenizer: Callable[[str], Tokenizer],
    ) -> None:
        self._context, self._models, self._tokenizer = context, models, tokenizer
        self._processors: dict[str, Processor] = {}
        self._opening = threading.Lock()

    def chunk(self, base: str, data: bytes, format_: str, expected: int, where: str) -> ImageChunk:
        """An image for a base model.

        Args:
            data: bytes of the file.
            format_: png or jpeg.
            expected: the client's count of its tokens; 0: unknown.
            where: its place, for messages.

        Raises:
            DataError: it cannot be read, or has another number of tokens than expected.
            UserError: the model does not accept images.
        """
        if format_ not in ("png", "jpeg"):
            raise DataError(where, f"format {format_[:20]!r}", action="send png or jpeg")
        with self._opening:
            if base not in self._processors:
                self._processors[base] = self._context.context(self._models[base]).processor
            place = self._processors[base].place(Image(where, content=data))
        tokens = self._tokenizer(base).encode(place.text[place.start : place.stop], special=True)
        if expected and expected != len(tokens):
            raise DataError(
                where, f"the image takes {len(tokens)} tokens, and {expected} were expected", action="count them again"
            )
        return ImageChunk(data, cast(Any, format_), len(tokens), np.asarray(tokens, np.int64))
