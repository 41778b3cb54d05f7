"""`ppo` end to end: the critic learns, a killed run goes on, the artifact is a language model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, FinetoothError
from finetooth_rollouts.rollouts_file import read_rollouts
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]


@pytest.fixture
def online(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe of `ppo`; keyword arguments go into its method."""
    method = {"name": "ppo", "num_generations": 2, "max_completion_length": 12, "num_iterations": 2}
    return online_recipe(method, {"batch_size": 4, "max_steps": 4})  # type: ignore[no-any-return]


def test_the_critic_learns_and_the_first_ratios_are_one(
    online: Callable[..., Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    given = online(value_clip=None, value_coef=1.0, num_iterations=6, rewards=[{"name": "letters", "weight": 0.1}],
                   train={"max_steps": 12})  # fmt: skip
    assert finetooth.run(given).steps == 12
    found = metrics(Path(given["output"]))
    assert found[0]["ratio/min"] == found[0]["ratio/max"] == 1.0
    for batch in (found[:6], found[6:]):
        assert batch[5]["value/error"] < batch[0]["value/error"]
    assert found[11]["value/error"] < 0.7 * found[0]["value/error"]
    assert "loss/value" in found[0] and found[0]["kl/answer"] == pytest.approx(0.0, abs=1e-5)


def test_what_is_trained_is_gae_of_what_was_scored(online: Callable[..., Any]) -> None:
    """Rollouts as kept: advantages and returns are the sums of the paper, by the definition and not by recursion."""
    given = online(discount=0.9, gae_lambda=0.8, whiten_advantages=False, beta=0.0, train={"max_steps": 1})
    finetooth.run(given)
    (of,) = dict(read_rollouts(Path(given["output"]))).values()
    for one in of:
        v = [*one.fields["old_values"], 0.0]
        rewards = [0.0] * (len(one.tokens) - 1) + [one.reward or 0.0]
        deltas = [r + 0.9 * v[t + 1] - v[t] for t, r in enumerate(rewards)]
        expected = [sum((0.9 * 0.8) ** i * d for i, d in enumerate(deltas[t:])) for t in range(len(deltas))]
        np.testing.assert_allclose(one.advantages, expected, atol=1e-9)
        np.testing.assert_allclose(one.fields["returns"], np.array(expected) + v[:-1], atol=1e-9)
    assert len({round(value, 9) for one in of for value in one.fields["old_values"]}) > 3


@pytest.mark.parametrize("at", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(
    online: Callable[..., Any], at: int, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """With values of rollouts in flight, and a price of the KL that moves."""
    given = online(kl_target=0.001, num_iterations=2)
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    found = metrics(folder)
    assert found[0]["kl_coef"] == 0.05 and found[2]["kl_coef"] != 0.05
    whole = rewound(folder, at)
    assert finetooth.resume(folder).steps == 4
    assert differences(left(whole), left(folder)) == []


@pytest.mark.slow
def test_the_critic_starts_from_a_reward_model(
    online: Callable[..., Any], recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """What is expected before each token is what transformers' classifier of the reward model says there, and what the
    new head adds; the returns are made of that."""
    from transformers import AutoModelForSequenceClassification

    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 8)
    judge = recipe(
        method="rm", adapter="full", data={"train": str(tmp_path / "pairs.jsonl"), "renderer": "chatml"},
        train={"max_steps": 2, "batch_size": 4, "precision": "fp32"}, output=str(tmp_path / "judge"),
    )  # fmt: skip
    finetooth.run(judge)
    given = online(critic=str(tmp_path / "judge"), num_iterations=2, train={"max_steps": 2})
    finetooth.run(given)
    (of,) = dict(read_rollouts(Path(given["output"]))).values()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge" / "artifact", num_labels=1)
    for one in of:
        with torch.no_grad():
            states = model.model(torch.tensor([[*one.prompt, *one.tokens]])).last_hidden_state
            said = model.score(states)[0, len(one.prompt) - 1 : -1, 0]
        np.testing.assert_allclose(one.fields["value_offsets"], said.numpy(), atol=1e-4)
        head = np.array(one.fields["old_values"]) - one.fields["value_offsets"]
        assert 0 < np.abs(head).max() < 2
        np.testing.assert_allclose(
            one.fields["returns"][-1], one.reward or 0.0, atol=1e-4
        )  # of the last token what came is the reward
    sft = recipe(train={"batch_size": 4, "max_steps": 1, "precision": "fp32"}, output=str(tmp_path / "plain"))
    finetooth.run(sft)
    given = online(critic=sft["output"])
    given["output"] += "-none"
    with pytest.raises(FinetoothError, match=r"method\.critic: .* is not a reward model"):
        finetooth.run(given)


def test_the_critic_is_given_out_and_another_run_starts_from_it(online: Callable[..., Any]) -> None:
    """The head in the artifact is the one that trained, in a folder that no loader of models reads. A run that starts
    from it expects what it expected, and one that starts from that run what both say together."""
    first = online(train={"max_steps": 2})
    finetooth.run(first)
    folder = Path(first["output"])
    head = load_file(folder / "artifact" / "critic" / "head.safetensors")
    manifest = json.loads((folder / "artifact" / "manifest.json").read_text())
    assert "critic/head.safetensors" in json.dumps(manifest)
    engine = finetooth.engine({**first, "output": f"{folder}-again"})
    engine.restore(folder / "artifact")

    def said(one: Any) -> np.ndarray:
        datum = Datum.from_tokens([*one.prompt, *one.tokens], [0.0] * len(one.prompt) + [1.0] * len(one.tokens))
        (outputs,) = engine.forward([datum], returns=("values", "hidden"), train=False).outputs
        states = outputs["hidden"][datum.mask].astype(np.float64)
        by_hand = states @ head["weight"].numpy()[0] + head["bias"].numpy()[0]
        np.testing.assert_allclose(outputs["values"][datum.mask], by_hand, atol=1e-5)
        return by_hand

    for of in dict(read_rollouts(folder)).values():
        assert all(np.ptp(said(one)) > 0 for one in of)
    second = {**online(critic=str(folder), train={"max_steps": 1}), "output": f"{folder}-second"}
    finetooth.run(second)
    (of,) = dict(read_rollouts(Path(second["output"]))).values()
    for one in of:
        np.testing.assert_allclose(one.fields["value_offsets"], said(one), atol=1e-5)
    third = {**online(critic=second["output"], train={"max_steps": 1}), "output": f"{folder}-third"}
    finetooth.run(third)
    (again,) = dict(read_rollouts(Path(third["output"]))).values()
    own = load_file(Path(second["output"]) / "artifact" / "critic" / "head.safetensors")
    assert not np.allclose(own["weight"], head["weight"])
    for one in again:
        assert np.abs(np.array(one.fields["value_offsets"]) - said(one)).max() > 1e-4
    shutil.rmtree(folder / "artifact" / "critic")
    with pytest.raises(FinetoothError, match=r"artifact"):
        finetooth.run({**third, "output": f"{folder}-none", "method": {**third["method"], "critic": str(folder)}})


def test_the_artifact_writes_text(online: Callable[..., Any], ft: Callable[..., tuple[int, str, str]]) -> None:
    """The head lies beside it: what is left is a language model, and a run on it begins."""
    given = online(train={"max_steps": 1})
    finetooth.run(given)
    folder = Path(given["output"])
    config = json.loads((folder / "artifact" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and not config.get("modules_to_save")
    path = folder.parent / "next.yaml"
    path.write_text(
        f"model: {folder}\ndata: {{train: {{name: tasks, task: family, count: 8}}}}\nmethod: sft\n"
        f"adapter: {{name: lora, rank: 2}}\noutput: {folder.parent / 'next'}\n"
    )
    code, _, err = ft("check", str(path))
    assert code == 0, err
