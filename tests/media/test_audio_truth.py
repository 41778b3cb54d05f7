"""Tokens, log-probabilities, loss and gradients of rows with sounds, against transformers alone: its own processor over
its own rendering, one row at a time through its own forward with labels of -100."""

from __future__ import annotations

import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import transformers
from finetooth_hooks import AudioChunk, Datum

RATE = 16_000
Rows = list[list[dict[str, Any]]]


@pytest.fixture
def recipe(qwen_audio: Path, heard: Path) -> dict[str, Any]:
    return {
        "model": str(qwen_audio),
        "data": {"train": str(heard), "cache": "off"},
        "adapter": {"name": "full"},
        "train": {"max_steps": 1, "batch_size": 4, "max_length": 1024, "precision": "fp32"},
    }


@pytest.fixture
def session(recipe: dict[str, Any]) -> Any:
    return finetooth.session(recipe)


@pytest.fixture
def data(session: Any) -> list[Datum]:
    how = session.job.context.data.prepared_as["train"]
    return list(session.job.context.prepare("train", how.rendering, how.limit).data)


def samples_of(path: Path) -> np.ndarray[Any, Any]:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15


class Judge:
    """What transformers makes of a row."""

    def __init__(self, folder: Path) -> None:
        self.processor: Any = transformers.AutoProcessor.from_pretrained(folder)
        self.model: Any = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder).float().train()

    def inputs(self, messages: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
        text = self.processor.apply_chat_template(messages, tokenize=False)
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        sounds = [samples_of(folder / part["audio"]) for part in parts if part["type"] == "audio"]
        if not sounds:
            return dict(self.processor.tokenizer(text, return_tensors="pt"))
        return dict(self.processor(text=text, audio=sounds, sampling_rate=RATE, return_tensors="pt"))


@pytest.fixture
def judge(qwen_audio: Path) -> Judge:
    return Judge(qwen_audio)


def whole(datum: Datum) -> list[int]:
    return [*datum.placeholder_tokens.tolist(), int(datum.targets[-1])]


def test_tokens_are_those_of_the_models_own_processor(
    data: list[Datum], judge: Judge, heard: Path, heard_rows: Rows
) -> None:
    for datum, messages in zip(data, heard_rows, strict=True):
        assert whole(datum) == judge.inputs(messages, heard.parent)["input_ids"][0].tolist()
    assert [[len(chunk) for _, chunk in datum.media] for datum in data] == [[10], [22, 40], [40, 22], []]


def test_exactly_the_answers_train(data: list[Datum], judge: Judge, heard_rows: Rows) -> None:
    sound = judge.processor.audio_token_id
    for datum, messages in zip(data, heard_rows, strict=True):
        trained = datum.targets[datum.mask]
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert judge.processor.tokenizer.decode(trained) == "".join(f"{said}<|im_end|>" for said in answers)
        assert sound not in trained and all(isinstance(chunk, AudioChunk) for _, chunk in datum.media)


@pytest.mark.parametrize("budget", [130, pytest.param(4000, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_transformers_own(
    recipe: dict[str, Any], data: list[Datum], judge: Judge, heard: Path, heard_rows: Rows, budget: int
) -> None:
    session = finetooth.session({**recipe, "train": {**recipe["train"], "micro_batch_tokens": budget}})
    engine, total, count = session.engine, torch.zeros(()), 0
    for datum, messages, ours in zip(data, heard_rows, engine.logprobs(data), strict=True):
        labels = torch.full((1, len(datum) + 1), -100)
        labels[0, 1:][torch.from_numpy(datum.mask.copy())] = torch.from_numpy(datum.targets[datum.mask])
        logits = judge.model(**judge.inputs(messages, heard.parent)).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], labels[0, 1:], ignore_index=-100, reduction="none")
        np.testing.assert_allclose(ours[datum.mask], -losses.detach().numpy()[datum.mask], rtol=1e-4, atol=1e-5)
        total, count = total + losses.sum(), count + int(datum.mask.sum())
    loss = total / count
    result = engine.forward_backward(data, session.job.context.loss("cross_entropy"))
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    ours_by_name = dict(engine._parts.network.base.named_parameters())  # type: ignore[attr-defined]
    theirs = {name: one.grad for name, one in judge.model.named_parameters() if one.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        # a key's bias has no gradient but rounding: what is small beside all others counts as little
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        found = ours_by_name[name].grad
        torch.testing.assert_close(found / scale, gradient / scale, rtol=1e-3, atol=1e-4, msg=name)
    assert sum("audio_tower" in name for name in theirs) > 10


def test_the_sound_reaches_the_model(session: Any, data: list[Datum], make_sound: Callable[..., bytes]) -> None:
    datum = data[0]
    other = replace(datum.media[0][1], data=make_sound(3000, 0.4))
    chunks = tuple(other if chunk is datum.media[0][1] else chunk for chunk in datum.input)
    first, second = session.engine.logprobs([datum, replace(datum, input=chunks)])
    assert np.abs(first - second)[datum.mask].max() > 1e-4
