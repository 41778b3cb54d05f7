"""Videos of models of Qwen's kind: frames that the model's own image processor resizes, normalises and cuts.

The video processors of transformers need torchvision. Those of Qwen2-VL and Qwen2.5-VL do with each frame what their
image processor does with an image, and join `temporal_patch_size` frames in a patch; the image processor writes an
image as such a patch with the same frame in it each time. So frames go through the image processor one by one, and
patches take each frame's part. Sizes and which frames are kept follow the model's `video_preprocessor_config.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.errors import DataError
from numpy.typing import NDArray

from finetooth_media.image_reader import Grid
from finetooth_media.reader import Placed, check_settings, explained, folder_of
from finetooth_media.videos import Frames, open_video

MODELS = ("qwen2_vl", "qwen2_5_vl")
"""Model types whose videos are read here."""
TIMED = ("qwen2_5_vl",)
"""Those whose positions follow the seconds of a video."""
SETTINGS: Mapping[str, Any] = {
    "min_pixels": 128 * 28 * 28,
    "max_pixels": 768 * 28 * 28,
    "fps": None,
    "num_frames": None,
    "min_frames": 4,
    "max_frames": 768,
}
"""Changeable settings, with the defaults of `Qwen2VLVideoProcessor` for a model without them."""
FPS = 2.0
"""Frames a second of a video that does not say it, as in Qwen's own code: frames given one by one were sampled so."""


def load(context: Context, settings: Mapping[str, Any], largest: int) -> VideoReader:
    """The reader of the recipe's model.

    Args:
        settings: some of `SETTINGS`, to change.
        largest: pixels of a frame.

    Raises:
        RecipeError: videos of such a model are not read here, what comes with it does not load, or a setting is
            wrong.
    """
    import transformers

    info = context.model
    kind = str(info.config.get("model_type"))
    if kind not in MODELS:
        raise RecipeError(
            "model",
            f"videos of models of type {kind} are not read here",
            action=f"choose one of type {' or '.join(MODELS)}, or show frames as images",
        )
    check_settings("video", settings, SETTINGS)
    used = {**SETTINGS, **_stated(context), **settings}
    if "fps" in settings and "num_frames" in settings:
        raise RecipeError("data.processor.video", "fps and num_frames exclude each other", action="give one of them")
    for name, value in used.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise RecipeError(f"data.processor.video.{name}", f"{value!r} is not a number above 0", action="give one")
    if "num_frames" in settings:
        used["fps"] = None
    if "fps" in settings:
        used["num_frames"] = None
    classes: Any = transformers
    with explained(info, "image processor"):
        processor = classes.AutoImageProcessor.from_pretrained(
            folder_of(info), backend="pil",
            size={"shortest_edge": int(used["min_pixels"]), "longest_edge": int(used["max_pixels"])},
        )  # fmt: skip
    token = int(info.config["video_token_id"])
    return VideoReader(processor, Grid(context.tokenizer.decode([token]), token), used, largest, timed=kind in TIMED)


def _stated(context: Context) -> dict[str, Any]:
    """Settings in the model's `video_preprocessor_config.json`; none without one."""
    from transformers.utils import hub

    library: Any = hub
    with explained(context.model, "video processor"):
        path = library.cached_file(
            folder_of(context.model), "video_preprocessor_config.json", _raise_exceptions_for_missing_entries=False
        )
        if path is None:
            return {}
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        size = config.get("size") or {}
        settings = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        names = SETTINGS if config.get("do_sample_frames") else ("min_pixels", "max_pixels", "min_frames", "max_frames")
        settings |= {name: config.get(name) for name in names if config.get(name) is not None}
    return {name: value for name, value in settings.items() if value is not None}


