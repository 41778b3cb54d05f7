"""Reward models end to end: trained, exported, loaded by transformers and peft, which score alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Message
from finetooth_toolbox.messages.answers import rendered_answer, step_tokens, text_datum

Make = Callable[..., dict[str, Any]]
TEXTS = [("2+2?", "4"), ("And the capital of France?", "Paris, of course."), ("2+2?", "No idea at all.")]


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Any]:
    """The shorter answer is preferred."""
    rows = [{"prompt": f"What is {i}?", "chosen": f"{i}", "rejected": f"No idea about {i} at all."} for i in range(32)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": f"{file}[:24]", "eval": f"{file}[24:]", "renderer": "chatml"}


def opened(folder: Path) -> Any:
    """Session and engine of a run's trained model."""
    from finetooth_core.settings.run_recipe import recipe_of
    from finetooth_saving.run_folder import artifact_of

    session = finetooth.session(recipe_of(folder), data=False)
    session.engine.restore(artifact_of(folder))
    return session


def ours(session: Any, tokens: list[tuple[int, ...]]) -> list[float]:
    found = session.engine.forward([text_datum(t) for t in tokens], returns=("scores",), train=False).outputs
    return [float(each["scores"]) for each in found]


def theirs(model: Any, tokens: list[tuple[int, ...]], pad: int) -> list[float]:
    """One padded batch through transformers."""
    import torch

    ids = torch.full((len(tokens), max(map(len, tokens))), pad)
    for row, own in enumerate(tokens):
        ids[row, : len(own)] = torch.tensor(own)
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=(ids != pad).long()).logits
    return logits.squeeze(-1).tolist()


