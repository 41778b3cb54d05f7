"""Losses, gradients, metrics and advantages of learning from rollouts against TRL on the same numbers."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import LossData
from finetooth_hooks.rollouts import Rollout
from finetooth_policygradient.surrogate import SurrogateOptions, surrogate
from finetooth_rollouts.advantages import decoupled, group_relative
from finetooth_rollouts.entropy import EntropyBonus, highest
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.token_weights import token_weights

pytestmark = pytest.mark.slow

S, T, LONGEST = 6, 7, 9
LENGTHS = [7, 4, 0, 2, 6, 1]  # the third was cut off, and is masked
RANDOM = np.random.default_rng(5)
MASK = np.arange(T)[None] < np.array(LENGTHS)[:, None]
P = RANDOM.uniform(-4.0, -0.1, (S, T))
OLD, REFERENCE = P + RANDOM.normal(0, 0.4, (S, T)), P + RANDOM.normal(0, 0.4, (S, T))
ENTROPY, A = RANDOM.uniform(0.2, 2.0, (S, T)), RANDOM.normal(size=S)
ENTROPY = ENTROPY.astype(np.float32).astype(np.float64)  # TRL takes quantiles in float32

CASES: list[dict[str, Any]] = [
    {"loss_type": "grpo"},
    {"loss_type": "grpo", "beta": 0.1, "epsilon_high": 0.3},
    {"loss_type": "bnpo", "delta": 1.7},
    {"loss_type": "dr_grpo", "beta": 0.05, "use_bias_correction_kl": False},
    {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.01},
    {"loss_type": "cispo", "epsilon_high": 0.5},
    {"loss_type": "sapo"},
    {"loss_type": "vespo"},
    # with the correction TRL takes the ratio of the sequence for the KL, which is biased; this house each token's own
    {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.01,
        "beta": 0.1,
        "use_bias_correction_kl": False,
    },
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "grpo", "top_entropy_quantile": 0.2},
    {"loss_type": "dapo", "top_entropy_quantile": 0.5, "beta": 0.1, "entropy_coef": 0.03},
    {"loss_type": "bnpo", "top_entropy_quantile": 0.0},
]


def theirs(case: dict[str, Any]) -> tuple[float, np.ndarray, dict[str, float]]:
    """TRL's loss, its gradient by the log-probabilities, and metrics."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    given = {"beta": 0.0, "epsilon": 0.2, "epsilon_high": None, "delta": None, "use_bias_correction_kl": True,
             "entropy_coef": 0.0, "importance_sampling_level": "token", "top_entropy_quantile": 1.0,
             **case}  # fmt: skip
    high = given["epsilon"] if given["epsilon_high"] is None else given["epsilon_high"]
    p = torch.tensor(P, requires_grad=True)
    entropy = torch.tensor(ENTROPY)
    trainer: Any = object.__new__(GRPOTrainer)
    trainer.__dict__.update(
        aux_loss_enabled=False, top_entropy_quantile=given["top_entropy_quantile"], use_vllm=False,
        off_policy_mask_threshold=None,
        vllm_importance_sampling_correction=False, loss_type=given["loss_type"], beta=given["beta"],
        importance_sampling_level=given["importance_sampling_level"], epsilon_low=given["epsilon"],
        # TRL bounds the ratio of cispo itself, the paper and this house 1 plus a distance
        epsilon_high=1 + high if given["loss_type"] == "cispo" else high,
        max_completion_length=LONGEST, current_gradient_accumulation_steps=1, use_adaptive_entropy=False,
        _entropy_bonus_enabled=bool(given["entropy_coef"]), entropy_coef=given["entropy_coef"],
        model=SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(
            delta=given["delta"], use_bias_correction_kl=given["use_bias_correction_kl"], steps_per_generation=1,
            sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0,
            vespo_k_neg=3.0, vespo_lambda_neg=2.0,
        ),
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x,
            pad_across_processes=lambda x, dim, pad_index: x,
        ),
        _get_per_token_logps_and_entropies=lambda *_, **__: (p, entropy, None),
    )  # fmt: skip
    mask = torch.tensor(MASK).long()
    inputs = {
        "prompt_ids": torch.zeros(S, 1), "prompt_mask": torch.ones(S, 1), "completion_ids": torch.zeros(S, T),
        "completion_mask": mask, "advantages": torch.tensor(A), "old_per_token_logps": torch.tensor(OLD),
        "ref_per_token_logps": torch.tensor(REFERENCE), "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    loss = trainer._compute_loss(None, inputs)
    loss.backward()
    assert p.grad is not None
    return loss.item(), p.grad.numpy(), {name: values[-1] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_metrics_are_those_of_trl(case: dict[str, Any]) -> None:
    pytest.importorskip("trl")
    expected, slope, metrics = theirs(case)
    loss_type = case["loss_type"]
    weights = token_weights(loss_type, LENGTHS, longest=LONGEST)
    objective = loss_type if loss_type in ("cispo", "sapo", "vespo") else "clip"
    of_method = "loss_type", "top_entropy_quantile"
    options = SurrogateOptions(objective=objective, **{k: v for k, v in case.items() if k not in of_method})
    p = torch.tensor(P, requires_grad=True)
    fields = {
        "token_weights": torch.tensor(np.where(MASK, np.array(weights)[:, None], 0.0)),
        "advantages": torch.tensor(A)[:, None].expand(S, T),
        "old_logprobs": torch.tensor(OLD),
    }
    if case.get("top_entropy_quantile", 1.0) < 1:
        which = MASK.copy()
        which[MASK] = np.concatenate(highest([of[mask] for of, mask in zip(ENTROPY, MASK, strict=True)],
                                             case["top_entropy_quantile"]))  # fmt: skip
        fields["policy_mask"] = torch.tensor(which.astype(float))
        fields["entropy_weights"] = torch.tensor(which * case.get("entropy_coef", 0.0) / which.sum())
    data = LossData(torch.tensor(MASK), torch.zeros(S, T), fields, {}, torch.arange(S))
    outputs = {"logprobs": p, "entropy": torch.tensor(ENTROPY), "logprobs@reference": torch.tensor(REFERENCE)}
    found = surrogate(outputs, data, {}, options=options)
    counts = {"none": 1.0, "tokens": float(MASK.sum())}
    loss = sum(part.weight * part.total / counts[part.per] for part in found.contributions.values())
    loss.backward()
    assert p.grad is not None
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(p.grad.numpy(), slope, atol=1e-8)
    if case.get("importance_sampling_level") != "sequence":  # TRL counts sequences there, this house always tokens
        for name in {"kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean"} & set(metrics):
            own = found.metrics[name]
            assert float(own.total) / float(own.count) == pytest.approx(metrics[name], rel=1e-5), name


def test_a_bonus_is_steered_as_by_trl() -> None:
    """Step by step: what counts, and where the weight is afterwards."""
    pytest.importorskip("trl")
    from trl.trainer.grpo_trainer import GRPOTrainer

    told = {"entropy_target": 0.6, "entropy_coef_delta": 0.01, "entropy_coef_min": 0.005, "entropy_coef_max": 0.04}
    bonus = EntropyBonus(RolloutOptions.model_validate({"entropy_coef": 0.02, **told}))
    trainer: Any = object.__new__(GRPOTrainer)
    trainer.__dict__.update(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, beta=0.0,
        loss_type="grpo", importance_sampling_level="token", epsilon_low=0.2, epsilon_high=0.2,
        current_gradient_accumulation_steps=1, use_adaptive_entropy=True, _entropy_bonus_enabled=True,
        entropy_coef=0.02, _last_world_entropy=float("inf"), _entropy_window_stats=None,
        model=SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(delta=None, steps_per_generation=1, **told),
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x,
        ),
    )  # fmt: skip
    mask, p = torch.tensor(MASK).long(), torch.tensor(P)
    inputs = {
        "prompt_ids": torch.zeros(S, 1), "prompt_mask": torch.ones(S, 1), "completion_ids": torch.zeros(S, T),
        "completion_mask": mask, "advantages": torch.zeros(S, dtype=torch.float64), "old_per_token_logps": p,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    scales = [1.0, 0.3, 0.2, 0.2, 0.2, 0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.4]
    counted = []
    for scale in scales:
        entropy = torch.tensor(ENTROPY * scale)
        trainer._get_per_token_logps_and_entropies = lambda *_, of=entropy, **__: (p, of, None)
        mean = float(entropy[mask.bool()].mean())
        counted.append(bonus.coef)
        assert float(trainer._compute_loss(None, inputs)) == pytest.approx(-counted[-1] * mean, abs=1e-12)
        assert bonus.see(mean)["entropy_coef"] == pytest.approx(trainer.entropy_coef, abs=1e-12)
    assert counted[0] == 0.0 and max(counted) == 0.04 and 0.0 in counted[1:]


@pytest.mark.parametrize("scale", ["group", "batch", "none", "gdpo"])
def test_advantages_are_those_of_trl(scale: Any) -> None:
    """Two rewards of which one leaves some answers out. What TRL does with them is in the middle of a method that also
    samples, so its lines are taken up to the advantages."""
    pytest.importorskip("trl")
    from trl.trainer.utils import nanstd

    n, g = 4, 3
    scores = torch.tensor(RANDOM.normal(size=(n * g, 2)) * np.array([1.0, 20.0]))
    scores[2, 1] = scores[7, 1] = float("nan")
    weights = torch.tensor([1.0, 0.3], dtype=torch.float64)
    if scale == "gdpo":
        grouped = scores.view(-1, g, 2)
        each = (grouped - torch.nanmean(grouped, dim=1, keepdim=True)) / (nanstd(grouped, dim=1, keepdim=True) + 1e-4)
        summed = (each.view(-1, 2) * weights).nansum(dim=1)
        expected = (summed - summed.mean()) / (nanstd(summed) + 1e-4)
    else:
        summed = (scores * weights).nansum(dim=1)
        centred = summed - summed.view(-1, g).mean(1).repeat_interleave(g)
        deviations = {"group": nanstd(summed.view(-1, g), dim=1).repeat_interleave(g), "batch": nanstd(summed)}
        expected = centred / (deviations[scale] + 1e-4) if scale != "none" else centred
    rollouts = []
    for i, row in enumerate(scores.tolist()):
        parts = {name: None if np.isnan(value) else value for name, value in zip("ab", row, strict=True)}
        rollouts.append(
            Rollout("row", f"{i // g}", (1,), (2,), (-1.0,), (0,), "", "stop", rewards=parts, reward=summed[i].item())
        )
        if scale != "gdpo":
            reward = sum(w * v for w, v in zip((1.0, 0.3), parts.values(), strict=True) if v is not None)
            assert rollouts[-1].reward == pytest.approx(reward)
    own = (
        decoupled(rollouts, {"a": 1.0, "b": 0.3}) if scale == "gdpo" else group_relative(rollouts, scale_rewards=scale)
    )
    np.testing.assert_allclose(own, expected.numpy(), rtol=1e-5)
