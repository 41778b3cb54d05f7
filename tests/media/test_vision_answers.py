"""Answers to images, and preferences about them, against transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import transformers
from finetooth_core.cli import main
from finetooth_core.models.talk import TalkedTo
from finetooth_hooks import EngineError, Message, PlanError, Sampling
from finetooth_hooks.data.examples import Image, Placed
from finetooth_hooks.sampling import ShownPrompt
from finetooth_preference.mismatched import mismatched
from finetooth_toolbox.messages.media import chunks
from PIL import Image as Pictures
from PIL import ImageOps

PAIRS = (
    ("images/chelsea.jpg", "What animal is this?", "A tabby cat, seen close up.", "A dog."),
    ("images/coffee.jpg", "What is in the cup?", "Coffee.", "There is tea in it, with milk."),
)


@pytest.fixture
def pairs(captions: Path, tmp_path: Path) -> Path:
    """Pairs about images in the shape of LLaMA-Factory, and of TRL."""
    file = tmp_path / "pairs.jsonl"
    rows: list[dict[str, Any]] = []
    for n, (image, asked, chosen, rejected) in enumerate(PAIRS):
        content: Any = f"<image>{asked}" if n else [{"type": "image"}, {"type": "text", "text": asked}]
        rows.append({"images": [image], "prompt": [{"role": "user", "content": content}],
                     "chosen": chosen, "rejected": rejected})  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "images").mkdir()
    for image, *_ in PAIRS:
        (tmp_path / image).write_bytes((captions.parent / image).read_bytes())
    return file


def recipe(model: Path, data: Path, method: Any, output: Path | None = None) -> dict[str, Any]:
    return {
        "model": str(model),
        "data": {"train": str(data), "cache": "off"},
        "method": method,
        "adapter": {"name": "lora", "rank": 4},
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
        "train": {"max_steps": 3, "batch_size": 2, "max_length": 1024, "precision": "fp32", "shuffle": False},
        **({"output": str(output)} if output else {}),
    }


def theirs(folder: Path, image: Path, asked: str, said: str | None) -> dict[str, Any]:
    """Inputs of a row as transformers' own processors make them."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    pictures: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
    if said is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=said is None)
    opened = ImageOps.exif_transpose(Pictures.open(image)).convert("RGB")
    if "gemma" in type(transformers.AutoConfig.from_pretrained(folder)).__name__.lower():
        whole = transformers.Gemma3Processor(pictures, tokenizer, image_seq_length=4)
        return dict(whole(images=[opened], text=text, add_special_tokens=False, return_tensors="pt"))
    made = dict(pictures(images=[opened], return_tensors="pt"))
    cells = int(made["image_grid_thw"][0].prod() // 4)
    ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * cells), return_tensors="pt")["input_ids"]
    types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
    return {"input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids), **made}


def model_of(folder: Path) -> Any:
    classes: Any = transformers
    return classes.AutoModelForImageTextToText.from_pretrained(folder).float().eval()


def test_pairs_become_the_tokens_of_the_official_template(vision_model: Path, pairs: Path) -> None:
    session = finetooth.session(recipe(vision_model, pairs, "dpo"))
    how = session.job.context.data.prepared_as["train"]
    data = session.job.context.prepare("train", how.rendering, how.limit).data
    assert len(data) == 4
    for n, datum in enumerate(data):
        image, asked, *answers = PAIRS[n // 2]
        whole = [*datum.placeholder_tokens.tolist(), int(datum.targets[-1])]
        assert whole == theirs(vision_model, pairs.parent / image, asked, answers[n % 2])["input_ids"][0].tolist()
        assert len(datum.media) == 1 and datum.media[0][1].data == (pairs.parent / image).read_bytes()


def test_the_first_loss_of_pairs_is_that_of_the_paper(vision_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Policy and reference are the same at first: -log sigmoid(0); the policy's log-probabilities are transformers'."""
    session = finetooth.session(recipe(vision_model, pairs, "dpo"))
    how = session.job.context.data.prepared_as["train"]
    data = list(session.job.context.prepare("train", how.rendering, how.limit).data)
    found = session.engine.logprobs(data)
    judge = model_of(vision_model)
    for n, (datum, ours) in enumerate(zip(data, found, strict=True)):
        image, asked, *answers = PAIRS[n // 2]
        with torch.no_grad():
            logits = judge(**theirs(vision_model, pairs.parent / image, asked, answers[n % 2])).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, torch.from_numpy(datum.targets.copy())[:, None])[:, 0].numpy()
        np.testing.assert_allclose(ours[datum.mask], expected[datum.mask], rtol=1e-4, atol=2e-5)
    outcome = finetooth.run(recipe(vision_model, pairs, "dpo", tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert outcome.steps == 3 and losses[0] == pytest.approx(np.log(2), rel=1e-5) and losses[-1] < losses[0]


def test_a_reference_reckoned_before_training_sees_the_images(
    qwen_vl: Path, pairs: Path, tmp_path: Path, cache: Path
) -> None:
    """The first loss is that of equal policy and reference; another image under the same name is scored anew."""

    def first_loss(output: str) -> float:
        method = {"name": "dpo", "reference": {"policy": "precomputed"}}
        finetooth.run(recipe(qwen_vl, pairs, method, tmp_path / output))
        lines = [json.loads(line) for line in (tmp_path / output / "metrics.jsonl").read_text().splitlines()]
        return float(next(line["loss"] for line in lines if "loss" in line))

    assert first_loss("one") == pytest.approx(np.log(2), rel=1e-5)
    swapped = [(pairs.parent / image) for image, *_ in PAIRS]
    first, second = (file.read_bytes() for file in swapped)
    swapped[0].write_bytes(second)
    swapped[1].write_bytes(first)
    assert first_loss("two") == pytest.approx(np.log(2), rel=1e-5)


def test_kto_estimates_its_kl_on_images(qwen_vl: Path, pairs: Path, tmp_path: Path) -> None:
    """An answer to another prompt is one to that prompt's image: what transformers' own processors make of it."""
    labelled = pairs.with_name("labelled.jsonl")
    said = [(image, asked, answer) for image, asked, answer, _ in PAIRS]
    rows = [{"images": [image], "prompt": [{"role": "user", "content": f"<image>{asked}"}],
             "completion": [{"role": "assistant", "content": answer}], "label": not n}
            for n, (image, asked, answer) in enumerate(said)]  # fmt: skip
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    session = finetooth.session(recipe(qwen_vl, labelled, "kto"))
    how = session.job.context.data.prepared_as["train"]
    data = list(session.job.context.prepare("train", how.rendering, how.limit).data)
    for n, datum in enumerate(mismatched(data, 1024)):
        image, asked, _ = said[n]
        whole = [*datum.placeholder_tokens.tolist(), int(datum.targets[-1])]
        assert whole == theirs(qwen_vl, pairs.parent / image, asked, said[n - 1][2])["input_ids"][0].tolist()
        assert [one.data for _, one in datum.media] == [(pairs.parent / image).read_bytes()]
    finetooth.run(recipe(qwen_vl, labelled, "kto", tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_reward_model_learns_from_images(gemma3: Path, pairs: Path, tmp_path: Path) -> None:
    finetooth.run(recipe(gemma3, pairs, "rm", tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_reward_model_that_nothing_could_load_is_refused(qwen_vl: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no sequence classifier"):
        finetooth.run(recipe(qwen_vl, pairs, "rm", tmp_path / "run"))


def shown(session: Any, image: Path, asked: str) -> ShownPrompt:
    message = Message("user", asked, media=(Placed(0, Image(image.name, path=image)),))
    read = session.job.context.renderer.shown_prompt([message])
    return ShownPrompt(read.tokens, tuple(chunks(read.media, "here")))


def test_greedy_answers_to_images_are_transformers_own(vision_model: Path, pairs: Path) -> None:
    """Prompts of two lengths in one batch, one without an image: padding, and positions behind an image."""
    session = finetooth.session(recipe(vision_model, pairs, "dpo"))
    asked = [shown(session, pairs.parent / image, question) for image, question, *_ in PAIRS]
    plain = session.job.context.renderer.prompt([Message("user", "Hello, what can you do?")])
    sampling = Sampling(max_tokens=6, temperature=0, stop_ids=(), n=2)
    found = session.engine.generate([*asked, plain], sampling)
    judge = model_of(vision_model)
    for (image, question, *_), prompt, answers in zip(PAIRS, asked, found, strict=False):
        given = theirs(vision_model, pairs.parent / image, question, None)
        assert list(prompt) == given["input_ids"][0].tolist()
        for _ in range(6):  # one token at a time, everything computed anew
            with torch.no_grad():
                token = judge(**given, use_cache=False).logits[0, -1].argmax()
            for name in ("input_ids", "mm_token_type_ids", "attention_mask", "token_type_ids"):
                if name in given:
                    more = {"input_ids": int(token), "attention_mask": 1}.get(name, 0)
                    given[name] = torch.cat([given[name], torch.tensor([[more]])], 1)
        assert answers[0].tokens == answers[1].tokens == tuple(given["input_ids"][0, -6:].tolist())
    alone = session.engine.generate([plain], sampling)
    assert alone[0][0].tokens == found[2][0].tokens


def test_what_is_seen_changes_the_answer(qwen_vl: Path, pairs: Path) -> None:
    session = finetooth.session(recipe(qwen_vl, pairs, "dpo"))
    prompt = shown(session, pairs.parent / PAIRS[0][0], "What is this?")
    other = shown(session, pairs.parent / PAIRS[1][0], "What is this?")
    if len(prompt) != len(other):
        pytest.skip("the images take different numbers of tokens")
    sampling = Sampling(max_tokens=4, temperature=0, stop_ids=())
    one, two = session.engine.generate([prompt, other], sampling)
    assert one[0].logprobs != two[0].logprobs


def test_a_model_of_text_refuses_an_image(tiny_llama: Path, pairs: Path, qwen_vl: Path) -> None:
    prompt = shown(finetooth.session(recipe(qwen_vl, pairs, "dpo")), pairs.parent / PAIRS[0][0], "What is this?")
    text = pairs.with_name("text.jsonl")
    text.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    engine = finetooth.session({"model": str(tiny_llama), "data": {"train": str(text)}}).engine
    with pytest.raises(EngineError, match="holds an image"):
        engine.generate([prompt], Sampling(max_tokens=2))


def test_chat_shows_an_image_and_keeps_it_as_a_row(
    qwen_vl: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.jsonl"
    asked = ["--prompt", "What is this?", "--max-tokens", "3", "--save", str(kept)]
    assert main(["chat", str(qwen_vl), "--image", str(pairs.parent / PAIRS[0][0]), *asked]) == 0
    said = capsys.readouterr().out
    row = json.loads(kept.read_text())
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text"]
    assert row["messages"][1]["content"].strip() in said
    assert main(["chat", str(qwen_vl), "--image", str(kept), "--prompt", "What?"]) == 2
    assert "it is not an image" in capsys.readouterr().err


def test_chat_refuses_an_image_before_weights_are_loaded(
    tiny_llama: Path, qwen_vl: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def never(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(TalkedTo, "engine", property(never))
    image, gone = str(pairs.parent / PAIRS[0][0]), str(tmp_path / "gone.png")
    for model, file, problem in (
        (tiny_llama, image, "takes neither images nor sound"),
        (qwen_vl, gone, f"image {gone}: it cannot be read"),
    ):
        assert main(["chat", str(model), "--image", file, "--prompt", "What?"]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert problem in said and "renderer" not in said