@pytest.mark.parametrize("adapter", ["full", "freeze", "lora"])
def test_transformers_scores_identically(recipe: Make, pairs: Any, tmp_path: Path, adapter: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pick = {"lora": {"name": "lora", "rank": 4}, "freeze": {"name": "freeze", "layers": 1}}.get(adapter, adapter)
    made = recipe(method={"name": "rm", "center_rewards_coefficient": 0.01}, data=pairs, adapter=pick)
    made["optimizer"]["learning_rate"] = 3e-3
    made["train"]["epochs"] = 6
    outcome = finetooth.run(made)
    folder = tmp_path / "run"
    assert outcome.metrics["eval/accuracy"] == 1.0 and outcome.metrics["eval/accuracy_low"] > 0.6
    assert outcome.metrics["loss"] < 0.3

    session = opened(folder)
    context = session.job.context
    tokens = [rendered_answer((Message("user", q),), (Message("assistant", a),), context).tokens for q, a in TEXTS]
    scores = ours(session, tokens)
    pad = context.tokenizer.pad_id
    if adapter == "lora":
        from click.testing import CliRunner
        from finetooth_core.cli.start_options import StartOptions
        from finetooth_core.cli.state import State
        from finetooth_lora.merge import command
        from peft import AutoPeftModelForSequenceClassification

        beside = AutoPeftModelForSequenceClassification.from_pretrained(
            str(folder / "artifact"), num_labels=1, pad_token_id=pad
        )
        assert theirs(beside, tokens, pad) == pytest.approx(scores, abs=1e-5)
        result = CliRunner().invoke(command, [str(folder)], obj=State(StartOptions()), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    where = folder / ("merged" if adapter == "lora" else "artifact")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(where, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (loaded.config.num_labels, loaded.config.pad_token_id) == (1, pad)
    assert theirs(loaded, tokens, pad) == pytest.approx(scores, abs=1e-5)
    assert max(scores) - min(scores) > 0.05
    # and from text, as its users call it
    tokenizer = AutoTokenizer.from_pretrained(where)
    chat = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TEXTS]
    written = [tuple(tokenizer.apply_chat_template(each, tokenize=True, return_dict=False)) for each in chat]
    assert [own[-len(t) :] for own, t in zip(written, tokens, strict=True)] == [*tokens]


def test_a_process_reward_model_is_a_token_classifier(recipe: Make, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForTokenClassification

    rows = [
        {"prompt": f"{i}+{i}?", "completions": [f"{i} twice.", f"So {2 * i + i % 2}."], "labels": [True, i % 2 == 0]}
        for i in range(32)
    ]
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = recipe(
        method="prm", adapter="full", data={"train": f"{file}[:24]", "eval": f"{file}[24:]", "renderer": "chatml"}
    )
    made["train"]["max_steps"] = 3
    outcome = finetooth.run(made)
    assert {"eval/balanced_accuracy", "eval/balanced_accuracy_low"} <= outcome.metrics.keys()
    session = opened(tmp_path / "run")
    context = session.job.context
    separator = context.tokenizer.encode("\n")
    tokens, ends = step_tokens((Message("user", "3+3?"),), ("3 twice.", "So 7."), context, separator)
    (found,) = session.engine.forward([text_datum(tokens, ends)], returns=("values",), train=False).outputs
    loaded, info = AutoModelForTokenClassification.from_pretrained(
        tmp_path / "run" / "artifact", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.id2label == {0: "bad", 1: "good"}
    with torch.no_grad():
        logits = loaded.eval()(input_ids=torch.tensor([tokens])).logits[0]
    good = torch.softmax(logits, dim=-1)[list(ends), 1].numpy()
    values = found["values"][list(ends)]
    np.testing.assert_allclose(1 / (1 + np.exp(-values)), good, atol=1e-5)
    (row,) = ({"labels": torch.full((len(tokens),), -100)},)
    row["labels"][list(ends)] = torch.tensor([1, 0])
    loss = loaded(input_ids=torch.tensor([tokens]), labels=row["labels"][None]).loss
    wanted = -np.mean([np.log(good[0]), np.log(1 - good[1])])
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_numbers_are_learnt_from_texts(recipe: Make, tmp_path: Path) -> None:
    rows = [{"text": "good " * (i % 4) + "day", "label": i % 4 / 2} for i in range(24)]
    file = tmp_path / "rated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = {"name": "labelled", "prompt": "", "completion": "text"}
    made = recipe(method="rm", adapter="full", data={"train": str(file), "eval": str(file), "format": form})
    made["optimizer"]["learning_rate"] = 1e-3
    made["train"]["epochs"] = 8
    outcome = finetooth.run(made)
    assert outcome.metrics["eval/mse"] < 0.15 and outcome.metrics["eval/correlation"] > 0.8


def test_a_run_or_a_foreign_classifier_scores_files_and_answers(
    recipe: Make, pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ft score` and `reward: model`, by a run's name, and with a folder that transformers made, without any run."""
    import torch
    from finetooth_core.cli import main
    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    strict = {"name": "chatml", "default_system": "Be strict."}  # not what the model's family would say
    made = recipe(method="rm", data={**pairs, "renderer": strict}, output="runs/rm-1")
    made["train"]["max_steps"] = 2
    finetooth.run(made)
    session = opened(tmp_path / "runs" / "rm-1")
    context = session.job.context
    with torch.random.fork_rng():
        torch.manual_seed(1)
        foreign = AutoModelForSequenceClassification.from_pretrained(
            made["model"], num_labels=1, pad_token_id=context.tokenizer.pad_id
        )
    foreign.save_pretrained("foreign")
    context.tokenizer.save(Path("foreign"))
    tokens = [rendered_answer((Message("user", q),), (Message("assistant", a),), context).tokens for q, a in TEXTS]
    wanted = {"rm-1": ours(session, tokens), "foreign": theirs(foreign, tokens, context.tokenizer.pad_id)}
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in TEXTS]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for model, scores in wanted.items():
        assert main(["score", model, "rows.jsonl", "--output", f"{model}.jsonl"]) == 0
        found = [json.loads(line)["score"] for line in Path(f"{model}.jsonl").read_text().splitlines()]
        if model == "rm-1":  # a folder without a run speaks as its family does
            assert found == pytest.approx(scores, abs=1e-5)
        reward = context.build("reward", {"name": "model", "path": model})
        if model == "rm-1":
            assert reward([q for q, _ in TEXTS], [a for _, a in TEXTS], {}) == pytest.approx(scores, abs=1e-5)
    opened_ = context.open("foreign", {"train": {"precision": "fp32"}})
    found = opened_.engine.forward([text_datum(t) for t in tokens], returns=("scores",), train=False).outputs
    assert [float(each["scores"]) for each in found] == pytest.approx(wanted["foreign"], abs=1e-5)
