"""The processor `transformers`: what comes with a model to read images, sounds and videos, each loaded when the first
of its kind comes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import MediumChunk, Options, RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import CALLED, Medium, MediumKind
from finetooth_hooks.errors import DataError
from finetooth_hooks.renderers import MediumPlace
from pydantic import Field

from finetooth_media.pictures import open_image
from finetooth_media.reader import Reader
from finetooth_media.sounds import open_sound
from finetooth_media.videos import open_video

KEYS: Mapping[MediumKind, Collection[str]] = {
    "image": ("vision_config", "image_token_id", "image_token_index"),
    "audio": ("audio_config", "audio_token_id", "audio_token_index"),
    "video": ("video_token_id", "video_token_index"),
}
"""Keys of a config, at least one of which every model has that takes such a kind."""
WHOLE = "processor_config.json"
"""File of newer models with the settings of the processor and its parts."""
PARTS = frozenset({"image_processor", "feature_extractor", "video_processor"})
"""Keys of that file which readers save in files of their own."""


class ProcessorOptions(Options):
    """Options of `transformers`."""

    image: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model's image processor to change, `{min_pixels: 3136, max_pixels: 200704}`. They set the size of
    an image and so its number of tokens."""
    audio: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model's feature extractor to change, `{chunk_length: 30}`. Sounds are resampled to its
    `sampling_rate`."""
    video: dict[str, Any] = Field(default_factory=dict)
    """Settings for videos: `fps` or `num_frames` (which frames are used; default: all), `min_frames`, `max_frames`, and
    `min_pixels`, `max_pixels` of a frame."""
    largest: int = Field(default=50_000_000, ge=1, le=178_000_000)
    """Images and frames with more pixels are refused by their header, before memory is allocated for them."""
    longest: float = Field(default=600.0, gt=0, le=36_000)
    """Sounds of more seconds are refused by their header."""


@dataclass(frozen=True)
class Way:
    """How one kind is read.

    Attributes:
        check: gets the content and the name of a medium; raises DataError if it cannot be opened, for any model.
        load: the model's reader.
    """

    check: Callable[[bytes, str], object]
    load: Callable[[], Reader]


def build(options: ProcessorOptions, context: Context) -> MediaProcessor:
    """The processor; the model's own files are read at the first image, sound or video."""
    largest, longest = options.largest, options.longest

    def image() -> Reader:
        from finetooth_media import image_reader

        return image_reader.load(context, options.image, largest)

    def audio() -> Reader:
        from finetooth_media import audio_reader

        return audio_reader.load(context, options.audio, longest)

    def video() -> Reader:
        from finetooth_media import video_reader

        return video_reader.load(context, options.video, largest)

    ways: Mapping[MediumKind, Way] = {
        "image": Way(lambda content, name: open_image(content, name, largest), image),
        "audio": Way(lambda content, name: open_sound(content, name, None, longest), audio),
        "video": Way(lambda content, name: open_video(content, name, largest, _first), video),
    }
    return MediaProcessor(context, ways)


def _first(count: int, fps: float | None, name: str) -> list[int]:
    return [0] if count else []


class MediaProcessor:
    """A `protocols.Processor` over transformers' processors of a model.

    Args:
        ways: by kind, how it is read.
    """

    def __init__(self, context: Context, ways: Mapping[MediumKind, Way]) -> None:
        self._context, self._ways = context, ways
        self._readers: dict[MediumKind, Reader] = {}
        self._loading = threading.Lock()

    @property
    def kinds(self) -> tuple[MediumKind, ...]:
        config = self._context.model.config
        accepted = tuple(kind for kind, keys in KEYS.items() if any(config.get(key) is not None for key in keys))
        if not accepted:
            raise RecipeError(
                "model",
                f"{self._context.model.reference} takes neither images nor sound: its config has no tower for them",
                action="choose one that does",
            )
        return accepted

    def _reader(self, kind: MediumKind) -> Reader:
        """
        Raises:
            DataError: the model takes none of the kind.
            RecipeError: the model's processor does not work here.
        """
        kinds = self.kinds
        if kind not in kinds:
            takes = " and ".join(kinds)
            model = self._context.model.reference
            raise DataError("", f"it has {CALLED[kind]}, and {model} takes only {takes}", action="choose another model")
        with self._loading:
            if kind not in self._readers:
                self._readers[kind] = self._ways[kind].load()
            return self._readers[kind]

    def placeholder(self, kind: MediumKind) -> str:
        return self._reader(kind).placeholder

    def token_ids(self, kind: MediumKind) -> frozenset[int]:
        return self._reader(kind).token_ids

    def place(self, medium: Medium) -> MediumPlace:
        content = medium.read()
        if medium.kind not in self._readers:  # a broken file is that of any model
            self._ways[medium.kind].check(content, medium.name)
        (text, start, stop), size = self._reader(medium.kind).place(content, medium.name)
        return MediumPlace(text, start, stop, medium.known(content), size)

    def inputs(self, media: Sequence[MediumChunk]) -> Mapping[str, Any]:
        arrays: dict[str, Any] = {}
        for kind in dict.fromkeys(chunk.kind for chunk in media):
            arrays |= self._reader(kind).inputs([chunk.data for chunk in media if chunk.kind == kind])
        return arrays

    def save(self, folder: Path) -> None:
        for kind in self.kinds:
            if kind != "video" or kind in self._readers:
                self._reader(kind).save(folder)
        sources = dict.fromkeys(file.parent / WHOLE for file in self._context.model.files)
        given = [source for source in sources if source.is_file() and not (folder / WHOLE).exists()]
        for whole in given[-1:]:  # says how many tokens an image is, and more
            kept = json.loads(whole.read_text(encoding="utf-8"))
            own = {name: value for name, value in kept.items() if name not in PARTS}
            (folder / WHOLE).write_text(json.dumps(own, indent=2), encoding="utf-8")
