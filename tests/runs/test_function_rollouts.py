"""A run whose rollouts a function makes: two turns with a remark between them, and a number for the reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import FinetoothError
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.rollouts_file import read_rollouts

FUNCTION = """
def two_turns(prompt_ids, generate, encode):
    first, said = generate(prompt_ids, max_tokens=4), encode(" so?")
    asked = [p + c + said for p, c in zip(prompt_ids, first["completion_ids"])]
    last = generate(asked, max_tokens=4)
    both = list(zip(first["completion_ids"], first["logprobs"], last["completion_ids"], last["logprobs"]))
    return {
        "completion_ids": [a + said + c for a, _, c, _ in both],
        "logprobs": [b + [0.0] * len(said) + d for _, b, _, d in both],
        "env_mask": [[1] * len(a) + [0] * len(said) + [1] * len(c) for a, _, c, _ in both],
        "sum": [sum(c) % 7 for _, _, c, _ in both],
    }
"""
PLAIN = """
def answered(prompt_ids, generate):
    return generate(prompt_ids)
"""
REWARD = '''
"""A reward that is what the function said, and needs it."""
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

class Said:
    needed_columns = ("sum",)

    def __call__(self, prompts, completions, columns):
        return columns["sum"]

def build(options: NoOptions, context):
    return Said()
'''


@pytest.mark.slow
def test_a_function_makes_the_rollouts_of_a_run(
    online_recipe: Callable[..., Any], tmp_path: Path, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """What the policy wrote has the log-probabilities of the trainer's own pass, in both turns; what the function put
    in is not trained; its number reaches the reward, and is reported."""
    (tmp_path / "answering.py").write_text(FUNCTION, encoding="utf-8")
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 16, "skip_zero_advantage_batches": False}
    sampler = {"name": "python_function", "file": str(tmp_path / "answering.py"), "function": "two_turns"}
    make = online_recipe(method, {"batch_size": 2, "max_steps": 2}, REWARD)
    given = make(sampler={**sampler, "columns": ["sum"]})
    finetooth.run(given)
    for step, rollouts in read_rollouts(Path(given["output"])):
        assert len(rollouts) == 8
        for rollout in rollouts:
            assert rollout.reward == rollout.metrics["sum"] == rollout.rewards["letters"]
            assert {False, True} == set(rollout.own)
            assert {v for v, own in zip(rollout.versions, rollout.own, strict=True) if own} == {step - 1}
    for seen in metrics(Path(given["output"])):
        assert seen["sampling/sampling_logp_difference/max"] < 1e-5
        assert 0 <= seen["environment/sum"] == seen["reward"] < 7
    with pytest.raises(FinetoothError, match=r"it needs a column 'sum', and no training row has one"):
        finetooth.run({**make(sampler=sampler), "output": str(tmp_path / "other")})


@pytest.mark.slow
def test_a_function_that_only_samples_is_the_engine_itself(online_recipe: Callable[..., Any], tmp_path: Path) -> None:
    """Tokens, log-probabilities, texts and how answers end, with strings that end some and others that are cut off."""
    (tmp_path / "answering.py").write_text(PLAIN, encoding="utf-8")
    method = {"name": "grpo", "num_generations": 8, "max_completion_length": 4, "stop": ["a", "er"]}
    make = online_recipe(method, {"batch_size": 2, "max_steps": 1})
    sampler = {"name": "python_function", "file": str(tmp_path / "answering.py"), "function": "answered"}
    seen: list[list[list[Rollout]]] = []
    for pick in ("engine", sampler):
        given = {**make(sampler=pick), "output": str(tmp_path / f"run{len(seen)}")}
        finetooth.run(given)
        seen.append([rollouts for _, rollouts in read_rollouts(Path(given["output"]))])
    for engine, function in zip(seen[0][0], seen[1][0], strict=True):
        for name in ("prompt", "tokens", "text", "outcome", "versions", "reward", "own"):
            assert getattr(engine, name) == getattr(function, name), name
        assert engine.logprobs == pytest.approx(function.logprobs, abs=1e-5)  # the trainer's pass has them in fp32
    assert {rollout.outcome for rollout in seen[0][0]} == {"stop", "length"}
