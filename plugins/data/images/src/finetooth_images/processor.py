"""The processor `transformers`: the image processor that comes with a model, without its tokenizer and videos.

Resizing, cutting into patches and normalising are the library's. How many tokens an image takes follows from what the
image processor makes of it: in models of Qwen's kind from its grid of patches, else the model's own processor class
says what text stands for an image. It depends on the size of the picture alone, so it is computed once for each size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Options, RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Image
from finetooth_hooks.protocols import ImagePlace, ModelInfo
from finetooth_toolbox.files.hub import without_retries
from pydantic import Field

from finetooth_images.opening import open_image

VISION = {"vision_config", "image_token_id", "image_token_index"}
"""Keys of a config, at least one of which every model with images has."""


class ProcessorOptions(Options):
    """Options of `transformers`."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model's image processor to change, `{min_pixels: 3136, max_pixels: 200704}`: they decide how
    large an image becomes and so how many tokens it takes."""
    largest: int = Field(default=50_000_000, ge=1, le=178_000_000)
    """Pixels above which an image is refused by its header, before memory is taken for it."""


def build(options: ProcessorOptions, context: Context) -> ImageProcessor:
    """The processor; what comes with the model is read when the first image comes."""
    return ImageProcessor(lambda: _load(options, context), options.largest)


def _load(options: ProcessorOptions, context: Context) -> tuple[Any, Grid | ProcessorMarkup]:
    """The model's image processor, and how its images stand in text.

    Raises:
        RecipeError: the model takes no images, or its processor does not work here.
    """
    info = context.model
    if not VISION & info.config.keys():
        raise RecipeError(
            "model", f"{info.reference} takes no images: its config has no vision tower", action="choose one that does"
        )
    import transformers

    reference = str(info.files[0].parent) if info.files else info.reference
    classes: Any = transformers
    with _explain_failures(info):
        processor = classes.AutoImageProcessor.from_pretrained(reference, backend="pil", **options.arguments)
    known = processor.valid_kwargs.__annotations__
    if unknown := sorted(set(options.arguments) - set(known)):
        raise RecipeError(
            "data.processor.arguments",
            f"the model's image processor knows no {unknown[0]!r}",
            action=f"use {', '.join(sorted(known))}",
        )
    if hasattr(processor, "merge_size"):
        token = int(info.config["image_token_id"])
        return processor, Grid(context.tokenizer.decode([token]), token)
    with _explain_failures(info):
        whole = classes.AutoProcessor.from_pretrained(reference)
    return processor, ProcessorMarkup(whole)


@contextmanager
def _explain_failures(info: ModelInfo) -> Iterator[None]:
    """What transformers raises as a line that names the model."""
    try:
        with nullcontext() if info.files else without_retries():
            yield
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            "model", f"the image processor of {info.reference} does not load: {reason}", action="choose another model"
        ) from error


class Grid:
    """One token repeated, as often as the grid of patches has cells when `merge_size` x `merge_size` are merged."""

    unused: frozenset[str] = frozenset()

    def __init__(self, placeholder: str, token: int) -> None:
        self.placeholder, self.token_ids = placeholder, frozenset({token})

    def place(self, processor: Any, made: Mapping[str, Any]) -> tuple[str, int, int]:
        cells = int(np.prod(made["image_grid_thw"][0])) // processor.merge_size**2
        return self.placeholder * cells, 0, len(self.placeholder) * cells


class ProcessorMarkup:
    """What the model's own processor class writes for an image."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.placeholder = str(processor.image_token)
        self.token_ids = frozenset(int(id_) for id_ in processor.image_token_ids)
        self.unused = frozenset(processor.unused_input_names)
        self._spelled = processor.tokenizer.convert_ids_to_tokens(sorted(self.token_ids))

    def place(self, processor: Any, made: Mapping[str, Any]) -> tuple[str, int, int]:
        text = self._processor.replace_image_token(made, 0)
        starts = [at for token in self._spelled if (at := text.find(token)) >= 0]
        ends = [text.rfind(token) + len(token) for token in self._spelled if token in text]
        return text, min(starts), max(ends)


class ImageProcessor:
    """`protocols.Processor` over an image processor of transformers.

    Args:
        load: gives the image processor, and how an image stands in text.
        largest: see `ProcessorOptions`.
    """

    def __init__(self, load: Callable[[], tuple[Any, Grid | ProcessorMarkup]], largest: int) -> None:
        self._load, self._largest = load, largest
        self._places: dict[tuple[int, int], tuple[str, int, int]] = {}

    @cached_property
    def _loaded(self) -> tuple[Any, Grid | ProcessorMarkup]:
        return self._load()

    @property
    def _processor(self) -> Any:
        return self._loaded[0]

    @property
    def _markup(self) -> Grid | ProcessorMarkup:
        return self._loaded[1]

    @property
    def placeholder(self) -> str:
        return self._markup.placeholder

    @property
    def token_ids(self) -> frozenset[int]:
        return self._markup.token_ids

    def place(self, image: Image) -> ImagePlace:
        content = image.read()
        opened = open_image(content, image.name, self._largest)
        if opened.size not in self._places:
            try:
                made = self._processor(images=[opened], return_tensors="np")
            except ValueError as error:  # a shape it cannot resize, such as one of 200 to 1
                raise DataError("", f"image {image.name}: {error}", action="cut it to another shape") from error
            self._places[opened.size] = self._markup.place(self._processor, made)
        known = Image(image.name, image.path, image.content, hashlib.sha256(content).hexdigest())
        return ImagePlace(*self._places[opened.size], known, *opened.size)

    def inputs(self, images: Sequence[bytes]) -> Mapping[str, Any]:
        opened = [open_image(content, f"{i + 1} of {len(images)}", self._largest) for i, content in enumerate(images)]
        made = self._processor(images=opened, return_tensors="np")
        return {name: np.asarray(value) for name, value in made.items() if name not in self._markup.unused}

    def save(self, folder: Path) -> None:
        self._processor.save_pretrained(folder)
