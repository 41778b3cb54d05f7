"""The reference of a method that learns from rollouts follows the policy, as the recipe says, and is exact in
checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
import torch
from finetooth_hooks import FinetoothError
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]


@pytest.fixture
def held(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe whose policy is held to a reference; keyword arguments go into its method."""
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 6, "beta": 0.5}
    return online_recipe(method, {"batch_size": 2, "max_steps": 4})  # type: ignore[no-any-return]


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_a_reference_that_is_always_the_policy_costs_nothing(
    held: Callable[..., Any], kl_in: str, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """Moved all of the way after every step, the KL of what is drawn next is 0; left where it was, it is not."""
    given = held(kl_in=kl_in, reference={"sync_every": 1, "mix": 1.0})
    finetooth.run(given)
    still = {**held(kl_in=kl_in), "output": given["output"] + "-still"}
    finetooth.run(still)
    moving, staying = (metrics(Path(one["output"])) for one in (given, still))
    if kl_in == "loss":
        assert all(abs(one["kl"]) < 1e-6 for one in moving) and staying[3]["kl"] > 1e-4
    else:  # a reward is that of the letters, less the KL
        costs = [[one["rewards/letters/mean"] - one["reward"] for one in of] for of in (moving, staying)]
        assert all(abs(cost) < 1e-5 for cost in costs[0]) and abs(costs[1][3]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{"name": "lora", "rank": 4}, "full"])
def test_the_reference_moves_as_trls_does(held: Callable[..., Any], adapter: Any) -> None:
    """Every second step 30 % of the way to the policy: in each checkpoint the copy is what TRL's own callback makes of
    the weights of the checkpoints before. Killed between two moves, the run goes on bit for bit."""
    from trl.trainer.callbacks import SyncRefModelCallback

    given = {**held(reference={"sync_every": 2, "mix": 0.3}, train={"max_steps": 5}), "adapter": adapter}
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    states = [folder / "checkpoints" / f"step-{n}" / "engine" for n in range(1, 6)]
    copies = [load_file(next(one.glob("role-reference*"))) for one in states]
    policies = [load_file(next(one.glob("trained*"))) for one in states]
    for name, begun in copies[0].items():
        theirs = torch.nn.Parameter(begun.clone())
        for step in range(2, 6):
            if step % 2 == 0:
                policy, copy = torch.nn.ParameterList([policies[step - 1][name]]), torch.nn.ParameterList([theirs])
                SyncRefModelCallback._sync_target_model(policy, copy, 0.3)
            torch.testing.assert_close(copies[step - 1][name], theirs.data, rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(copies[0][name], copies[4][name]) for name in copies[0])
    whole = rewound(folder, 3)
    assert finetooth.resume(folder).steps == 5
    assert differences(left(whole), left(folder)) == []


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"reference": {"sync_every": 2}, "beta": 0.0}, r"reference\.sync_every moves what beta holds the policy to"),
        ({"reference": "precomputed"}, "reference precomputed is for rows that are there before the run"),
        ({"reference": {"policy": "adapter-off", "sync_every": 2}}, "set method.reference.policy to frozen-copy"),
    ],
)
def test_what_cannot_move_is_refused(held: Callable[..., Any], method: dict[str, Any], why: str) -> None:
    with pytest.raises(FinetoothError, match=why):
        finetooth.run(held(**method))
