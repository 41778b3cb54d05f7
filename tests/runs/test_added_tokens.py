"""Tokens that a recipe adds: their rows train, and whoever loads the artifact computes the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_core.cli import main
from finetooth_hooks import Datum, RecipeError
from finetooth_lora.merge import find, merged
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Recipe = dict[str, Any]
NEW: list[Any] = [{"token": "<tool>", "special": False}, {"token": "</tool>", "special": False}, "<|call|>"]


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, its head tied to the embedding or not."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if request.param == "untied":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)
    else:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def asked(base: Path, recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe over rows that use the new tokens."""
    rows = [
        {"messages": [{"role": "user", "content": f"call {i}"}, {"role": "assistant", "content": f"<tool>{i}</tool>"}]}
        for i in range(8)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(**sections: Any) -> Recipe:
        model = {"name": str(base), "added_tokens": NEW}
        settings = {"max_steps": 2, "batch_size": 4, "precision": "fp32"}
        return recipe(**{"model": model, "data": {"train": str(data)}, "train": settings, **sections})

    return make


def scored(engine: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    return np.asarray(engine.logprobs([Datum.from_tokens(ids)])[0])


def by_transformers(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])
    return np.asarray(picked[:, 0])


def test_peft_and_the_merged_model_compute_what_was_trained(asked: Callable[..., Recipe], base: Path) -> None:
    session = finetooth.session(
        asked(adapter={"name": "lora", "rank": 2}, optimizer={"name": "adamw", "learning_rate": 0.05})
    )
    outcome = session.run()
    rows = int(json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    tokenizer = AutoTokenizer.from_pretrained(outcome.artifact)
    assert tokenizer.convert_tokens_to_ids("<tool>") == rows  # the tiny model has a row for each token, no more
    ids = tokenizer("call <tool>1</tool><|call|>", add_special_tokens=False)["input_ids"]
    assert set(range(rows, rows + 3)) <= set(ids)
    trained = load_file(outcome.artifact / "adapter_model.safetensors")
    moved = [tensor for name, tensor in trained.items() if "trainable_tokens_delta" in name]
    tied = bool(json.loads((base / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"])
    assert len(moved) == (1 if tied else 2)
    assert all((tensor[0] != tensor[1]).any() for tensor in moved)  # they began alike
    engine = scored(session.engine, ids)
    peft = AutoPeftModelForCausalLM.from_pretrained(outcome.artifact)
    np.testing.assert_allclose(by_transformers(peft, ids), engine, atol=2e-5)
    whole = find(session.folder, session.folder / "merged")
    loader = session.job.context.loader
    model = merged(loader.load(str(base), framework="torch", precision="fp32", device="cpu"), whole.adapter)
    np.testing.assert_allclose(by_transformers(model, ids), engine, atol=2e-5)
    assert main(["merge", str(session.folder), "--output", str(session.folder / "merged")]) == 0
    model = AutoModelForCausalLM.from_pretrained(session.folder / "merged")
    np.testing.assert_allclose(by_transformers(model, ids), engine, atol=2e-5)


@pytest.mark.parametrize("base", ["tied"], indirect=True)
@pytest.mark.parametrize("command", ["merge", "export --to safetensors precision=fp32 --unmeasured"])
def test_an_addition_to_the_head_is_merged_with_the_rows_of_new_tokens(
    asked: Callable[..., Recipe], command: str
) -> None:
    """Of a tied model, whose head gets a weight of its own by that."""
    adapter = {"name": "lora", "rank": 2, "targets": ["q_proj", "lm_head"]}
    session = finetooth.session(asked(adapter=adapter, optimizer={"name": "adamw", "learning_rate": 0.05}))
    outcome = session.run()
    tokenizer = AutoTokenizer.from_pretrained(outcome.artifact)
    ids = tokenizer("call <tool>1</tool><|call|>", add_special_tokens=False)["input_ids"]
    engine, folder, (name, *options) = scored(session.engine, ids), session.folder / "whole", command.split()
    peft = AutoPeftModelForCausalLM.from_pretrained(outcome.artifact)
    np.testing.assert_allclose(by_transformers(peft, ids), engine, atol=2e-5)
    assert main([name, str(session.folder), *options, "--output", str(folder)]) == 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not model.config.tie_word_embeddings
    np.testing.assert_allclose(by_transformers(model, ids), engine, atol=2e-5)


def test_the_reference_is_the_base(asked: Callable[..., Recipe]) -> None:
    """Switched off, the rows are the mean again."""
    session = finetooth.session(
        asked(adapter={"name": "lora", "rank": 2}, optimizer={"name": "adamw", "learning_rate": 0.05})
    )
    ids = session.job.context.tokenizer.encode("call <tool>1</tool>")
    before = scored(session.engine, ids)
    session.run()
    after = np.asarray(session.engine.logprobs([Datum.from_tokens(ids)], role="reference")[0])
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert np.abs(scored(session.engine, ids) - before).max() > 1e-3


def test_full_training_widens_the_model(asked: Callable[..., Recipe], base: Path) -> None:
    outcome = finetooth.run(asked(adapter="full"))
    model = AutoModelForCausalLM.from_pretrained(outcome.artifact)
    rows = int(json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    assert model.config.vocab_size == rows + 3 == model.get_input_embeddings().weight.shape[0]


def test_frozen_embeddings_of_new_tokens_are_refused(asked: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"model\.added_tokens: the embeddings of the 3 new tokens would not train"):
        _ = finetooth.session(asked(adapter={"name": "freeze", "layers": 1})).job


def test_the_plan_says_that_new_tokens_stay_as_they_began(asked: Callable[..., Recipe]) -> None:
    plans = [
        finetooth.session(asked(adapter={"name": "lora", "train_new_tokens": trained})).plan
        for trained in (True, False)
    ]
    said = [[note for note in plan.notes if "adapter.train_new_tokens" in note] for plan in plans]
    assert said[0] == []
    assert len(said[1]) == 1 and "keeps the initial embeddings of 3 new tokens" in said[1][0]


def test_they_do_not_change_the_renderer(asked: Callable[..., Recipe], tiny_smollm2: Path) -> None:
    """Families tell it by the size of the vocabulary, which is another one now."""
    recipe = asked(model={"name": str(tiny_smollm2), "added_tokens": NEW})
    recipe["data"] = {"train": recipe["data"]["train"]}
    assert finetooth.session(recipe).plan.picks["renderer"] == "finetooth-chatml:chatml"


def test_new_rows_begin_as_the_mean(asked: Callable[..., Recipe], base: Path) -> None:
    context = finetooth.session(asked()).job.context
    assert context.decisions["model.added_tokens"].value == 3
    model = context.loader.load(str(base), framework="torch", precision="fp32", device="cpu")
    old = AutoModelForCausalLM.from_pretrained(base)
    for new, was in (
        (model.get_input_embeddings(), old.get_input_embeddings()),
        (model.get_output_embeddings(), old.get_output_embeddings()),
    ):
        np.testing.assert_allclose(new.weight[-3:].detach(), was.weight.mean(0).detach().expand(3, -1), atol=1e-7)
        assert torch.equal(new.weight[:-3], was.weight)


@pytest.mark.slow
def test_reserved_tokens_take_another_spelling(
    asked: Callable[..., Recipe], tiny_smollm2: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_smollm2)
    reserved = tokenizer.convert_tokens_to_ids(tokenizer.pad_token)
    model = {"name": str(tiny_smollm2), "added_tokens_overrides": {str(reserved): "<tool>"}}
    context = finetooth.session(asked(model=model)).job.context
    assert context.tokenizer.token_id("<tool>") == reserved
    context.tokenizer.save(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("<tool>", add_special_tokens=False)["input_ids"] == [reserved]


def test_the_model_is_described_once(asked: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is the header of every file of weights."""
    from finetooth_transformers.loader import TransformersLoader

    described: list[str] = []
    describe = TransformersLoader.describe
    monkeypatch.setattr(
        TransformersLoader, "describe", lambda self, name: described.append(name) or describe(self, name)
    )
    _ = finetooth.session(asked()).job
    assert len(described) == 1


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"added_tokens": ["<tool>", "<tool>"]}, "added_tokens"),
        ({"special_tokens": {"eos_token": "<nowhere>"}}, r"special_tokens\.eos_token: '<nowhere>' is not in the vocab"),
        ({"special_tokens": {"eos": "<tool>"}}, "special_tokens"),
        ({"added_tokens_overrides": {"999999": "<tool>"}}, "has no id 999999"),
        ({"added_tokens_overrides": {"500": "<tool>"}}, "is a token of text, not a reserved one"),
    ],
)
def test_what_cannot_be_changed_is_refused(
    asked: Callable[..., Recipe], base: Path, model: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        _ = finetooth.session(asked(model={"name": str(base), **model})).job


def test_the_cache_key_does_not_depend_on_where_a_run_writes(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    """Catalogue 2.12: the tokens are in it, the folder is not."""
    from finetooth_rows.storage import key

    def digest(**sections: Any) -> str:
        return key._tokenizer(finetooth.session(asked(**sections)).job.context.tokenizer)

    assert digest(output=str(tmp_path / "one")) == digest(output=str(tmp_path / "two"))
    other = asked()
    other["model"] = {**other["model"], "added_tokens": ["<other>"]}
    assert digest() != key._tokenizer(finetooth.session(other).job.context.tokenizer)
