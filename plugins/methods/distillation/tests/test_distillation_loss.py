"""`distillation` and its gradient against float64 sums over the whole vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetooth_distillation.loss import DistillationOptions, distillation
from finetooth_distillation.offline import DistillOptions
from finetooth_distillation.on_policy import OnPolicyOptions
from finetooth_hooks import LossData

S, T, V = 3, 4, 7
RANDOM = np.random.default_rng(8)
MASK = np.arange(T)[None] < np.array([4, 2, 3])[:, None]
ZP, ZQ = RANDOM.normal(scale=1.5, size=(S, T, V)), RANDOM.normal(scale=1.5, size=(S, T, V))
WEIGHTS = RANDOM.uniform(0.2, 1.0, (S, T)) * MASK
TARGETS = RANDOM.integers(0, V, (S, T))


def softmax(z: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    e = np.exp(z / temperature - (z / temperature).max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def apart(p: np.ndarray, q: np.ndarray, o: DistillationOptions) -> float:
    if o.divergence == "forward":
        return float(np.sum(q * np.log(q / p)))
    if o.divergence == "reverse":
        return float(np.sum(p * np.log(p / q)))
    m = o.js_beta * q + (1 - o.js_beta) * p
    return float(o.js_beta * np.sum(q * np.log(q / m)) + (1 - o.js_beta) * np.sum(p * np.log(p / m)))


def merged(p: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Some tokens and all others as one."""
    return np.append(p[ids], 1 - p[ids].sum())


def evaluated(outputs: dict[str, Any], fields: dict[str, Any], options: DistillationOptions) -> tuple[float, Any]:
    data = LossData(MASK, TARGETS, {"weights": WEIGHTS, **fields}, {}, np.arange(S))
    found = distillation(outputs, data, {}, options=options)
    return float(sum(part.weight * part.total for part in found.contributions.values())), found


CASES = [{"divergence": "forward"}, {"divergence": "reverse"}, {"divergence": "js", "js_beta": 0.3},
         {"divergence": "forward", "cross_entropy": 0.5}]  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, {"divergence": "reverse", "scale": 2.0, "temperature": 3.0}])
def test_over_the_whole_vocabulary(case: dict[str, Any]) -> None:
    options = DistillationOptions(**case)
    found, _ = evaluated({"logits": ZP, "logits@teacher": ZQ}, {}, options)
    p, q = softmax(ZP, options.temperature), softmax(ZQ, options.temperature)
    places = list(zip(*np.nonzero(MASK), strict=True))
    expected = options.scale**2 * sum(WEIGHTS[i] * apart(p[i], q[i], options) for i in places)
    expected -= options.cross_entropy * sum(WEIGHTS[i] * np.log(p[i][TARGETS[i]]) for i in places)
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 3, V - 1])
def test_over_some_tokens_and_all_others_as_one(case: dict[str, Any], k: int) -> None:
    """With all but one it is the whole again; with fewer it is less, and the policy's gradient is the slope."""
    torch = pytest.importorskip("torch")
    options = DistillationOptions(**case)
    ids = np.argsort(-ZQ, axis=-1)[..., :k]
    every = np.concatenate([TARGETS[..., None], ids], axis=-1)

    def said(z: np.ndarray) -> tuple[np.ndarray, float]:
        p = softmax(z)
        places = zip(*np.nonzero(MASK), strict=True)
        total = 0.0
        for i in places:
            total += WEIGHTS[i] * apart(merged(p[i], ids[i]), merged(softmax(ZQ)[i], ids[i]), options)
            total -= options.cross_entropy * WEIGHTS[i] * np.log(p[i][TARGETS[i]])
        return np.take_along_axis(np.log(p), every, -1), total

    teacher = np.take_along_axis(np.log(softmax(ZQ)), every, -1)
    logprobs, expected = said(ZP)
    found, _ = evaluated({"logprobs": logprobs}, {"teacher_logprobs": teacher}, options)
    assert found == pytest.approx(expected, rel=1e-9)
    whole, _ = evaluated({"logits": ZP, "logits@teacher": ZQ}, {}, options)
    assert found == pytest.approx(whole, rel=1e-9) if k == V - 1 else found < whole
    z = torch.tensor(ZP, requires_grad=True)
    p = torch.log_softmax(z, -1).gather(-1, torch.tensor(every))
    fields = {"weights": torch.tensor(WEIGHTS), "teacher_logprobs": torch.tensor(teacher)}
    data = LossData(torch.tensor(MASK), torch.tensor(TARGETS), fields, {}, torch.arange(S))
    parts = distillation({"logprobs": p}, data, {}, options=options).contributions.values()
    sum(part.weight * part.total for part in parts).backward()
    for i in [(0, 0, 0), (1, 1, 3), (2, 2, V - 1), (2, 3, 1)]:
        step = np.zeros_like(ZP)
        step[i] = 1e-6
        slope = (said(ZP + step)[1] - said(ZP - step)[1]) / 2e-6
        assert float(z.grad[i]) == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_between_the_two_divergences_it_is_that_of_trl(beta: float) -> None:
    """Its `generalized_jsd_loss`, in float64, and the policy's gradient."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss
    picked = {0.0: {"divergence": "forward"}, 1.0: {"divergence": "reverse"}}
    options = DistillationOptions(**picked.get(beta, {"divergence": "js", "js_beta": beta}), temperature=0.7)
    grads, values = [], []
    for own in (True, False):
        z, q = torch.tensor(ZP, requires_grad=True), torch.tensor(ZQ)
        if own:
            fields = {"weights": torch.tensor(MASK, dtype=torch.float64)}
            data = LossData(torch.tensor(MASK), torch.tensor(TARGETS), fields, {}, torch.arange(S))
            (part,) = distillation({"logits": z, "logits@teacher": q}, data, {}, options=options).contributions.values()
            value = part.total / MASK.sum()
        else:
            labels = torch.where(torch.tensor(MASK), torch.tensor(TARGETS), -100)
            value = theirs(z, q, labels, beta=beta, temperature=0.7)
        value.backward()
        values.append(value.item())
        grads.append(z.grad.numpy())
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    np.testing.assert_allclose(grads[0], grads[1], atol=1e-12)


def test_equal_distributions_are_not_apart() -> None:
    for case in CASES[:3]:
        found, _ = evaluated({"logits": ZP, "logits@teacher": ZP}, {}, DistillationOptions(**case))
        assert found == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        (DistillOptions, {"cross_entropy": 0.1, "temperature": 2.0}, "temperature 1"),
        (OnPolicyOptions, {"teacher_top_k": 4, "top_p": 0.9}, "whole distributions"),
        (OnPolicyOptions, {"teacher_top_k": 4, "beta": 0.1}, "a loss of its own"),
        (OnPolicyOptions, {"dynamic_sampling": True}, "opd learns from no reward"),
    ],
)
def test_what_makes_no_sense_is_refused(options: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options(teacher="runs/large", **given)
