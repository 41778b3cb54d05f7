"""`surrogate` and its gradient against float64 loops that know the formulas, on every array library at hand."""

from __future__ import annotations

from math import exp, log
from typing import Any, cast

import numpy as np
import pytest
from finetooth_hooks import LossData
from finetooth_policygradient.surrogate import SurrogateOptions, surrogate

S, T = 4, 5
RANDOM = np.random.default_rng(11)
MASK = np.arange(T)[None] < np.array([5, 3, 4, 1])[:, None]
P = RANDOM.uniform(-3.0, -0.2, (S, T))
Q, REFERENCE = P + RANDOM.uniform(-0.9, 0.9, (S, T)), P + RANDOM.uniform(-0.9, 0.9, (S, T))
A = RANDOM.normal(size=(S, 1)) * np.ones((S, T))
WEIGHTS, ENTROPY = RANDOM.uniform(0.1, 1.0, (S, T)), RANDOM.uniform(0.5, 2.0, (S, T))


def data(**more: Any) -> LossData:
    fields = {"advantages": A, "token_weights": WEIGHTS, "weights": MASK.astype(float), "old_logprobs": Q, **more}
    scalars: dict[str, Any] = {}
    return LossData(MASK, np.zeros((S, T), np.int64), fields, scalars, np.arange(S))


def by_hand(o: SurrogateOptions, p: Any = P) -> tuple[float, float]:
    """Sums of policy and KL, as the papers write them."""
    policy = kl = 0.0
    for i in range(S):
        places = [t for t in range(T) if MASK[i, t]]
        mean = sum(p[i, t] - Q[i, t] for t in places) / len(places)
        for t in places:
            r = exp(mean if o.importance_sampling_level == "sequence" else p[i, t] - Q[i, t])
            a, w = A[i, t], WEIGHTS[i, t]
            if o.objective == "clip":
                low, high = 1 - o.epsilon, 1 + (o.epsilon if o.epsilon_high is None else o.epsilon_high)
                free = r if o.delta is None else min(r, o.delta)
                policy -= w * min(free * a, min(max(r, low), high) * a)
            elif o.objective == "cispo":
                policy -= w * min(r, 1 + (4.0 if o.epsilon_high is None else o.epsilon_high)) * a * p[i, t]
            elif o.objective == "vespo":
                k, rate = (o.vespo_k_pos, o.vespo_lambda_pos) if a >= 0 else (o.vespo_k_neg, o.vespo_lambda_neg)
                whole = exp(mean * len(places))
                policy -= w * exp(rate) * whole**k * exp(-rate * whole) * a * p[i, t]
            else:
                tau = o.sapo_temperature_pos if a > 0 else o.sapo_temperature_neg
                policy -= w * 4 / tau / (1 + exp(-tau * (r - 1))) * a
            d = REFERENCE[i, t] - p[i, t]
            estimate = {"k1": -d, "k2": d * d / 2, "k3": exp(d) - d - 1}[o.kl]
            kl += w * estimate * (exp(p[i, t] - Q[i, t]) if o.use_bias_correction_kl else 1.0)
    return policy, kl


CASES = [
    {},
    {"epsilon": 0.1, "epsilon_high": 0.3},
    {"epsilon_high": 0.28, "delta": 1.5},
    {"importance_sampling_level": "sequence", "epsilon": 0.05},
    {"objective": "sapo"},
    {"objective": "cispo", "epsilon_high": 0.2},
    {"objective": "vespo"},
    {"objective": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 0.5},
    {"beta": 0.1, "kl": "k1"},
    {"beta": 0.1, "kl": "k2", "use_bias_correction_kl": False},
    {"beta": 0.1, "kl": "k3", "importance_sampling_level": "sequence"},
    {"beta": 0.1, "kl": "k3", "use_bias_correction_kl": False},
]


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_papers_formula(case: dict[str, Any]) -> None:
    options = SurrogateOptions(**case)
    outputs = {"logprobs": P, "entropy": ENTROPY, "logprobs@reference": REFERENCE}
    found = surrogate(outputs, data(), {}, options=options)
    policy, kl = by_hand(options)
    assert found.contributions["policy"].total == pytest.approx(policy, rel=1e-12)
    if options.beta:
        assert found.contributions["kl"].total == pytest.approx(kl, rel=1e-12)
        assert found.contributions["kl"].weight == options.beta


@pytest.mark.parametrize("case", [case for case in CASES if case.get("objective") not in ("cispo", "vespo")])
def test_its_gradient_is_the_slope_of_the_formula(case: dict[str, Any]) -> None:
    """Central differences; at `cispo` and `vespo` the ratio is held constant, so their gradient is no slope."""
    torch = pytest.importorskip("torch")
    options = SurrogateOptions(**case)
    p = torch.tensor(P, requires_grad=True)
    of = data()
    tensors = {name: torch.tensor(values) for name, values in of.fields.items()}
    given = LossData(torch.tensor(MASK), torch.zeros(S, T), tensors, {}, torch.arange(S))
    outputs = {"logprobs": p, "entropy": torch.tensor(ENTROPY), "logprobs@reference": torch.tensor(REFERENCE)}
    found = surrogate(outputs, given, {}, options=options)
    sum(part.weight * part.total for part in found.contributions.values()).backward()
    for i, t in zip(*np.nonzero(MASK), strict=True):
        slopes = []
        for step in (1e-6, -1e-6):
            moved = P.copy()
            moved[i, t] += step
            policy, kl = by_hand(options, moved)
            slopes.append(policy + options.beta * kl)
        assert float(p.grad[i, t]) == pytest.approx((slopes[0] - slopes[1]) / 2e-6, abs=1e-6)


