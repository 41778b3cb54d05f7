"""Images by the image processor that comes with a model.

Resizing, cutting into patches and normalising are the library's. How many tokens an image takes follows from what the
image processor makes of it: in models of Qwen's kind from its grid of patches, else the model's own processor class
says what text stands for an image. It depends on the size of the picture alone, so it is computed once for each size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.errors import DataError

from finetooth_media.pictures import open_image
from finetooth_media.reader import Placed, check_settings, explained, folder_of, stands


def load(context: Context, settings: Mapping[str, Any], largest: int) -> ImageReader:
    """The reader of the recipe's model.

    Args:
        settings: of the image processor, to change.
        largest: pixels of an image.

    Raises:
        RecipeError: what comes with the model does not load here, or knows no such setting.
    """
    import transformers

    info, classes = context.model, _any(transformers)
    with explained(info, "image processor"):
        processor = classes.AutoImageProcessor.from_pretrained(folder_of(info), backend="pil", **settings)
    check_settings("image", settings, processor.valid_kwargs.__annotations__)
    if hasattr(processor, "merge_size"):
        token = int(info.config["image_token_id"])
        return ImageReader(processor, Grid(context.tokenizer.decode([token]), token), largest)
    with explained(info, "image processor"):
        whole = classes.AutoProcessor.from_pretrained(folder_of(info))
    return ImageReader(processor, ProcessorMarkup(whole, settings), largest)


def _any(module: Any) -> Any:
    return module


class Grid:
    """One token repeated, as often as the grid of patches has cells when `merge_size` x `merge_size` are merged."""

    unused: frozenset[str] = frozenset()
    cut: Mapping[str, Any] = {"return_tensors": "np"}

    def __init__(self, placeholder: str, token: int) -> None:
        self.placeholder, self.token_ids = placeholder, frozenset({token})

    def place(self, processor: Any, made: Mapping[str, Any]) -> Placed:
        return self.repeated(processor, made["image_grid_thw"][0])

    def repeated(self, processor: Any, grid: Any) -> Placed:
        """Returns a placeholder for every merged patch.

        Args:
            grid: patches in time, height and width.
        """
        cells = int(np.prod(grid)) // processor.merge_size**2
        return self.placeholder * cells, 0, len(self.placeholder) * cells


class ProcessorMarkup:
    """The text that the model's own processor class writes for an image.

    Args:
        settings: of the recipe, which the class does not change.

    Attributes:
        unused: outputs of the image processor that the model does not read.
        cut: what the class has the image processor do otherwise: Pixtral's has an image be whole squares of patches,
            SmolVLM's has it say into how many squares it cut an image.
    """

    def __init__(self, processor: Any, settings: Mapping[str, Any]) -> None:
        self._processor = processor
        self.placeholder = str(processor.image_token)
        patch = getattr(processor, "img_patch_token", None)  # Llama 4's image token only marks the whole image
        pieces = [processor.tokenizer.convert_tokens_to_ids(patch)] if patch else []
        self.token_ids = frozenset(int(id_) for id_ in (*processor.image_token_ids, *pieces))
        self.unused = frozenset(processor.unused_input_names)
        self._spelled = processor.tokenizer.convert_ids_to_tokens(sorted(self.token_ids))
        merges = getattr(processor, "spatial_merge_size", 1)
        own = {**getattr(processor, "images_kwargs", {}), "return_tensors": "np"}
        own |= {"patch_size": processor.patch_size * merges} if merges > 1 else {}
        self.cut: Mapping[str, Any] = {name: value for name, value in own.items() if name not in settings}

    def place(self, processor: Any, made: Mapping[str, Any]) -> Placed:
        return stands(self._processor.replace_image_token(made, 0), self._spelled)


class ImageReader:
    """`Reader` over an image processor of transformers."""

    def __init__(self, processor: Any, markup: Grid | ProcessorMarkup, largest: int) -> None:
        self._processor, self._markup, self._largest = processor, markup, largest
        self.placeholder, self.token_ids = markup.placeholder, markup.token_ids
        self._places: dict[tuple[int, int], Placed] = {}

    def place(self, content: bytes, name: str) -> tuple[Placed, str]:
        opened = open_image(content, name, self._largest)
        if opened.size not in self._places:
            try:
                made = self._made([opened])
            except ValueError as error:  # a shape it cannot resize, such as one of 200 to 1
                raise DataError("", f"image {name}: {error}", action="cut it to another shape") from error
            self._places[opened.size] = self._markup.place(self._processor, made)
        return self._places[opened.size], f"{opened.width}x{opened.height}"

    def inputs(self, contents: Sequence[bytes]) -> Mapping[str, Any]:
        opened = [
            open_image(content, f"{i + 1} of {len(contents)}", self._largest) for i, content in enumerate(contents)
        ]
        made = self._made(opened)
        return {name: np.asarray(value) for name, value in made.items() if name not in self._markup.unused}

    def _made(self, opened: Sequence[Any]) -> Mapping[str, Any]:
        if getattr(self._processor, "backend", "") != "torchvision":
            made: Mapping[str, Any] = self._processor(images=list(opened), **self._markup.cut)
            return made
        tensors = self._processor(images=list(opened), **{**self._markup.cut, "return_tensors": "pt"})
        # Llama 4's are bf16, which NumPy lacks
        return {
            name: (value.float() if value.is_floating_point() else value).numpy() if hasattr(value, "numpy") else value
            for name, value in tensors.items()
        }

    def save(self, folder: Path) -> None:
        self._processor.save_pretrained(folder)
