"""`min_p` and `repetition_penalty`: what is drawn from, and what is trained, against float64 and transformers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, EngineError, Sampling
from finetooth_hooks.models import Head
from finetooth_torch.generation.sampling import choose
from finetooth_torch.heads.head import Projection
from finetooth_torch.heads.repetition import Repetition, SeenIds, penalised
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

PROMPTS = [[5, 6, 7, 5], [9, 4, 4]]


def of_transformers(sampling: Sampling) -> LogitsProcessorList:
    """Its processors, in the order in which `generate` applies them."""
    return LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            TemperatureLogitsWarper(sampling.temperature),
            *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
            *([TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
            *([MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []),
        ]
    )


def log_softmax(z: Any) -> Any:
    z = np.asarray(z, dtype=np.float64)
    top = z.max(-1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))


def penalised_by_definition(logits: Any, read: Any, penalty: float) -> Any:
    """One row in float64, token by token."""
    found = np.array(logits, dtype=np.float64)
    for token in set(read):
        found[token] = found[token] * penalty if found[token] < 0 else found[token] / penalty
    return found


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(min_p=0.1),
        Sampling(temperature=1.7, min_p=0.02),
        Sampling(temperature=0.6, top_k=20, min_p=0.3),
        Sampling(temperature=1.2, top_p=0.7, min_p=0.05),
        Sampling(temperature=0.9, top_k=50, top_p=0.9, min_p=0.01),
        Sampling(repetition_penalty=1.3),
        Sampling(temperature=0.7, repetition_penalty=0.8, min_p=0.1),
    ],
)
def test_what_is_drawn_from_is_that_of_transformers(sampling: Sampling) -> None:
    """For 50 rows over 700 tokens: which tokens are kept, and the log-probability of the drawn one among them."""
    random = np.random.default_rng(3)
    logits = torch.from_numpy(random.normal(size=(50, 700)) * 2).float()
    read = torch.from_numpy(random.integers(0, 700, (50, 300)))
    rows = [SeenIds(row) for row in read.tolist()]
    source = penalised(logits, rows, sampling.repetition_penalty) if sampling.repetition_penalty != 1 else None
    streams = [np.random.default_rng(i) for i in range(50)]
    found = choose(logits, replace(sampling, drawn=True), streams, source=source)
    theirs = of_transformers(sampling)(read, logits.double()).numpy()
    expected = log_softmax(theirs)
    kept = [tuple(np.flatnonzero(np.isfinite(row))) for row in theirs]
    assert list(found.kept) == (kept if sampling.leaves_out else [])
    assert found.drawn is not None
    np.testing.assert_allclose(found.drawn.numpy(), expected[np.arange(50), found.tokens.numpy()], atol=2e-6)
    plain = log_softmax(logits.numpy())[np.arange(50), found.tokens.numpy()]
    np.testing.assert_allclose(found.logprobs.numpy(), plain, atol=2e-6)  # of the model as it is


@pytest.mark.parametrize("sampling", [Sampling(min_p=0.3), Sampling(temperature=2.0, top_k=6, min_p=0.6)])
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    """Chi-square over 20,000 draws; 30 is beyond the 99.9 % point of 7 degrees of freedom."""
    logits = torch.log(torch.tensor([[0.05, 0.3, 0.02, 0.2, 0.25, 0.03, 0.05, 0.1]]))
    p = np.exp(log_softmax(of_transformers(sampling)(torch.zeros(1, 1).long(), logits.double()).numpy()))[0]
    stream = np.random.default_rng(0)
    draws = choose(logits.expand(20_000, -1), sampling, [stream] * 20_000).tokens.numpy()
    counts = np.bincount(draws, minlength=8)
    assert (counts[p == 0] == 0).all() and 1 < (p > 0).sum() < 8
    assert (((counts - 20_000 * p) ** 2)[p > 0] / (20_000 * p)[p > 0]).sum() < 30


SAMPLED = Sampling(
    max_tokens=9, temperature=0.8, top_k=30, min_p=0.05, repetition_penalty=1.5, n=2, seed=1, stop_ids=(), drawn=True
)


ADDED = replace(SAMPLED, presence_penalty=0.7, frequency_penalty=0.4, logit_bias=((5, 2.5), (9, -3.0)))


def added_by_definition(logits: Any, written: Any, sampling: Sampling) -> Any:
    """OpenAI's: mu[j] - c[j] * frequency - (c[j] > 0) * presence + bias[j], c counting the completion's tokens."""
    found = np.array(logits, dtype=np.float64)
    for token in set(written):
        found[token] -= written.count(token) * sampling.frequency_penalty + sampling.presence_penalty
    for token, bias in sampling.logit_bias:
        found[token] += bias
    return found


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLED,
        replace(SAMPLED, top_k=0, min_p=0.0),
        replace(SAMPLED, temperature=0.0),
        ADDED,
        replace(ADDED, repetition_penalty=1.0, temperature=0.0, max_tokens=30),
        replace(SAMPLED, repetition_penalty=1.0, frequency_penalty=-0.5),
    ],
)
def test_a_completion_says_what_it_was_drawn_from(kit: SimpleNamespace, sampling: Sampling) -> None:
    """The engine's own logits in float64, penalised for the prompt and what was written before each token."""
    engine = kit.engine()
    for prompt, several in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        for one in several:
            tokens = [*prompt, *one.tokens]
            datum = Datum.from_tokens(tokens, [0.0] * len(prompt) + [1.0] * len(one.tokens))
            logits = engine.forward([datum], returns=("logits",), train=False).outputs[0]["logits"][datum.mask]
            for i, token in enumerate(one.tokens):
                read = tokens[: len(prompt) + i]
                z = penalised_by_definition(logits[i], read, sampling.repetition_penalty)
                z = added_by_definition(z, list(one.tokens[:i]), sampling)
                if sampling.temperature == 0:
                    assert one.drawn_logprobs[i] == 0 and z[token] >= z.max() - 1e-4
                    continue
                z = z / sampling.temperature
                if sampling.leaves_out:
                    left = np.isin(np.arange(len(z)), one.kept[i])
                    assert left.sum() <= 30 and np.exp(z[left].min() - z.max()) >= 0.05 - 1e-5
                    z = np.where(left, z, -np.inf)
                np.testing.assert_allclose(one.drawn_logprobs[i], log_softmax(z)[token], atol=1e-4)


