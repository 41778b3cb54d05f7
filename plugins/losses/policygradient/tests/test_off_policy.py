"""What becomes of tokens that other weights drew: loops that know the formulas, and TRL's mask of sequences."""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import LossData
from finetooth_policygradient.surrogate import SurrogateOptions, surrogate

S, T = 4, 5
RANDOM = np.random.default_rng(2)
MASK = np.arange(T)[None] < np.array([5, 3, 4, 1])[:, None]
P = RANDOM.uniform(-3.0, -0.2, (S, T))
Q, B = P + RANDOM.uniform(-0.4, 0.4, (S, T)), P + RANDOM.uniform(-0.9, 0.9, (S, T))
A = np.array([[1.0], [-0.7], [-1.2], [0.4]]) * np.ones((S, T))
WEIGHTS = RANDOM.uniform(0.1, 1.0, (S, T))


def found(options: SurrogateOptions, *, old: bool = True, behaviour: Any = B) -> float:
    fields = {"advantages": A, "token_weights": WEIGHTS, "weights": MASK.astype(float)}
    fields |= {"old_logprobs": Q} if old else {}
    fields |= {} if behaviour is None else {"behaviour_logprobs": behaviour}
    data = LossData(MASK, np.zeros((S, T), np.int64), fields, {}, np.arange(S))
    outputs = {"logprobs": np.where(MASK, P, np.nan), "entropy": np.ones((S, T))}
    return float(surrogate(outputs, data, {}, options=options).contributions["policy"].total)


def by_hand(o: SurrogateOptions, *, old: bool = True) -> float:
    total = 0.0
    for i in range(S):
        places = [t for t in range(T) if MASK[i, t]]
        q = Q[i] if old else P[i]
        apart = [q[t] - B[i, t] for t in places]
        left_out = (
            o.off_policy_mask_threshold is not None
            and A[i, 0] < 0
            and sum(B[i, t] - P[i, t] for t in places) / len(places) > o.off_policy_mask_threshold
        )
        for t in places:
            of = {"token": q[t] - B[i, t], "sequence": sum(apart), "geometric": sum(apart) / len(places)}
            w = 1.0 if o.importance_correction == "none" else exp(of[o.importance_correction_level])
            if o.importance_correction == "truncate":
                w = min(max(w, o.importance_correction_floor), o.importance_correction_cap)
            elif (
                o.importance_correction == "mask"
                and not o.importance_correction_floor <= w <= o.importance_correction_cap
            ):
                w = 0.0
            r = exp(P[i, t] - q[t])
            clipped = min(max(r, 0.8), 1.2)
            total -= 0.0 if left_out else WEIGHTS[i, t] * w * min(r * A[i, t], clipped * A[i, t])
    return total


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize(
    "case",
    [
        {"importance_correction": "none"},
        {"importance_correction": "truncate", "importance_correction_cap": 1.1},
        {"importance_correction": "truncate", "importance_correction_cap": 2.0, "importance_correction_floor": 0.8},
        {"importance_correction": "mask", "importance_correction_cap": 1.1},
        {"importance_correction": "mask", "importance_correction_cap": 1.3, "importance_correction_floor": 0.7},
        {"importance_correction": "truncate", "off_policy_mask_threshold": 0.01},
    ],
)
def test_weights_are_those_of_the_formula(case: dict[str, Any], level: Any, old: bool) -> None:
    options = SurrogateOptions(importance_correction_level=level, **case)
    assert found(options, old=old) == pytest.approx(by_hand(options, old=old), rel=1e-12)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_what_the_trainer_drew_itself_has_weight_one_exactly(level: Any) -> None:
    for correction in ("truncate", "mask"):
        options = SurrogateOptions(importance_correction=correction, importance_correction_level=level)
        assert found(options, behaviour=Q) == found(options, behaviour=None)


def test_a_weight_beyond_all_numbers_is_the_cap_or_nothing() -> None:
    far = np.full((S, T), -1e4)
    capped = SurrogateOptions(
        importance_correction="truncate", importance_correction_level="sequence", importance_correction_cap=2.0
    )
    assert found(capped, behaviour=far) == pytest.approx(2 * found(SurrogateOptions(), behaviour=None))
    assert found(SurrogateOptions(importance_correction="mask"), behaviour=far) == 0.0


@pytest.mark.slow
def test_the_same_sequences_are_left_out_as_by_trl() -> None:
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl.trainer.grpo_trainer")
    for threshold in (0.001, 0.05, 0.2, 0.5):
        theirs = trl.GRPOTrainer.get_off_policy_mask(
            torch.tensor(A[:, :1]), torch.tensor(P), torch.tensor(B), torch.tensor(MASK).long(), threshold
        )
        kept = SurrogateOptions(importance_correction="none", off_policy_mask_threshold=threshold)
        alone = 0.0
        for i in range(S):
            r = np.exp(P[i] - Q[i])
            each = np.minimum(r * A[i], np.clip(r, 0.8, 1.2) * A[i])
            alone -= float(theirs[i, 0]) * float((WEIGHTS[i] * each)[MASK[i]].sum())
        assert found(kept) == pytest.approx(alone, rel=1e-12)