def test_without_old_numbers_only_the_gradient_of_the_ratio_is_left() -> None:
    """On policy the ratio is 1: the loss is minus weights times advantages, the gradient too, whatever is clipped."""
    torch = pytest.importorskip("torch")
    p = torch.tensor(P, requires_grad=True)
    fields = {name: torch.tensor(values) for name, values in data().fields.items() if name != "old_logprobs"}
    given = LossData(torch.tensor(MASK), torch.zeros(S, T), fields, {}, torch.arange(S))
    found = surrogate({"logprobs": p, "entropy": p}, given, {}, options=SurrogateOptions())
    found.contributions["policy"].total.backward()
    expected = np.where(MASK, -WEIGHTS * A, 0.0)
    assert float(found.contributions["policy"].total.detach()) == pytest.approx(expected.sum())
    np.testing.assert_allclose(p.grad.numpy(), expected, atol=1e-12)
    assert cast(float, found.metrics["ratio/min"].total) == found.metrics["ratio/max"].total == 1.0


def test_log_probabilities_are_those_among_the_tokens_that_were_kept() -> None:
    """Three tokens were kept at one place, two at the others; what fills up counts for nothing."""
    wide = np.stack([P, P - 0.7, P - 1.1], -1)
    kept = np.ones((S, T, 3))
    kept[:, 1:, 2] = 0.0
    old = wide + np.array([0.2, -0.1, 0.4])
    outputs = {"logprobs": wide, "entropy": ENTROPY}
    options = SurrogateOptions(epsilon=1.0, epsilon_high=100.0)
    found = surrogate(outputs, data(kept=kept, old_logprobs=old), {}, options=options)
    total = 0.0
    for i, t in zip(*np.nonzero(MASK), strict=True):
        n = 3 if t == 0 else 2
        new, before = (x[i, t, 0] - log(sum(exp(v) for v in x[i, t, :n])) for x in (wide, old))
        total -= WEIGHTS[i, t] * exp(new - before) * A[i, t]
    assert found.contributions["policy"].total == pytest.approx(total, rel=1e-12)


def test_the_entropy_bonus_is_a_mean_over_tokens() -> None:
    found = surrogate({"logprobs": P, "entropy": ENTROPY}, data(), {}, options=SurrogateOptions(entropy_coef=0.01))
    part = found.contributions["entropy"]
    assert (part.per, part.weight) == ("tokens", 0.01) and part.total == pytest.approx(-ENTROPY[MASK].sum())


def test_only_tokens_of_the_mask_move_the_policy_and_the_bonus_is_weighed_by_token() -> None:
    """The KL is that of all tokens; the entropy is weighed by the field, whatever the option says."""
    which, bonus = RANDOM.uniform(size=(S, T)) < 0.5, RANDOM.uniform(0.0, 0.1, (S, T))
    options = SurrogateOptions(beta=0.1, entropy_coef=7.0)
    outputs = {"logprobs": P, "entropy": ENTROPY, "logprobs@reference": REFERENCE}
    given = data(policy_mask=which.astype(float), entropy_weights=bonus)
    found = surrogate(outputs, given, {}, options=options)
    total = entropy = 0.0
    for i, t in zip(*np.nonzero(MASK), strict=True):
        r = exp(P[i, t] - Q[i, t])
        total -= WEIGHTS[i, t] * min(r * A[i, t], min(max(r, 0.8), 1.2) * A[i, t]) if which[i, t] else 0.0
        entropy += bonus[i, t] * ENTROPY[i, t]
    assert found.contributions["policy"].total == pytest.approx(total, rel=1e-12)
    assert found.contributions["kl"].total == pytest.approx(by_hand(options)[1], rel=1e-12)
    part = found.contributions["entropy"]
    assert (part.per, part.weight) == ("none", 1.0) and part.total == pytest.approx(-entropy, rel=1e-12)


def test_vespo_counts_what_drew_the_tokens_within_the_weight_of_the_sequence() -> None:
    """Its factor is phi(W), W with the weights of the tokens for what drew them; on policy it is 1 exactly."""
    behaviour = Q - 0.1
    options = SurrogateOptions(objective="vespo", importance_correction_cap=1.05)
    found = surrogate({"logprobs": P, "entropy": ENTROPY}, data(behaviour_logprobs=behaviour), {}, options=options)
    total = 0.0
    for i in range(S):
        places = [t for t in range(T) if MASK[i, t]]
        w = exp(sum(P[i, t] - Q[i, t] + log(min(exp(0.1), 1.05)) for t in places))
        k, rate = (2.0, 3.0) if A[i, 0] >= 0 else (3.0, 2.0)
        total -= sum(WEIGHTS[i, t] * exp(rate) * w**k * exp(-rate * w) * A[i, t] * P[i, t] for t in places)
    assert found.contributions["policy"].total == pytest.approx(total, rel=1e-12)
    still = surrogate({"logprobs": Q, "entropy": ENTROPY}, data(), {}, options=SurrogateOptions(objective="vespo"))
    assert float(still.contributions["policy"].total) == pytest.approx(-(WEIGHTS * A * Q)[MASK].sum(), rel=1e-12)


def test_a_bound_inside_the_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"delta is 1\.2, not above the clip at 1\.3"):
        SurrogateOptions(epsilon_high=0.3, delta=1.2)
