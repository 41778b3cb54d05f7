"""Tokens, log-probabilities and gradients of rows with images, against transformers alone: its own template rendering,
its own processor, one row at a time through its own forward with labels of -100."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import transformers
from finetooth_hooks import Datum
from PIL import Image, ImageOps

OWN_TEMPLATES = (
    "glm4v", "mistral3", "internvl", "gemma4", "smolvlm", "gemma3n", "phi4_multimodal", "llama4",
)  # fmt: skip
ROWS = (0, 13, 14, 15, 16, 17)
"""A photograph, one turned by EXIF, one with a palette, two images, two turns, and no image."""


@pytest.fixture
def recipe(vision_model: Path, captions: Path) -> dict[str, Any]:
    return {
        "model": str(vision_model),
        "data": {"train": str(captions), "cache": "off", **own_renderer(vision_model)},
        "adapter": {"name": "full"},
        "train": {"max_steps": 1, "batch_size": 18, "max_length": longest_of(vision_model), "precision": "fp32"},
    }


def longest_of(model: Path) -> int:
    """Positions of a model."""
    config = json.loads((model / "config.json").read_text())
    return int(config.get("text_config", config)["max_position_embeddings"])


def own_renderer(model: Path) -> dict[str, Any]:
    """The tokenizer's template where it is not the family's."""
    kind = json.loads((model / "config.json").read_text())["model_type"]
    return {"renderer": "jinja"} if kind in OWN_TEMPLATES else {}


@pytest.fixture
def data(recipe: dict[str, Any]) -> list[Datum]:
    session = finetooth.session(recipe)
    how = session.job.context.data.prepared_as["train"]
    rows = session.job.context.prepare("train", how.rendering, how.limit).data
    return [rows[i] for i in ROWS]


class Judge:
    """What transformers makes of a row."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.images: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        classes: Any = transformers
        self.model: Any = classes.AutoModelForMultimodalLM.from_pretrained(folder).float().train()
        kind = self.model.config.model_type
        for module in self.model.modules() if kind == "phi4_multimodal" else ():
            if "Vision" in type(module).__name__:
                module.is_causal = False  # as the model was trained; see `seeing`
        self.gemma = kind == "gemma3"
        self.whole: Any = None  # the model's own class, for text and images
        if self.gemma:
            self.whole = transformers.Gemma3Processor(self.images, self.tokenizer, image_seq_length=4)
        elif kind == "mistral3":
            self.whole = transformers.PixtralProcessor(self.images, self.tokenizer, patch_size=14, spatial_merge_size=2)
        elif kind in ("internvl", "gemma4", "smolvlm", "gemma3n", "phi4_multimodal", "llama4"):
            self.whole = classes.AutoProcessor.from_pretrained(folder)
            self.whole.image_processor = self.images

    def inputs(self, row: dict[str, Any], folder: Path) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(row["messages"], tokenize=False)
        images = [ImageOps.exif_transpose(Image.open(folder / name)).convert("RGB") for name in row["images"]]
        if self.whole is not None:
            both = self.whole(images=images or None, text=text, add_special_tokens=False, return_tensors="pt")
            return {name: value.float() if value.is_floating_point() else value for name, value in both.items()}
        made = dict(self.images(images=images, return_tensors="pt")) if images else {}
        spelled = self.tokenizer.decode([self.model.config.image_token_id])
        for grid in made.get("image_grid_thw", ()):
            text = text.replace(spelled, "<one>" * int(grid.prod() // 4), 1)
        ids = self.tokenizer(text.replace("<one>", spelled), return_tensors="pt")["input_ids"]
        types = (ids == self.model.config.image_token_id).long()
        return {"input_ids": ids, "mm_token_type_ids": types, **made}


@pytest.fixture
def judge(vision_model: Path) -> Judge:
    return Judge(vision_model)


@pytest.fixture
def rows(captions: Path) -> list[dict[str, Any]]:
    lines = captions.read_text(encoding="utf-8").splitlines()
    return [json.loads(lines[i]) for i in ROWS]


def whole(datum: Datum) -> list[int]:
    return [*datum.placeholder_tokens.tolist(), int(datum.targets[-1])]


def test_tokens_are_those_of_the_official_template_and_processor(
    data: list[Datum], judge: Judge, rows: list[dict[str, Any]], captions: Path
) -> None:
    for datum, row in zip(data, rows, strict=True):
        assert whole(datum) == judge.inputs(row, captions.parent)["input_ids"][0].tolist()


def test_exactly_the_answers_train(data: list[Datum], judge: Judge, rows: list[dict[str, Any]]) -> None:
    for datum, row in zip(data, rows, strict=True):
        answers = [m["content"][0]["text"] for m in row["messages"] if m["role"] == "assistant"]
        end = "<end_of_turn>" if judge.gemma else "<|im_end|>"
        assert judge.tokenizer.decode(datum.targets[datum.mask]) == "".join(f"{answer}{end}" for answer in answers)
        for start, image in datum.media:
            assert not datum.mask[max(start - 1, 0) : start + image.length - 1].any()


def loss_of(judge: Judge, data: list[Datum], rows: list[dict[str, Any]], folder: Path) -> tuple[list[Any], Any]:
    """Log-probabilities of each row's trained targets, and the mean loss over all of them."""
    total, count, found = torch.zeros(()), 0, []
    for datum, row in zip(data, rows, strict=True):
        labels = torch.full((1, len(datum) + 1), -100)
        labels[0, 1:][torch.from_numpy(datum.mask.copy())] = torch.from_numpy(datum.targets[datum.mask])
        logits = judge.model(**judge.inputs(row, folder)).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], labels[0, 1:], ignore_index=-100, reduction="none")
        found.append(-losses.detach().numpy())
        total, count = total + losses.sum(), count + int(datum.mask.sum())
    return found, total / count


