"""The losses of reward models against their formulas in float64, and against TRL's own code."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import LossData
from finetooth_kit import parametrize_with_checks
from finetooth_reward.losses import bradley_terry, score_mse


@parametrize_with_checks("finetooth_reward.plugin")
def test_conforms(check: Any) -> None:
    check()


def data_of(count: int, like: Any = np.asarray, **scalars: Any) -> LossData:
    mask = np.zeros((count, 3), dtype=bool)
    mask[:, 2] = True
    return LossData(
        mask=like(mask),
        targets=like(np.zeros((count, 3), dtype=np.int64)),
        fields={"weights": like(mask.astype(np.float64))},
        scalars={name: like(np.asarray(values, dtype=np.float64)) for name, values in scalars.items()},
        group=like(np.arange(count) // 2),
    )


def test_bradley_terry_by_hand() -> None:
    # pairs (2, 1) with margin 0.5 and (0, 1) with none
    scores = np.array([2.0, 1.0, 0.0, 1.0])
    result = bradley_terry({"scores": scores}, data_of(4, margin=[0.5, 0.5, 0.0, 0.0]), {}, centre=0.01)
    wanted = math.log1p(math.exp(-0.5)) + math.log1p(math.exp(1.0))
    assert float(result.contributions["bradley_terry"].total) == pytest.approx(wanted, rel=1e-12)
    centre = result.contributions["center"]
    assert (float(centre.total), centre.weight, centre.per) == (pytest.approx(9.0 + 1.0), 0.01, "groups")
    metrics = {name: float(m.total) / float(m.count) for name, m in result.metrics.items()}
    assert metrics == {
        "rewards/accuracies": 0.5, "rewards/margins": 0.0, "rewards/chosen": 1.0, "rewards/rejected": 1.0
    }  # fmt: skip


@pytest.mark.parametrize("centre", [0.0, 0.01])
@pytest.mark.parametrize("margin", [False, True])
def test_bradley_terry_and_its_gradient_are_those_of_trl(centre: float, margin: bool) -> None:
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl").RewardTrainer
    random = np.random.default_rng(3)
    pairs = 16
    values = random.normal(scale=2.0, size=2 * pairs)
    margins = np.abs(random.normal(size=pairs)) if margin else np.zeros(pairs)

    theirs = torch.tensor(np.concatenate([values[0::2], values[1::2]]), dtype=torch.float64, requires_grad=True)
    gather = SimpleNamespace(
        gather=lambda x: x, gather_for_metrics=lambda x: x if isinstance(x, torch.Tensor) else torch.tensor(x)
    )
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True), args=SimpleNamespace(center_rewards_coefficient=centre or None),
        accelerator=gather, _total_train_tokens=0, _tp_size=1, _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    inputs = {"attention_mask": torch.ones(2 * pairs, 3), **({"margin": torch.tensor(margins)} if margin else {})}

    def model(**given: Any) -> Any:
        return SimpleNamespace(logits=theirs.unsqueeze(-1))

    loss = trainer.compute_loss(stub, model, inputs)
    loss.backward()

    ours = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    data = data_of(2 * pairs, torch.as_tensor, margin=np.repeat(margins, 2))
    result = bradley_terry({"scores": ours}, data, {}, centre=centre)
    total = sum(part.weight * part.total for part in result.contributions.values()) / pairs
    total.backward()
    assert float(total) == pytest.approx(float(loss), rel=1e-10)
    wanted = torch.stack([theirs.grad[:pairs], theirs.grad[pairs:]], dim=1).reshape(-1)
    torch.testing.assert_close(ours.grad, wanted, rtol=1e-8, atol=1e-12)
    assert float(result.metrics["rewards/accuracies"].total) / pairs == pytest.approx(
        stub._metrics["train"]["accuracy"][0]
    )
    assert float(result.metrics["rewards/margins"].total) / pairs == pytest.approx(stub._metrics["train"]["margin"][0])


def test_squared_error_by_hand() -> None:
    result = score_mse({"scores": np.array([1.0, -1.0])}, data_of(2, label=[3.0, -1.5]), {})
    part = result.contributions["score_mse"]
    assert (float(part.total), part.per) == (pytest.approx(4.25), "sequences")
