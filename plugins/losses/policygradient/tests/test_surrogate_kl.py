"""The KL of `surrogate` against the gradient of the KL itself, by autograd in float64.

A policy over four tokens at two places is small enough to visit all that can be drawn: the gradients of the loss,
weighted by how often each pair of tokens is drawn, must add up to the gradient of KL(policy, reference) at both places.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from finetooth_grpo.methods import GrpoOptions
from finetooth_hooks import LossData
from finetooth_policygradient.surrogate import SurrogateOptions, surrogate
from finetooth_ppo.method import PpoOptions

torch = pytest.importorskip("torch")

PLACES, TOKENS, BETA = 2, 4, 0.3
RANDOM = torch.Generator().manual_seed(3)


def drawn(scale: float) -> Any:
    return scale * torch.randn(PLACES, TOKENS, generator=RANDOM, dtype=torch.float64)


LOGITS = drawn(1.0)
REFERENCE, OTHER = (torch.log_softmax(drawn(1.0), -1) for _ in range(2))
OLD, BEHAVIOUR = (torch.log_softmax(LOGITS + drawn(0.3), -1) for _ in range(2))
OBJECTIVES = [
    {},
    {"importance_sampling_level": "sequence"},
    {"objective": "cispo"},
    {"objective": "sapo"},
    {"objective": "vespo"},
]


def expected_gradient(options: SurrogateOptions, reference: Any, *, old: bool, behaviour: bool) -> Any:
    """Of the mean loss over everything that the weights that sampled can draw, at the policy's logits."""
    logits = LOGITS.clone().requires_grad_()
    policy = torch.log_softmax(logits, -1)
    pairs = torch.tensor(list(product(range(TOKENS), repeat=PLACES)))

    def of(table: Any) -> Any:
        return table[torch.arange(PLACES), pairs]

    by = BEHAVIOUR if behaviour else OLD if old else policy.detach()
    often = torch.exp(of(by).sum(-1, keepdim=True)).expand(-1, PLACES)
    fields = {"advantages": torch.zeros_like(often), "token_weights": often}
    fields |= {"old_logprobs": of(OLD)} if old else {}
    fields |= {"behaviour_logprobs": of(BEHAVIOUR)} if behaviour else {}
    mask = torch.ones(len(pairs), PLACES, dtype=torch.bool)
    outputs = {"logprobs": of(policy), "entropy": of(policy), "logprobs@reference": of(reference)}
    parts = surrogate(
        outputs, LossData(mask, pairs, fields, {}, torch.arange(len(pairs))), {}, options=options
    ).contributions
    sum(part.weight * part.total for part in parts.values()).backward()
    return logits.grad


def gradient_of_the_kl(reference: Any) -> Any:
    logits = LOGITS.clone().requires_grad_()
    policy = torch.log_softmax(logits, -1)
    (BETA * (policy.exp() * (policy - reference)).sum()).backward()
    return logits.grad


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda case: "-".join(case.values()) or "clip")
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize(("old", "behaviour"), [(False, False), (True, False), (True, True)])
def test_the_mean_gradient_is_that_of_the_kl(kl: Any, objective: dict[str, Any], old: bool, behaviour: bool) -> None:
    """On the weights that sampled, after steps on them, and where other weights drew; as the options are by default."""
    options = SurrogateOptions(beta=BETA, kl=kl, importance_correction_cap=100.0, **objective)
    for reference in (REFERENCE, OTHER):
        of_loss = expected_gradient(options, reference, old=old, behaviour=behaviour)
        np.testing.assert_allclose(of_loss, gradient_of_the_kl(reference), atol=1e-12)


def test_k3_without_the_ratio_is_another_gradient() -> None:
    """What the option says of itself: that of the KL the other way round, from the reference to the policy."""
    options = SurrogateOptions(beta=BETA, kl="k3", use_bias_correction_kl=False)
    biased = expected_gradient(options, REFERENCE, old=False, behaviour=False)
    logits = LOGITS.clone().requires_grad_()
    (BETA * (REFERENCE.exp() * (REFERENCE - torch.log_softmax(logits, -1))).sum()).backward()
    np.testing.assert_allclose(biased, logits.grad, atol=1e-12)
    assert abs(biased - gradient_of_the_kl(REFERENCE)).max() > 0.01


@pytest.mark.parametrize("model", [SurrogateOptions, GrpoOptions])
def test_k1_without_the_ratio_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="kl k1 without use_bias_correction_kl does nothing"):
        model(beta=0.1, kl="k1", use_bias_correction_kl=False)
    model(kl="k1", use_bias_correction_kl=False)  # without beta there is no KL


@pytest.mark.parametrize("model", [GrpoOptions, PpoOptions])
def test_options_of_the_loss_are_refused_where_the_reward_pays(model: Any) -> None:
    for given in ({"kl": "k3"}, {"use_bias_correction_kl": False}, {"kl": "k2", "use_bias_correction_kl": True}):
        with pytest.raises(ValueError, match="the KL is taken from the reward as k1"):
            model(beta=0.1, kl_in="reward", **given)
    model(beta=0.1, kl_in="reward", kl="k1")
    model(beta=0.1, kl_in="loss", kl="k3")
