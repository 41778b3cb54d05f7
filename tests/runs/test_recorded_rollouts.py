"""Rollouts that were kept: another run learns from them without a sampler, and so does TRL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_hooks import FinetoothError
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.rollouts_file import read_rollouts
from torch import Tensor

pytestmark = pytest.mark.slow


@pytest.fixture
def online(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe that keeps every batch; keyword arguments go into its method."""
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 8, "skip_zero_advantage_batches": False}
    return online_recipe(method, {"batch_size": 2, "max_steps": 3})  # type: ignore[no-any-return]


def test_a_replayed_run_is_the_run_bit_for_bit(online: Callable[..., Any]) -> None:
    """And one with another setting of the loss learns from the same answers."""
    given = online(num_iterations=2)
    finetooth.run(given)
    first = Path(given["output"])
    for name, more, same in (("again", {}, True), ("other", {"epsilon": 0.01, "loss_type": "dr_grpo"}, False)):
        other = online(num_iterations=2, sampler={"name": "kept_rollouts", "run": str(first)}, **more)
        other["output"] += f"-{name}"
        finetooth.run(other)
        weights = [
            (of / "artifact" / "adapter_model.safetensors").read_bytes() for of in (first, Path(other["output"]))
        ]
        assert (weights[0] == weights[1]) is same
        one, two = (dict(read_rollouts(of)) for of in (first, Path(other["output"])))
        assert {step: [r.tokens for r in of] for step, of in one.items()} == {
            step: [r.tokens for r in of] for step, of in two.items()
        }


def test_what_was_not_recorded_is_named(online: Callable[..., Any], tmp_path: Path) -> None:
    given = online()
    finetooth.run(given)
    first = given["output"]
    for more, why in (
        ({"run": "nowhere"}, r"method\.sampler\.run: nowhere has no rollouts"),
        ({"num_generations": 2}, r"has 4 rollouts of .*, and the method needs 2 .*num_generations to 4"),
        ({"max_completion_length": 2}, r"has an answer of \d tokens.*max_completion_length"),
        ({"train": {"seed": 9}}, r"has no rollouts of .*train\.seed"),
    ):
        run = more.pop("run", first)  # type: ignore[attr-defined]
        other = online(sampler={"name": "kept_rollouts", "run": run}, **more)
        other["output"] += f"-{len(why)}"
        with pytest.raises(FinetoothError, match=why):
            finetooth.run(other)


def test_ten_steps_are_those_of_trl(online: Callable[..., Any]) -> None:
    """TRL's loss on the recorded rollouts, with a model, an optimizer and a schedule that know nothing of this house:
    before each of ten steps both give every token the same log-probability, while they move by much more."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    from transformers import AutoModelForCausalLM

    given = online(loss_type="dapo", train={"max_steps": 10, "max_grad_norm": 0.5})
    given |= {"adapter": "full", "optimizer": {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.0}}
    given["schedule"] = "constant"
    finetooth.run(given)
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    apart, moved = [], []
    for _, rollouts in sorted(read_rollouts(Path(given["output"]))):
        before = _logprobs(model, rollouts)
        own = torch.tensor([[*one.logprobs, *[0.0] * (8 - len(one.tokens))] for one in rollouts])
        apart.append(float((before - own).abs().max().detach()))
        trainer = _trainer(grpo, lambda *_, of=rollouts, **__: (_logprobs(model, of), torch.zeros(len(of), 8), None))
        loss = trainer._compute_loss(model, _inputs(rollouts))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        moved.append(float((_logprobs(model, rollouts) - before).abs().max().detach()))
    assert len(apart) == 10 and max(apart) < 1e-3 and min(moved) > 1e-2, (apart, moved)


def _mask(rollouts: list[Rollout]) -> Tensor:
    return torch.tensor([[t < len(one.tokens) for t in range(8)] for one in rollouts]).long()


def _inputs(rollouts: list[Rollout]) -> dict[str, Any]:
    mask = _mask(rollouts)
    return {
        "prompt_ids": torch.zeros(len(rollouts), 1), "prompt_mask": torch.ones(len(rollouts), 1),
        "completion_ids": torch.zeros(len(rollouts), 8), "completion_mask": mask,
        "advantages": torch.tensor(_advantages(rollouts)), "num_items_in_batch": mask.sum(),
    }  # fmt: skip


def _advantages(rollouts: list[Rollout]) -> np.ndarray:
    """Of groups of four, from the rewards, as the paper says."""
    rewards = np.array([one.reward or 0.0 for one in rollouts], dtype=np.float32).reshape(-1, 4)
    return ((rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()


def _logprobs(model: Any, rollouts: list[Rollout]) -> Tensor:
    """(B, 8) of the answers, one sequence at a time."""
    found = []
    for one in rollouts:
        ids = torch.tensor([[*one.prompt, *one.tokens]])
        logits = model(ids).logits[0, len(one.prompt) - 1 : -1]
        each = torch.log_softmax(logits, -1).gather(-1, torch.tensor(one.tokens)[:, None])[:, 0]
        found.append(torch.cat([each, each.new_zeros(8 - len(one.tokens))]))
    return torch.stack(found)


def _trainer(grpo: Any, logprobs: Callable[..., Any]) -> Any:
    """TRL's trainer, of which only the loss is used."""
    from collections import defaultdict

    trainer: Any = object.__new__(grpo.GRPOTrainer)
    trainer.__dict__.update(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        vllm_importance_sampling_correction=False, loss_type="dapo", beta=0.0, importance_sampling_level="token",
        epsilon_low=0.2, epsilon_high=0.2, max_completion_length=8, current_gradient_accumulation_steps=1,
        use_adaptive_entropy=False, _entropy_bonus_enabled=False, entropy_coef=0.0,
        model=SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x,
        ),
        _get_per_token_logps_and_entropies=logprobs,
    )  # fmt: skip
    return trainer