class VideoReader:
    """`Reader` over the image processor of a model of Qwen's kind.

    Args:
        processor: resizes as videos are.
        settings: all of `SETTINGS`.
        timed: the model reads how many seconds a patch lasts.
    """

    def __init__(self, processor: Any, markup: Grid, settings: Mapping[str, Any], largest: int, *, timed: bool) -> None:
        self._processor, self._markup, self._largest = processor, markup, largest
        self._settings, self._timed = settings, timed
        self.placeholder, self.token_ids = markup.placeholder, markup.token_ids

    def place(self, content: bytes, name: str) -> tuple[Placed, str]:
        opened = self._open(content, name)
        frame = opened.kept[0]
        try:
            made = self._processor(images=[frame], return_tensors="np")
        except ValueError as error:  # a shape it cannot resize, such as one of 200 to 1
            raise DataError("", f"video {name}: {error}", action="cut it to another shape") from error
        _, height, width = (int(n) for n in made["image_grid_thw"][0])
        times = math.ceil(len(opened.kept) / self._processor.temporal_patch_size)
        of_all = "" if len(opened.kept) == opened.count else f" of {opened.count}"
        size = f"{len(opened.kept)}{of_all} frames of {frame.width}x{frame.height}"
        return self._markup.repeated(self._processor, (times, height, width)), size

    def inputs(self, contents: Sequence[bytes]) -> Mapping[str, Any]:
        patches, grids, seconds = [], [], []
        for i, content in enumerate(contents):
            opened = self._open(content, f"{i + 1} of {len(contents)}")
            made, grid = self._patches(opened)
            patches.append(made)
            grids.append(grid)
            seconds.append(self._processor.temporal_patch_size / self._rate(opened))
        arrays: dict[str, Any] = {
            "pixel_values_videos": np.concatenate(patches),
            "video_grid_thw": np.asarray(grids, np.int64),
        }
        return arrays | ({"second_per_grid_ts": np.asarray(seconds, np.float64)} if self._timed else {})

    def _patches(self, opened: Frames) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
        """(t * h * w, C * P_t * P * P) patches, and their grid (t, h, w)."""
        times = int(self._processor.temporal_patch_size)
        frames = [*opened.kept, *[opened.kept[-1]] * (-len(opened.kept) % times)]
        made = self._processor(images=frames, return_tensors="np")
        _, height, width = (int(n) for n in made["image_grid_thw"][0])
        side = int(self._processor.patch_size)
        own = np.asarray(made["pixel_values"]).reshape(len(frames), height * width, -1, times, side * side)
        joined = own[:, :, :, 0].reshape(len(frames) // times, times, height * width, -1, side * side)
        rows = joined.transpose(0, 2, 3, 1, 4).reshape(len(frames) // times * height * width, -1)
        return np.ascontiguousarray(rows), (len(frames) // times, height, width)

    def _rate(self, opened: Frames) -> float:
        """Frames a second of those that were kept."""
        return (opened.fps or float(self._settings["fps"] or FPS)) * len(opened.kept) / opened.count

    def _open(self, content: bytes, name: str) -> Frames:
        return open_video(content, name, self._largest, self._choose)

    def _choose(self, count: int, fps: float | None, name: str) -> list[int]:
        """Frames that are kept, evenly spread, as `Qwen2VLVideoProcessor.sample_frames` does; all of them where neither
        `fps` nor `num_frames` is set, or where `fps` is and the video does not say its own.

        Raises:
            DataError: the video has fewer frames than `num_frames`, or more than `max_frames` and none may be left out.
        """
        used, times = self._settings, int(self._processor.temporal_patch_size)
        if used["num_frames"] is not None:
            wanted = round(used["num_frames"] / times) * times
            if wanted > count:
                problem = f"video {name}: {count} frames, and data.processor.video.num_frames asks for {wanted}"
                raise DataError("", problem, action="ask for fewer")
        elif used["fps"] is not None and fps is not None:
            most = min(used["max_frames"], count) // times * times
            wanted = int(min(max(count / fps * used["fps"], used["min_frames"]), most) // times * times)
        else:
            if count > used["max_frames"]:
                problem = f"video {name}: {count} frames, and the model takes {int(used['max_frames'])}"
                raise DataError("", problem, action="set data.processor.video.fps or num_frames")
            return list(range(count))
        return [int(i * count / wanted) for i in range(wanted)] if wanted else list(range(count))

    def save(self, folder: Path) -> None:
        used = {name: value for name, value in self._settings.items() if value is not None}
        used["size"] = {"shortest_edge": used.pop("min_pixels"), "longest_edge": used.pop("max_pixels")}
        used["do_sample_frames"] = bool(self._settings["fps"] or self._settings["num_frames"])
        used["video_processor_type"] = "Qwen2VLVideoProcessor"
        (folder / "video_preprocessor_config.json").write_text(json.dumps(used, indent=2) + "\n", encoding="utf-8")