def test_a_penalty_is_told_apart_in_one_batch(kit: SimpleNamespace) -> None:
    """Requests with and without it share a running batch, and each gets what it gets alone."""
    engine = kit.engine()
    alike = replace(SAMPLED, drawn=False, n=1)
    settings = [alike, replace(alike, repetition_penalty=1.0), replace(alike, logit_bias=((5, 99.0),))]
    alone = [engine.generate([PROMPTS[0]], one)[0][0].tokens for one in settings]
    batch = engine.running_batch()
    numbers = [batch.add(PROMPTS[0], one) for one in settings]
    done: dict[int, Any] = {}
    while len(batch):
        done |= {one.request: one.completion.tokens for one in batch.step() if one.completion is not None}
    assert [done[number] for number in numbers] == alone and alone[0] != alone[1]


@pytest.mark.parametrize("settings", [{"min_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0},
                                      {"presence_penalty": float("nan")}, {"logit_bias": ((10**6, 1.0),)},
                                      {"logit_bias": ((5, 1.0), (5, 2.0))}])  # fmt: skip
def test_what_means_nothing_is_refused(kit: SimpleNamespace, settings: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=next(iter(settings))):
        kit.engine().generate(PROMPTS, Sampling(**settings))


@pytest.mark.parametrize("targets", [1, 4])
@pytest.mark.parametrize("rows", [1, 1000])
def test_a_head_scores_with_the_penalty(targets: int, rows: int) -> None:
    """Log-probabilities, entropy and the gradients of both: against whole logits in float64, whatever the chunks."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 40).double()
    head = Projection(lambda: linear, Head(scale=0.7, softcap=3.0), 40, chunk_bytes=4 * 40 * rows)
    tokens = torch.randint(0, 40, (3, 12))
    mask = torch.rand(3, 12) > 0.3
    hidden = torch.randn(int(mask.sum()), 6, dtype=torch.float64, requires_grad=True)
    wanted = torch.randint(0, 40, (int(mask.sum()), targets))
    wanted = wanted if targets > 1 else wanted.squeeze(1)
    logprobs, entropy = head.scores(
        hidden, wanted, entropy=True, temperature=0.6, repetition=Repetition.of(1.4, tokens, mask.numpy())
    )
    assert entropy is not None
    z = 3.0 * torch.tanh(0.7 * linear(hidden) / 3.0)
    places = mask.nonzero().tolist()
    factors = torch.ones_like(z)
    for i, (s, t) in enumerate(places):
        for token in set(tokens[s, : t + 1].tolist()):
            factors[i, token] = 1.4 if z[i, token] < 0 else 1 / 1.4
    log_p = torch.log_softmax(z * factors / 0.6, -1)
    ours, theirs = (
        logprobs.sum() + 0.3 * entropy.sum(),
        log_p.gather(1, wanted.reshape(len(places), -1)).sum() - 0.3 * (log_p.exp() * log_p).sum(),
    )
    torch.testing.assert_close(logprobs, log_p.gather(1, wanted.reshape(len(places), -1)).reshape(wanted.shape))
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1))
    mine = torch.autograd.grad(ours, [hidden, linear.weight], retain_graph=True)
    for a, b in zip(mine, torch.autograd.grad(theirs, [hidden, linear.weight]), strict=True):
        torch.testing.assert_close(a, b)


def test_what_trains_is_what_was_drawn_from(kit: SimpleNamespace) -> None:
    """A loss with the penalty reads the log-probabilities that a completion said, and the entropy of the same."""
    engine = kit.engine()
    sampling = replace(SAMPLED, top_k=0, min_p=0.0)
    spec = replace(kit.nll, temperature=sampling.temperature, repetition_penalty=sampling.repetition_penalty)
    for prompt, several in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        data = [
            Datum.from_tokens([*prompt, *one.tokens], [0.0] * len(prompt) + [1.0] * len(one.tokens)) for one in several
        ]
        outputs = engine.forward(data, spec, returns=("logprobs",), train=False).outputs
        for one, datum, of in zip(several, data, outputs, strict=True):
            np.testing.assert_allclose(of["logprobs"][datum.mask], one.drawn_logprobs, atol=1e-5)
