"""Runs on sounds, from recipes: sft, preferences, answers; what a model or a reader does not take is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import transformers
from finetooth_chat.conversation import Conversation
from finetooth_hooks import DataError, Message, PlanError, RecipeError, Sampling
from finetooth_hooks.data.examples import Audio, Placed
from finetooth_hooks.sampling import ShownPrompt
from finetooth_toolbox.messages.media import chunks

RATE = 16_000


def recipe(model: Path, data: Path, method: Any = "sft", output: Path | None = None, **more: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "data": {"train": str(data), "cache": "off", **more},
        "method": method,
        "adapter": {"name": "lora", "rank": 4},
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
        "train": {"max_steps": 3, "batch_size": 4, "max_length": 1024, "precision": "fp32", "shuffle": False},
        **({"output": str(output)} if output else {}),
    }


def losses_of(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_sft_on_sounds_and_an_artifact_that_hears(audio_model: Path, heard: Path, tmp_path: Path) -> None:
    made = recipe(audio_model, heard, output=tmp_path / "run") | {"adapter": "full"}
    outcome = finetooth.run(made)
    assert outcome.status == "done" and outcome.steps == 3
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < losses[0]
    processor: Any = transformers.AutoProcessor.from_pretrained(tmp_path / "run" / "artifact")
    assert processor.feature_extractor.feature_size == 16 and processor.feature_extractor.chunk_length == 2


@pytest.fixture
def pairs(heard: Path) -> Path:
    rows = [
        {
            "prompt": [{"role": "user", "content": "<audio>What do you hear?"}],
            "chosen": "A tone.",
            "rejected": "It is a dog that barks.",
            "audio": f"sounds/{name}",
        }
        for name in ("low.wav", "high.wav")
    ]
    file = heard.parent / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_first_loss_of_pairs_is_that_of_the_paper(audio_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Policy and reference are the same at first: -log sigmoid(0)."""
    made = recipe(audio_model, pairs, "dpo", tmp_path / "run")
    session = finetooth.session(made)
    how = session.job.context.data.prepared_as["train"]
    data = list(session.job.context.prepare("train", how.rendering, how.limit).data)
    assert [[chunk.kind for _, chunk in datum.media] for datum in data] == [["audio"]] * 4
    finetooth.run(made)
    losses = losses_of(tmp_path / "run")
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5) and losses[-1] < losses[0]


