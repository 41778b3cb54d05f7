"""The reward `model` and `ft score`: what they ask an engine, what they say, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from finetooth_hooks import DataError, Example, Message, Method, PlanError, ScalarHead, UserError
from finetooth_hooks.data.examples import Conversation, Labelled, Pair, Stepwise, Task, Text
from finetooth_hooks.protocols import Examples
from finetooth_kit import FakeContext, FakeEngine, parametrize_with_checks
from finetooth_kit.fake_context import MODEL, FakeOpened
from finetooth_rewardmodel import command
from finetooth_rewardmodel.scorer import Scorer
from finetooth_rewardmodel.scorer import Text as Scorable

SEQUENCE = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
PRM = Method(name="prm", build="a:b", head=ScalarHead(bias=True, exported_as="token"))


@parametrize_with_checks("finetooth_rewardmodel.plugin")
def test_conforms(check: Any) -> None:
    check()


def said(role: str, text: str) -> tuple[Message, ...]:
    return (Message(role, text),)


def opened(tmp_path: Path, *examples: Example, method: str = "", **options: Any) -> FakeOpened:
    rows = tuple((f"rows.jsonl:{i}", example) for i, example in enumerate(examples, start=1))
    context = FakeContext(
        tmp_path, entries=(PRM,), given={"eval": Examples("eval", rows)}, model=replace(MODEL, config=SEQUENCE)
    )
    return FakeOpened(FakeEngine(context.tokenizer), context, method, options)


@dataclass
class Commands:
    """A command context that opens one model."""

    model: FakeOpened
    asked: Any = None

    def open(self, reference: str, changes: Any = None) -> FakeOpened:
        self.asked = reference, changes
        return self.model


def score(model: FakeOpened, *arguments: Any) -> Any:
    given = ["runs/rm-1", "rows.jsonl", *map(str, arguments)]
    return CliRunner().invoke(command.command, given, obj=Commands(model), catch_exceptions=False)


def expected(model: FakeOpened, prompt: str, answer: str) -> float:
    """What the fake engine says of the last token."""
    tokens = model.context.tokenizer.encode(f"user: {prompt}<|im_end|>assistant: {answer}<|im_end|>", special=True)
    return tokens[-1] / (1 + sum(tokens))


def test_a_completion_is_scored_as_an_answer_to_its_prompt(tmp_path: Path) -> None:
    model = opened(tmp_path)
    context = model.context
    context.models = {"runs/rm-1": model}
    context.entries = tuple(parametrized())
    reward = context.build("reward", {"name": "model", "path": "runs/rm-1"})
    found = reward(["q", "q", "other"], ["yes", " ", "no"], {})
    assert found[1] is None
    assert found[0] == pytest.approx(expected(model, "q", "yes"), rel=1e-6)
    assert found[2] == pytest.approx(expected(model, "other", "no"), rel=1e-6)


def test_a_completion_is_scored_in_its_conversation(tmp_path: Path) -> None:
    """Where a method gives all messages of the prompt; errors name the row."""
    model = opened(tmp_path)
    model.context.models, model.context.entries = {"runs/rm-1": model}, tuple(parametrized())
    reward = model.context.build("reward", {"name": "model", "path": "runs/rm-1"})
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "q"}]
    found = reward(["q", "q"], ["yes", "yes"], {"conversation": [talk, None], "row_id": ["rows:1", "rows:2"]})
    whole = "user: a<|im_end|>assistant: b<|im_end|>user: q<|im_end|>assistant: yes<|im_end|>"
    tokens = model.context.tokenizer.encode(whole, special=True)
    assert found == pytest.approx([tokens[-1] / (1 + sum(tokens)), expected(model, "q", "yes")], rel=1e-6)
    with pytest.raises(DataError, match=r"rows:2: .* tokens, and the model was made for"):
        reward(["q"] * 2, ["y", "y" * 100_000], {"conversation": [None] * 2, "row_id": ["rows:1", "rows:2"]})


def parametrized() -> Any:
    from finetooth_rewardmodel.plugin import ft_rewards

    return (PRM, *ft_rewards())


@pytest.mark.parametrize(("joined", "of"), [("min", np.min), ("product", np.prod), ("mean", np.mean)])
def test_a_process_reward_model_joins_its_steps(tmp_path: Path, joined: Any, of: Any) -> None:
    model = opened(tmp_path, method="prm", separator="##")
    scorer = Scorer(model, joined)
    (whole,) = scorer.score([Scorable("p ", "one##two##three")])
    assert len(whole.steps) == 3
    assert whole.score == pytest.approx(of(whole.steps))
    tokens = model.context.tokenizer.encode("p one##")
    assert whole.steps[0] == pytest.approx(1 / (1 + np.exp(-tokens[-1] / (1 + sum(tokens)))), rel=1e-6)
    (known,) = scorer.score([Scorable("p ", "", steps=("one", "two", "three"))])
    assert known == whole
    assert Scorer(model, "last").score([Scorable("p ", "one##two")])[0].score == pytest.approx(whole.steps[1])


def test_pairs_are_counted_with_interval_and_length(tmp_path: Path) -> None:
    pairs = [("short", "a much longer answer"), ("ok", "certainly not this"), ("the longest by far", "no")]
    model = opened(tmp_path, *(Pair(said("user", "q"), said("assistant", c), said("assistant", r)) for c, r in pairs))
    output = tmp_path / "out" / "scores.jsonl"
    result = score(model, "--output", output)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    wanted = [(expected(model, "q", c), expected(model, "q", r)) for c, r in pairs]
    for line, (chosen, rejected) in zip(lines, wanted, strict=True):
        assert (line["chosen"], line["rejected"]) == (
            pytest.approx(chosen, rel=1e-6),
            pytest.approx(rejected, rel=1e-6),
        )
    share = np.mean([c > r for c, r in wanted])
    assert f"chosen scores higher        {100 * share:.1f} %" in result.output
    assert "the longer answer would be  33.3 %" in result.output


def test_the_best_of_several_is_named(tmp_path: Path) -> None:
    answers = ["a long answer", "b", "some other"]
    model = opened(tmp_path, Task(said("user", "q"), {"responses": answers}))
    output = tmp_path / "scores.jsonl"
    assert "best of several" in score(model, "--output", output).output
    (line,) = map(json.loads, output.read_text().splitlines())
    scores = [expected(model, "q", answer) for answer in answers]
    assert line["scores"] == pytest.approx(scores, rel=1e-6) and line["best"] == int(np.argmax(scores))


def test_texts_conversations_labels_and_steps_are_scored(tmp_path: Path) -> None:
    rows: list[Example] = [
        Text("a document"), Conversation((*said("user", "q"), *said("assistant", "a"))),
        Labelled("p ", "c", 0.5), Stepwise("p ", ("one", "two"), (True, False)),
    ]  # fmt: skip
    output = tmp_path / "scores.jsonl"
    result = score(opened(tmp_path, *rows), "--output", output)
    assert result.exit_code == 0, result.output
    kinds = [json.loads(line)["kind"] for line in output.read_text().splitlines()]
    assert kinds == ["text", "text", "labelled", "steps"]
    judged = score(opened(tmp_path, rows[-1], method="prm"))
    assert "steps, balanced accuracy  50.0 %" in judged.output


def test_rows_without_an_answer_are_named_or_counted(tmp_path: Path) -> None:
    rows = (Labelled("p ", "c", 1.0), Labelled("p ", " ", 1.0), Task("p", {}))
    with pytest.raises(
        DataError, match=r"2 of 3 rows.*rows\.jsonl:2: the answer is empty; rows\.jsonl:3: it has a prompt"
    ):
        score(opened(tmp_path, *rows))
    result = score(opened(tmp_path, *rows), "--unusable", "drop")
    assert "1 row\n" in result.output and "left out: rows.jsonl:2: the answer is empty" in result.output
    with pytest.raises(DataError, match="no row can be scored"):
        score(opened(tmp_path, *rows[1:]), "--unusable", "drop")


def test_a_text_longer_than_the_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: \d+ tokens, and the model was made for 512"):
        score(opened(tmp_path, Labelled("", "x" * 600, 1.0)))


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = opened(tmp_path, Labelled("p ", "c", 1.0))
    model.context.model = MODEL
    with pytest.raises(PlanError, match="no scalar head"):
        score(model)


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    with pytest.raises(UserError, match=r"--output: .*there exists"):
        score(opened(tmp_path, Labelled("p ", "c", 1.0)), "--output", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "kept"
