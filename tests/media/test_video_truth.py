"""Rows with videos, against transformers' own forward; the patches are those that its video processor cuts, written out
here (it needs torchvision)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import transformers
from finetooth_hooks import DataError, Datum, RecipeError, VideoChunk
from PIL import Image

FRAMES, SIDE = 5, 56
"""Frames that a row names, each of a size that is not changed."""


def pictures() -> np.ndarray[Any, Any]:
    """(frames, side, side, 3) colours that move."""
    return np.random.default_rng(3).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A video of frames at 4 a second, the same as an animation, and a row without one."""
    made = [Image.fromarray(frame) for frame in pictures()]
    for i, frame in enumerate(made):
        frame.save(tmp_path / f"{i}.png")
    made[0].save(tmp_path / "clip.png", save_all=True, append_images=made[1:], duration=250)
    frames = {"type": "video", "video": [f"{i}.png" for i in range(FRAMES)], "fps": 4}
    contents: list[Any] = [
        [frames, {"type": "text", "text": "What moves?"}],
        [{"type": "video", "video": "clip.png"}, {"type": "text", "text": "What moves?"}],
        "Say yes.",
    ]
    answer = {"role": "assistant", "content": "Colours."}
    rows = [{"messages": [{"role": "user", "content": content}, answer]} for content in contents]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "clips.jsonl"


def recipe(model: Path, clips: Path, **video: Any) -> dict[str, Any]:
    processor = {"name": "auto", "video": {"min_pixels": 28 * 28, **video}}
    return {
        "model": str(model),
        "data": {"train": str(clips), "cache": "off", "processor": processor},
        "adapter": "full",
        "train": {"max_steps": 1, "batch_size": 3, "max_length": 1024, "precision": "fp32"},
    }


def data_of(session: Any) -> list[Datum]:
    how = session.job.context.data.prepared_as["train"]
    return list(session.job.context.prepare("train", how.rendering, how.limit).data)


def patches(processor: Any) -> np.ndarray[Any, Any]:
    """(t * h * w, C * 2 * P * P) as `Qwen2VLVideoProcessor.patchify` lays them out; the last frame is repeated."""
    frames = np.concatenate([pictures(), pictures()[-1:]]) / 255.0
    normal = (frames - np.array(processor.image_mean)) / np.array(processor.image_std)
    times, cells, side = len(frames) // 2, SIDE // processor.patch_size // 2, processor.patch_size
    cut = normal.transpose(0, 3, 1, 2).reshape(times, 2, 3, cells, 2, side, cells, 2, side)
    return cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(times * 4 * cells * cells, -1).astype(np.float32)


def test_loss_is_transformers_own(qwen_vl: Path, clips: Path) -> None:
    session = finetooth.session(recipe(qwen_vl, clips))
    data, engine = data_of(session), session.engine
    assert [[len(chunk) for _, chunk in datum.media] for datum in data] == [[12], [12], []]
    assert all(isinstance(chunk, VideoChunk) for datum in data for _, chunk in datum.media)
    assert data[0].placeholder_tokens.tolist() == data[1].placeholder_tokens.tolist()
    classes: Any = transformers
    processor = classes.AutoImageProcessor.from_pretrained(qwen_vl, backend="pil")
    model = classes.AutoModelForImageTextToText.from_pretrained(qwen_vl).float().eval()
    total, count = 0.0, 0
    for datum, ours in zip(data, engine.logprobs(data), strict=True):
        ids = torch.tensor([[*datum.placeholder_tokens.tolist(), int(datum.targets[-1])]])
        assert not (datum.targets[datum.mask] == model.config.video_token_id).any()
        seen: dict[str, Any] = {"mm_token_type_ids": 2 * (ids == model.config.video_token_id).long()}
        if datum.media:
            seen |= {
                "pixel_values_videos": torch.from_numpy(patches(processor)),
                "video_grid_thw": torch.tensor([[3, 4, 4]]),
                "second_per_grid_ts": torch.tensor([0.5]),
            }
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **seen).logits[0, :-1]
        theirs = logits.log_softmax(-1).gather(1, torch.from_numpy(datum.targets.copy())[:, None])[:, 0].numpy()
        np.testing.assert_allclose(ours[datum.mask], theirs[datum.mask], rtol=1e-4, atol=2e-5)
        total, count = total - float(theirs[datum.mask].sum()), count + int(datum.mask.sum())
    result = engine.forward_backward(data, session.job.context.loss("cross_entropy"))
    assert result.loss == pytest.approx(total / count, rel=1e-5)


def test_frames_are_kept_as_the_settings_say(qwen_vl: Path, clips: Path) -> None:
    def lengths(**video: Any) -> list[list[int]]:
        data = data_of(finetooth.session(recipe(qwen_vl, clips, **video)))
        return [[len(chunk) for _, chunk in datum.media] for datum in data]

    assert lengths(num_frames=2) == [[4], [4], []]
    assert lengths(fps=2, min_frames=2) == [[4], [4], []]  # 1.25 seconds
    assert lengths(max_pixels=28 * 28) == [[3], [3], []]
    with pytest.raises(RecipeError, match=r"data.processor.video: .* knows no 'fp'; did you mean fps"):
        lengths(fp=2)
    with pytest.raises(RecipeError, match="exclude each other"):
        lengths(fps=2, num_frames=2)


def test_a_model_without_videos_refuses_them(gemma3: Path, clips: Path) -> None:
    with pytest.raises((DataError, RecipeError), match=r"it has a video, and .* takes only image"):
        _ = finetooth.session(recipe(gemma3, clips)).job