def test_a_reward_model_that_nothing_could_load_is_refused(qwen_audio: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no sequence classifier"):
        finetooth.run(recipe(qwen_audio, pairs, "rm", tmp_path / "run"))


def test_greedy_answers_to_sounds_are_transformers_own(
    audio_model: Path, heard: Path, make_sound: Callable[..., bytes]
) -> None:
    """Prompts of two lengths in one batch, one without a sound."""
    session = finetooth.session(recipe(audio_model, heard))
    renderer, engine = session.job.context.renderer, session.engine
    processor: Any = transformers.AutoProcessor.from_pretrained(audio_model)
    judge: Any = transformers.AutoModelForMultimodalLM.from_pretrained(audio_model).float().eval()
    prompts, wanted = [], []
    for seconds in (0.5, 1.7, 0):
        content = make_sound(500, seconds) if seconds else b""
        media = (Placed(0, Audio("tone.wav", content=content)),) if seconds else ()
        read = renderer.shown_prompt([Message("user", "What is it?", media=media)])
        prompts.append(ShownPrompt(read.tokens, tuple(chunks(read.media, "here"))) if seconds else read.tokens)
        parts = [{"type": "audio", "audio": ""}] if seconds else []
        message = {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}
        text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        if seconds:
            samples = np.frombuffer(content[44:], "<i2").astype(np.float32) / 2**15
            inputs = processor(text=text, audio=[samples], sampling_rate=RATE, return_tensors="pt")
        else:
            inputs = processor.tokenizer(text, return_tensors="pt")
        assert list(read.tokens) == inputs["input_ids"][0].tolist()
        with torch.no_grad():
            found = judge.generate(**inputs, max_new_tokens=5, do_sample=False)
        wanted.append(found[0, len(read.tokens) :].tolist())
    answers = engine.generate(prompts, Sampling(max_tokens=5, temperature=0.0))
    assert [list(one[0].tokens) for one in answers] == wanted


def test_chat_plays_a_sound_and_keeps_it(
    qwen_audio: Path, heard: Path, tmp_path: Path, make_sound: Callable[..., bytes]
) -> None:
    from finetooth_chat.kept_talk import append_row

    session = finetooth.session(recipe(qwen_audio, heard))
    chat = Conversation(session.engine, session.job.context.renderer, Sampling(max_tokens=3, temperature=0.0), None)
    (tmp_path / "a.wav").write_bytes(make_sound(440, 0.5))
    chat.show(tmp_path / "a.wav", "audio")
    chat.answer("What is it?")
    assert [placed.medium.kind for placed in chat.messages[0].media] == ["audio"] and chat.shown == []
    assert append_row(tmp_path / "kept.jsonl", chat.messages).messages == 2
    row = json.loads((tmp_path / "kept.jsonl").read_text())
    assert [part["type"] for part in row["messages"][0]["content"]] == ["audio", "text"]
    again = finetooth.session(recipe(qwen_audio, tmp_path / "kept.jsonl"))
    how = again.job.context.data.prepared_as["train"]
    (datum,) = again.job.context.prepare("train", how.rendering, how.limit).data
    assert datum.media[0][1].data == (tmp_path / "a.wav").read_bytes()


def refusal(made: dict[str, Any]) -> str:
    """What the plan is refused with, for which rows are prepared and no weights loaded."""
    with pytest.raises((DataError, RecipeError)) as error:
        _ = finetooth.session(made).job
    assert "\n" not in str(error.value)
    return str(error.value)


def rows(file: Path, content: list[dict[str, Any]]) -> Path:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    file.write_text(json.dumps({"messages": messages}) + "\n")
    return file


def test_what_a_model_does_not_take_is_refused_by_name(
    qwen_audio: Path, qwen_vl: Path, tiny_llama: Path, tmp_path: Path, make_sound: Callable[..., bytes]
) -> None:
    (tmp_path / "a.wav").write_bytes(make_sound(440, 0.5))
    sound = rows(tmp_path / "a.jsonl", [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "?"}])
    assert "it has a sound" in refusal(recipe(qwen_vl, sound)) and "takes only image and video" in refusal(
        recipe(qwen_vl, sound)
    )
    image = rows(tmp_path / "b.jsonl", [{"type": "image", "base64": "aGk="}, {"type": "text", "text": "?"}])
    assert "it has an image" in refusal(recipe(qwen_audio, image))
    deaf = recipe(tiny_llama, sound, renderer="chatml")
    assert "it has 1 sound, and" in refusal({**deaf, "train": {"max_length": 256}})
    unspoken = recipe(qwen_audio, sound, renderer="chatml")
    assert "it has 1 sound, which the renderer cannot write" in refusal(unspoken)


def test_a_sound_that_the_model_would_not_hear_to_its_end_is_refused(
    qwen_audio: Path, tmp_path: Path, make_sound: Callable[..., bytes]
) -> None:
    (tmp_path / "a.wav").write_bytes(make_sound(440, 2.5))
    data = rows(tmp_path / "a.jsonl", [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "?"}])
    assert "audio a.wav: 2.5 s, and the model hears 2.0 s" in refusal(recipe(qwen_audio, data))


def test_settings_of_the_feature_extractor(
    qwen_audio: Path, heard: Path, tmp_path: Path, make_sound: Callable[..., bytes]
) -> None:
    """Another rate halves the samples and so the tokens; a bound on seconds; what is misspelt is named."""
    pytest.importorskip("soxr")

    def lengths(**processor: Any) -> list[int]:
        session = finetooth.session(recipe(qwen_audio, heard, processor={"name": "auto", **processor}))
        how = session.job.context.data.prepared_as["train"]
        found = session.job.context.prepare("train", how.rendering, how.limit).data
        return [len(chunk) for datum in found for _, chunk in datum.media]

    assert lengths() == [10, 22, 40, 40, 22]
    assert lengths(audio={"hop_length": 320, "chunk_length": 4}) == [5, 11, 20, 20, 11]
    for settings, said in (
        (
            {"audio": {"samplin_rate": 8000}},
            r"data.processor.audio: .* knows no 'samplin_rate'; did you mean sampling_",
        ),
        ({"longest": 1.0}, r"1.6 s, more than data.processor.longest=1"),
        ({"audi": {}}, "audi"),
    ):
        with pytest.raises((DataError, RecipeError), match=said):
            lengths(**settings)
