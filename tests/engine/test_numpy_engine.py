"""The NumPy engine keeps the engine's contract, and its hand-written gradients are right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from finetooth_kit import parametrize_engine, parametrize_with_checks
from toy_numpy.making import engine
from toy_numpy.model import MATRICES, Toy, entropy, gather, grad_of_entropy, grad_of_targets, new_head
from toy_numpy.optimizers import Adam
from toy_numpy.parts import Factory

VOCAB = 12


@parametrize_engine(engine, vocab_size=VOCAB, name="numpy-sgd")
def test_engine_conforms(check: Callable[[], None]) -> None:
    check()


@parametrize_engine(
    partial(engine, budget=1000, optimizer=Factory(0.01, Adam)), vocab_size=VOCAB, name="numpy-adam-one-batch"
)
def test_engine_with_adam_conforms(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks("toy_numpy.plugin", "proof_losses.plugin")
def test_plugins_conform(check: Callable[[], None]) -> None:
    check()


def test_gradient_of_the_head_equals_central_differences() -> None:
    rng = np.random.default_rng(0)
    toy = Toy.random(1, 7, 4)
    toy.delta = {name: rng.normal(size=toy.base[name].shape) * 0.1 for name in MATRICES} | new_head(rng, 4)
    tokens, slope = rng.integers(0, 7, size=6), rng.normal(size=6)
    grads = toy.backward(toy.forward(tokens), np.zeros((6, 7)), slope)
    for name in ("v", "u", "W", "E"):
        for index in np.ndindex(*toy.delta[name].shape):
            ends = []
            for sign in (1, -1):
                toy.delta[name][index] += sign * 1e-5
                ends.append(float(slope @ toy.values(toy.forward(tokens))))
                toy.delta[name][index] -= sign * 1e-5
            assert grads[name][index] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("output", ["logprobs", "entropy"])
def test_model_gradient_equals_central_differences(output: str) -> None:
    rng = np.random.default_rng(0)
    toy = Toy.random(1, 7, 4)
    toy.delta = {name: rng.normal(size=toy.base[name].shape) * 0.1 for name in MATRICES}
    tokens, targets = rng.integers(0, 7, size=6), rng.integers(0, 7, size=(6, 2))
    slope = rng.normal(size=(6, 2)) if output == "logprobs" else rng.normal(size=6)

    def objective() -> float:
        done = toy.forward(tokens)
        return float((slope * (gather(done, targets) if output == "logprobs" else entropy(done))).sum())

    done = toy.forward(tokens)
    at_logits = grad_of_targets(done, targets, slope) if output == "logprobs" else grad_of_entropy(done, slope)
    grads = toy.backward(done, at_logits)
    for name in MATRICES:
        for index in np.ndindex(*toy.delta[name].shape):
            ends = []
            for sign in (1, -1):
                toy.delta[name][index] += sign * 1e-5
                ends.append(objective())
                toy.delta[name][index] -= sign * 1e-5
            assert grads[name][index] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-8)
