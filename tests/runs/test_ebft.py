"""`ebft` end to end: rewards and loss of a run are those of the paper's equations over transformers' hidden states."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_basicenvironments import conversation
from finetooth_hooks import Conversation, FinetoothError, Message, Observation
from finetooth_rollouts.rollouts_file import read_rollouts
from transformers import AutoModelForCausalLM

GROUP = 3
METHOD = {"name": "ebft", "num_generations": GROUP, "max_completion_length": 6, "rewards": [], "ce_coef": 0.25,
          "reference_column": "completion"}  # fmt: skip
DEPTHS = (0, 1, 1)
"""What a quarter, half and three quarters are of two layers."""


def feature(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        states = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
    parts = [states[depth][0, -1].double().numpy() for depth in DEPTHS]
    return np.concatenate([part / np.linalg.norm(part) for part in parts])


def test_a_run_is_the_papers_equations(
    online_recipe: Callable[..., Any], tiny_model: Path, metrics: Callable[..., Any], losses: Callable[..., Any]
) -> None:
    """The feature network is the policy without its adapter, so that of the base model's own code."""
    given = online_recipe(METHOD, {"batch_size": 4, "max_steps": 2})()
    given["optimizer"] = {"name": "adamw", "learning_rate": 3e-2}
    session = finetooth.session(given)
    references = {id_: of[-1].tokens for id_, of in session.job.method._references.items()}  # prompts are read by now
    assert finetooth.run(given).steps == 2
    folder = Path(given["output"])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for (step, rollouts), seen in zip(sorted(read_rollouts(folder)), metrics(folder), strict=True):
        aligned, alike, apart, advantages = [], [], [], []
        for start in range(0, len(rollouts), GROUP):
            group = rollouts[start : start + GROUP]
            samples = np.stack([feature(model, [*one.prompt, *one.tokens]) for one in group])
            reference = feature(model, [*group[0].prompt, *references[group[0].id]])
            cosine = samples @ reference / np.linalg.norm(samples, axis=1) / np.linalg.norm(reference)
            products = samples @ samples.T
            likeness = (products.sum(1) - np.diag(products)) / (GROUP - 1)
            rewards = 2 * cosine - 2 * likeness
            assert [one.reward for one in group] == pytest.approx(rewards.tolist(), abs=1e-5), step
            expected = [(GROUP * r - rewards.sum()) / (GROUP - 1) for r in rewards]
            assert [one.advantages[0] for one in group] == pytest.approx(expected, abs=1e-5)
            advantages += expected
            aligned += cosine.tolist()
            alike += likeness.tolist()
            apart.append(float(((samples.mean(0) - reference) ** 2).sum()))
        assert seen["ebft/alignment"] == pytest.approx(np.mean(aligned), abs=1e-5)
        assert seen["ebft/diversity"] == pytest.approx(np.mean(alike), abs=1e-5)
        assert seen["ebft/cfm_loss"] == pytest.approx(np.mean(apart), abs=1e-5)
        assert seen["ebft/advantages_std"] == pytest.approx(np.std(advantages), abs=1e-5)
    first = next(of for step, of in sorted(read_rollouts(folder)) if step == 1)
    crossed, count = 0.0, 0
    for one in first[::GROUP]:
        tokens = [*one.prompt, *references[one.id]]
        with torch.no_grad():
            said = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        own = range(len(one.prompt) - 1, len(tokens) - 1)
        crossed -= sum(float(said[i, tokens[i + 1]]) for i in own)
        count += len(own)
    policy = -np.mean([one.advantages[0] for one in first])  # each answer's mean of equal advantages, at ratio 1
    assert losses(folder)[0] == pytest.approx(policy + 0.25 * crossed / count, rel=1e-4)


def test_an_answer_has_the_room_of_its_reference(online_recipe: Callable[..., Any]) -> None:
    """A bounded answer is the first part of the one that is drawn without bounds."""
    runs, references = [], {}
    for output, adaptive in (("whole", False), ("bounded", True)):
        method = {**METHOD, "adaptive_max_tokens": adaptive, "gt_length_multiplier": 0.4}
        given = online_recipe(method, {"batch_size": 4, "max_steps": 1})()
        given["output"] = str(Path(given["output"]).with_name(output))
        known = finetooth.session(given).job.method._references
        references = {id_: of[-1].tokens for id_, of in known.items()}
        finetooth.run(given)
        runs.append(next(of for _, of in read_rollouts(Path(given["output"]))))
    assert any(len(whole.tokens) > math.ceil(0.4 * len(references[whole.id])) for whole in runs[0])
    for whole, bounded in zip(*runs, strict=True):
        most = math.ceil(0.4 * len(references[whole.id]))
        assert bounded.tokens == whole.tokens[:most] and len(bounded.tokens) == len(bounded.logprobs)
        assert bounded.logprobs == pytest.approx(whole.logprobs[:most], abs=1e-6)
        cut = len(whole.tokens) > most
        assert bounded.outcome == ("length" if cut else whole.outcome)
        assert whole.text.startswith(bounded.text) and (cut or bounded.text == whole.text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference_column": "gold"}, "the column 'gold' holds no reference answer"),
        ({"feature_layers": []}, "feature"),
    ],
)
def test_what_cannot_be_is_refused_by_name(online_recipe: Callable[..., Any], changes: Any, words: str) -> None:
    with pytest.raises(FinetoothError, match=words):
        finetooth.run(online_recipe(METHOD, {"batch_size": 4, "max_steps": 1})(**changes))