@pytest.mark.slow
@pytest.mark.parametrize("budget", [180, pytest.param(4000, marks=pytest.mark.slow)])
def test_logprobs_loss_and_gradients_are_transformers_own(
    recipe: dict[str, Any], data: list[Datum], judge: Judge, rows: list[dict[str, Any]], captions: Path, budget: int
) -> None:
    tokens = max(budget, *(len(datum) + 1 for datum in data))
    engine = finetooth.session({**recipe, "train": {**recipe["train"], "micro_batch_tokens": tokens}}).engine
    logprobs, loss = loss_of(judge, data, rows, captions.parent)
    found = engine.logprobs(data)
    for datum, ours, theirs in zip(data, found, logprobs, strict=True):
        np.testing.assert_allclose(ours[datum.mask], theirs[datum.mask], rtol=1e-4, atol=1e-5)
    result = engine.forward_backward(data, session_loss(recipe))
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    theirs = dict(judge.model.named_parameters())
    ours = dict(engine._parts.network.base.named_parameters())  # type: ignore[attr-defined]
    largest = max(float(parameter.grad.abs().max()) for parameter in theirs.values() if parameter.grad is not None)
    most = 5e-4 if judge.model.config.model_type == "phi4_multimodal" else 1e-4  # 1,024 patches: sums in another order
    compared = 0
    for name, parameter in theirs.items():
        if parameter.grad is None:
            continue
        compared += any(tower in name for tower in ("visual", "vision_tower", "vision_model", "img_processor"))
        # a key's bias has no gradient but rounding: what is small beside all others counts as little
        scale = max(float(parameter.grad.abs().max()), 1e-3 * largest)
        torch.testing.assert_close(ours[name].grad / scale, parameter.grad / scale, rtol=1e-3, atol=most, msg=name)
    assert compared > 10


def session_loss(recipe: dict[str, Any]) -> Any:
    return finetooth.session(recipe).job.context.loss("cross_entropy")


def test_the_pixels_reach_the_model(recipe: dict[str, Any], data: list[Datum]) -> None:
    engine = finetooth.session(recipe).engine
    datum = data[3]  # with two images
    inverted = io.BytesIO()
    ImageOps.invert(Image.open(io.BytesIO(datum.media[1][1].data)).convert("RGB")).save(inverted, "PNG")
    changed = replace(datum.media[1][1], data=inverted.getvalue())
    chunks = tuple(changed if chunk is datum.media[1][1] else chunk for chunk in datum.input)
    first, second = engine.logprobs([datum, replace(datum, input=chunks)])
    assert np.abs(first - second)[datum.mask].max() > 1e-4
