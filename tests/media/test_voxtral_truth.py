"""Voxtral: tokens of sounds are mistral-common's, log-probabilities and gradients those of transformers' forward."""

from __future__ import annotations

import wave
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import transformers
from finetooth_hooks import Datum

pytestmark = pytest.mark.slow

PIECE = 480_000
Rows = list[list[dict[str, Any]]]


@pytest.fixture
def recipe(voxtral: Path, heard: Path) -> dict[str, Any]:
    return {
        "model": str(voxtral),
        "data": {"train": str(heard), "cache": "off", "renderer": "jinja"},
        "adapter": {"name": "full"},
        "train": {"max_steps": 1, "batch_size": 4, "max_length": 1024, "precision": "fp32"},
    }


@pytest.fixture
def data(recipe: dict[str, Any]) -> list[Datum]:
    session = finetooth.session(recipe)
    how = session.job.context.data.prepared_as["train"]
    return list(session.job.context.prepare("train", how.rendering, how.limit).data)


def samples_of(messages: list[dict[str, Any]], folder: Path) -> list[np.ndarray[Any, Any]]:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    sounds = []
    for part in parts:
        if part["type"] == "audio":
            with wave.open(str(folder / part["audio"])) as file:
                sounds.append(np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15)
    return sounds


def tokens_of(sound: np.ndarray[Any, Any]) -> list[int]:
    """By mistral-common, as Voxtral's tokenizer sets it up."""
    audio = pytest.importorskip("mistral_common.audio", reason="mistral-common is not installed")
    encoders = pytest.importorskip("mistral_common.tokens.tokenizers.audio")
    spectrum = encoders.AudioSpectrogramConfig(num_mel_bins=128, hop_length=160, window_size=400)
    config = encoders.AudioConfig(sampling_rate=16_000, frame_rate=12.5, encoding_config=spectrum, chunk_length_s=30.0)
    known = {"audio": 24, "begin_audio": 25}  # newer versions have further ones
    ids = {field.name: known.get(field.name) for field in fields(encoders.SpecialAudioIDs)}
    encoder = encoders.AudioEncoder(config, encoders.SpecialAudioIDs(**ids))
    chunks = pytest.importorskip("mistral_common.protocol.instruct.chunk")
    heard = audio.Audio(audio_array=sound, sampling_rate=16_000, format="wav")
    return list(encoder(chunks.AudioChunk.from_audio(heard)).tokens)


def inputs(folder: Path, messages: list[dict[str, Any]], sounds_in: Path) -> dict[str, Any]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    sounds = samples_of(messages, sounds_in)
    following = iter(sounds)
    ids = [[id_] if id_ != 24 else tokens_of(next(following)) for id_ in tokenizer(text)["input_ids"]]
    made = {"input_ids": torch.tensor([list(chain.from_iterable(ids))])}
    if sounds:
        filled = [np.pad(sound, (0, -len(sound) % PIECE)) for sound in sounds]
        features = [extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_features"] for sound in filled]
        made["input_features"] = torch.cat(features)
    return made


def test_rows_are_what_the_model_hears(
    recipe: dict[str, Any], data: list[Datum], voxtral: Path, heard: Path, heard_rows: Rows
) -> None:
    model = transformers.VoxtralForConditionalGeneration.from_pretrained(voxtral).float().train()
    session = finetooth.session({**recipe, "train": {**recipe["train"], "micro_batch_tokens": 900}})
    engine, total, count = session.engine, torch.zeros(()), 0
    for datum, messages, ours in zip(data, heard_rows, engine.logprobs(data), strict=True):
        made = inputs(voxtral, messages, heard.parent)
        assert [*datum.placeholder_tokens.tolist(), int(datum.targets[-1])] == made["input_ids"][0].tolist()
        labels = torch.full((1, len(datum) + 1), -100)
        labels[0, 1:][torch.from_numpy(datum.mask.copy())] = torch.from_numpy(datum.targets[datum.mask])
        logits = model(**made).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], labels[0, 1:], ignore_index=-100, reduction="none")
        np.testing.assert_allclose(ours[datum.mask], -losses.detach().numpy()[datum.mask], rtol=1e-4, atol=1e-5)
        total, count = total + losses.sum(), count + int(datum.mask.sum())
    loss = total / count
    result = engine.forward_backward(data, session.job.context.loss("cross_entropy"))
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    own = dict(engine._parts.network.base.named_parameters())  # type: ignore[attr-defined]
    theirs = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert sum("audio_tower" in name for name in theirs) > 10
    for name, gradient in theirs.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        torch.testing.assert_close(own[name].grad / scale, gradient / scale, rtol=1e-3, atol=1e-4, msg=name)
