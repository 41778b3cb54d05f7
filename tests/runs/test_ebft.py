"""`ebft` end to end: rewards and loss of a run are those of the paper's equations over transformers' hidden states."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_hooks import FinetoothError
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
    references = session.job.method._answers  # prompts are read by now
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
        references = finetooth.session(given).job.method._answers
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