def test_a_frozen_copy_and_whitening(online_recipe: Callable[..., Any], metrics: Callable[..., Any]) -> None:
    """Whole weights train, so the network is a copy: it does not move, and whitened features have unit moment."""
    method = {"use_whitening": True, "embed_method": "completion_mean", "advantage_estimator": "group_norm"}
    given = online_recipe({**METHOD, **method}, {"batch_size": 4, "max_steps": 2})()
    given["adapter"] = "full"
    assert finetooth.run(given).steps == 2
    for seen in metrics(Path(given["output"])):
        assert np.isfinite(seen["ebft/reward"]) and abs(seen["ebft/alignment"]) <= 1 and seen["ebft/cfm_loss"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize(("renderer", "opened"), [("qwen3", ""), ("qwen3_5", "<think>\n")])
def test_reasoning_comes_before_a_reference_answer(
    online_recipe: Callable[..., Any], tmp_path: Path, renderer: str, opened: str
) -> None:
    """As the policy is to write it: what the prompt has opened already is not in the answer."""
    method = {**METHOD, "reference_column": "answer", "reasoning_column": "why"}
    given = online_recipe(method, {"batch_size": 1, "max_steps": 1})()
    file, form = tmp_path / "talks.jsonl", {"name": "task", "prompt": "messages", "turns": "last", "reasoning": "why"}
    said = {"role": "assistant", "content": "A fig.", "reasoning": "Figs are fruit."}
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Name a fruit."}, said]}))
    given["data"] = {"train": str(file), "format": form, "renderer": renderer}
    method_ = finetooth.session(given).job.method
    ((reference,),) = method_._references.values()
    decode = method_.context.tokenizer.decode
    assert opened + decode(reference.tokens) == "<think>\nFigs are fruit.\n</think>\n\nA fig.<|im_end|>"
    assert decode(reference.prompt).endswith("<|im_start|>assistant\n" + opened)
    assert [*method_._bounds.values()] == [math.ceil(1.5 * len(reference.tokens))]
    given["data"]["renderer"] = "chatml"
    with pytest.raises(FinetoothError, match="reasoning"):
        _ = finetooth.session(given).job


@pytest.mark.slow
def test_turns_come_behind_the_policys_own(
    online_recipe: Callable[..., Any], tiny_model: Path, tmp_path: Path, losses: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Conversations of two and three turns: the row's next question follows what the policy said, its turns alone
    train, and the whole is compared with the whole conversation of the row."""
    rows = [
        [("user", "Name a fruit."), ("assistant", "A fig."), ("user", "One more."), ("assistant", "A pear.")],
        [("user", "Hi."), ("assistant", "Hello."), ("user", "Count."), ("assistant", "One."), ("user", "On."),
         ("assistant", "Two.")],
    ]  # fmt: skip
    said = [[{"role": role, "content": content} for role, content in row] for row in rows]
    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join(json.dumps({"messages": row}) for row in said))
    method = {**METHOD, "reference_column": "answer", "environment": "conversation", "max_completion_length": 4}
    given = online_recipe(method, {"batch_size": 2, "max_steps": 1})()
    form = {"name": "task", "prompt": "messages", "turns": "sequential"}
    given["data"] = {"train": str(file), "format": form, "renderer": "chatml"}
    context = finetooth.session(given).job.method.context
    stops = (2, *range(5, 49152, 3))  # a random model ends a turn soon enough
    monkeypatch.setattr(conversation, "Observation", partial(Observation, stop_ids=stops))
    finetooth.run(given)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rollouts = next(of for _, of in read_rollouts(Path(given["output"])))
    crossed, count, complete = 0.0, 0, 0
    for start in range(0, 2 * GROUP, GROUP):
        group = rollouts[start : start + GROUP]
        row = rows[int(group[0].id.rpartition(":")[2]) - 1]
        messages = tuple(Message(role, content) for role, content in row)
        rendered = context.renderer.render(Conversation(messages), train_on="assistant")
        trains = np.array(rendered.weights) > 0
        reference = list(rendered.tokens[: np.flatnonzero(trains)[-1] + 1])
        assert reference[: len(group[0].prompt)] == list(group[0].prompt)
        samples = np.stack([feature(model, [*one.prompt, *one.tokens]) for one in group])
        truth = feature(model, reference)
        cosine = samples @ truth / np.linalg.norm(samples, axis=1) / np.linalg.norm(truth)
        products = samples @ samples.T
        rewards = 2 * cosine - 2 * (products.sum(1) - np.diag(products)) / (GROUP - 1)
        assert [one.rewards["features"] for one in group] == pytest.approx(rewards.tolist(), abs=1e-5)
        for one in group:
            between = context.tokenizer.decode(
                [t for t, own in zip(one.tokens, one.own, strict=bool(one.own)) if not own]
            )
            shown = [content for role, content in row[1:] if role == "user"]
            asked = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n", between)
            assert asked == shown[: len(asked)] and (one.outcome == "length" or asked == shown)
            complete += one.outcome == "stop"
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([reference])).logits[0].log_softmax(-1)
        own = [i for i in range(len(group[0].prompt) - 1, len(reference) - 1) if trains[i + 1]]
        crossed -= sum(float(logprobs[i, reference[i + 1]]) for i in own)
        count += len(own)
    gains = np.concatenate([[r.rewards["features"] for r in rollouts[g : g + GROUP]] for g in (0, GROUP)])
    policy = -np.mean([(GROUP * r - gains[g : g + GROUP].sum()) / (GROUP - 1) for g in (0, GROUP)
                       for r in gains[g : g + GROUP]])  # fmt: skip
    assert losses(Path(given["output"]))[0] == pytest.approx(policy + 0.25 * crossed / count, rel=1e-4, abs=1e-5)
    assert complete
