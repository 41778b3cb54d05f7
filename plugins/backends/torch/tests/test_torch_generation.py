"""Sampling against transformers' own generate, the engine's own scores, and the distribution itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, EngineError, Sampling
from finetooth_steps.sampling import row_streams
from finetooth_torch.device import graphs
from finetooth_torch.generation.sampling import choose

PROMPTS = [[5, 9, 14], [7], [30, 31, 32, 33, 34, 35, 36], [8, 8, 50, 2, 21]]
FREE = Sampling(max_tokens=12, temperature=0, stop_ids=())


@pytest.mark.parametrize("config", ["llama", "qwen2"])
@pytest.mark.parametrize("budget", [4, 10_000])
def test_greedy_is_transformers_generate_token_for_token(kit: SimpleNamespace, config: str, budget: int) -> None:
    engine = kit.engine(config=kit.config(config), micro_batch_tokens=budget)
    for prompt, (completion,) in zip(PROMPTS, engine.generate(PROMPTS, FREE), strict=True):
        with torch.no_grad():
            whole = engine._parts.network.base.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
            )
        assert completion.tokens == tuple(whole[0, len(prompt) :].tolist())
        assert completion.stop == "length"


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_are_those_of_the_unscaled_model(kit: SimpleNamespace, temperature: float) -> None:
    engine = kit.engine()
    sampling = Sampling(max_tokens=9, temperature=temperature, top_k=20, stop_ids=(), n=2)
    for prompt, completions in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        for one in completions:
            datum = Datum.from_tokens([*prompt, *one.tokens])
            scored = engine.logprobs([datum])[0][len(prompt) - 1 :]
            assert np.allclose(one.logprobs, scored, atol=1e-4)


def test_the_seed_alone_decides(kit: SimpleNamespace) -> None:
    engine = kit.engine(micro_batch_tokens=10_000)
    sampling = Sampling(max_tokens=10, n=2, seed=3, stop_ids=(4, 5, 6, 7, 8, 9))  # rows leave at different times
    together = engine.generate(PROMPTS, sampling)
    alone = [engine.generate([prompt], sampling)[0] for prompt in PROMPTS]
    cut = kit.engine(micro_batch_tokens=4).generate(PROMPTS[::-1], sampling)[::-1]
    assert [[c.tokens for c in one] for one in together] == [[c.tokens for c in one] for one in alone]
    assert [[c.tokens for c in one] for one in together] == [[c.tokens for c in one] for one in cut]
    assert together[0][0].tokens != together[0][1].tokens
    assert engine.generate(PROMPTS, Sampling(max_tokens=10, n=2, seed=4))[0][0].tokens != together[0][0].tokens
    assert len({len(c.tokens) for one in together for c in one}) > 1


def test_equal_prompts_get_different_completions_like_samples_of_one(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    twice = engine.generate([PROMPTS[0]] * 2, Sampling(max_tokens=8, stop_ids=()))
    (both,) = engine.generate([PROMPTS[0]], Sampling(max_tokens=8, n=2, stop_ids=()))
    assert [one[0].tokens for one in twice] == [one.tokens for one in both]
    assert both[0].tokens != both[1].tokens


def test_a_stop_token_is_in_the_tokens_and_not_in_the_text(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    (free,) = engine.generate([PROMPTS[0]], FREE)[0]
    stop = free.tokens[4]
    at = free.tokens.index(stop)
    (ended,) = engine.generate([PROMPTS[0]], Sampling(max_tokens=12, temperature=0, stop_ids=(stop,)))[0]
    assert ended.tokens == free.tokens[: at + 1] and ended.stop == "stop"
    assert ended.text == free.text[:at]
    assert len(ended.logprobs) == at + 1


def test_a_stop_string_ends_the_text_before_it(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    (free,) = engine.generate([PROMPTS[1]], FREE)[0]
    stop = free.text[5:7]
    at = free.text.find(stop)
    (ended,) = engine.generate([PROMPTS[1]], Sampling(max_tokens=12, temperature=0, stop=(stop,), stop_ids=()))[0]
    assert ended.text == free.text[:at] and ended.stop == "stop"
    assert ended.tokens == free.tokens[: at + 2]  # the tokens include it


def test_the_family_stops_by_default_and_the_model_has_an_end(kit: SimpleNamespace) -> None:
    engine = kit.engine(config=kit.config(max_position_embeddings=16))
    (capped,) = engine.generate([PROMPTS[2]], Sampling(max_tokens=500, stop_ids=()))[0]
    assert len(capped.tokens) == 16 - len(PROMPTS[2]) and capped.stop == "length"
    completions = engine.generate([PROMPTS[0]], Sampling(max_tokens=13, n=30, temperature=3.0))[0]
    assert all((1 in c.tokens) == (c.stop == "stop") for c in completions)
    assert {c.stop for c in completions} == {"stop", "length"}
    for prompt, words in (([], "is empty"), (list(range(16)), "no room to answer"), ([99], "outside the vocabulary")):
        with pytest.raises(EngineError, match=words):
            engine.generate([prompt], FREE)
    with pytest.raises(EngineError, match="temperature"):
        engine.generate(PROMPTS, Sampling(temperature=float("nan")))


def test_completions_know_their_weights(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    assert engine.generate(PROMPTS, FREE)[0][0].weights_version == 0
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    assert engine.generate(PROMPTS, FREE)[0][0].weights_version == 1
    assert engine.generate([], FREE).completions == []


def chi_square(counts: Any, expected: Any) -> float:
    return float((((counts - expected) ** 2)[expected > 0] / expected[expected > 0]).sum())


@pytest.mark.parametrize(
    ("sampling", "keep"),
    [
        (Sampling(temperature=1.0), 8),
        (Sampling(temperature=0.5), 8),
        (Sampling(temperature=1.0, top_k=3), 3),
        (Sampling(temperature=1.0, top_p=0.8), 4),
        (Sampling(temperature=2.0, top_k=5, top_p=0.9), None),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling, keep: int | None) -> None:
    """Chi-square over 20,000 draws; 30 is beyond the 99.9 % point of 7 degrees of freedom."""
    logits = torch.log(torch.tensor([[0.05, 0.3, 0.02, 0.2, 0.25, 0.03, 0.05, 0.1]]))
    p = (logits[0].double() / sampling.temperature).exp().numpy()
    order = np.argsort(-p, kind="stable")
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p = p / p.sum()
    if sampling.top_p < 1:
        ahead = np.cumsum(p[order]) - p[order]
        p[order[ahead >= sampling.top_p]] = 0
        p = p / p.sum()
    if keep is not None:
        assert (p > 0).sum() == keep
    stream = np.random.default_rng(0)
    draws = choose(logits.expand(20_000, -1), sampling, [stream] * 20_000).tokens.numpy()
    counts = np.bincount(draws, minlength=8)
    assert (counts[p == 0] == 0).all()
    assert chi_square(counts, 20_000 * p) < 30


def test_streams_depend_on_prompt_seed_and_number() -> None:
    def draws(prompts: Any, **settings: Any) -> Any:
        return [[s.random() for s in row] for row in row_streams(prompts, Sampling(**settings))]

    base = draws([[1, 2], [3]], n=2)
    assert draws([[3]], n=2)[0] == base[1]
    assert draws([[1, 2], [1, 2]], n=1) == [[base[0][0]], [base[0][1]]]
    assert len({x for row in base for x in row}) == 4
    assert draws([[1, 2], [3]], n=2, seed=1) != base


def oracle(logits: Any, sampling: Sampling, draw: float) -> int:
    """The token of one row in float64: a stable sort of all, and the inverse of the distribution as it is defined."""
    scaled = logits.astype(np.float64) / sampling.temperature
    p = np.exp(scaled - scaled.max())
    order = np.argsort(-scaled, kind="stable")
    if 0 < sampling.top_k < len(p) or sampling.top_p < 1:
        ranked = p[order]
        if sampling.top_k:
            ranked[sampling.top_k :] = 0
        ranked /= ranked.sum()
        if sampling.top_p < 1:
            ranked[np.cumsum(ranked) - ranked >= sampling.top_p] = 0
    else:
        order, ranked = np.arange(len(p)), p
    return int(order[np.searchsorted(np.cumsum(ranked), draw * ranked.sum(), side="right")])


@pytest.mark.parametrize("likeliest", [4, 512])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.3),
        Sampling(temperature=1.0, top_k=40),
        Sampling(temperature=1.5, top_p=0.9),
        Sampling(temperature=0.7, top_k=300, top_p=0.5),
        Sampling(temperature=1.0, top_k=5000),
    ],
)
def test_a_large_vocabulary_with_ties_is_drawn_from_by_definition(
    monkeypatch: pytest.MonkeyPatch, sampling: Sampling, likeliest: int
) -> None:
    """Logits rounded to bfloat16, so that many are equal at every boundary; 1,000 tokens are three blocks and a bit."""
    monkeypatch.setattr("finetooth_torch.generation.sampling.LIKELIEST", likeliest)
    random = np.random.default_rng(2)
    logits = torch.from_numpy(random.normal(size=(200, 1000)) * 3).bfloat16().float()
    logits[:, random.integers(0, 1000, 100)] = -torch.inf
    found = choose(logits, sampling, [np.random.default_rng(i) for i in range(200)]).tokens
    expected = [oracle(row, sampling, np.random.default_rng(i).random()) for i, row in enumerate(logits.numpy())]
    assert found.tolist() == expected
    alone = [int(choose(logits[i : i + 1], sampling, [np.random.default_rng(i)]).tokens) for i in range(20)]
    assert alone == expected[:20]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(temperature=2.0, top_k=50)])
def test_scores_are_log_softmax_whatever_the_temperature(sampling: Sampling) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 700)) * 20).float()
    chosen = choose(logits, sampling, [np.random.default_rng(i) for i in range(30)])
    tokens, found = chosen.tokens, chosen.logprobs
    exact = torch.log_softmax(logits.double(), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-5) and (found <= 0).all()
    assert torch.equal(tokens, logits.argmax(-1)) == (sampling.temperature == 0)


def test_the_last_share_of_a_draw_stays_inside() -> None:
    """The largest draw there is picks the last token that can be drawn, however sums are rounded."""

    class Top:
        def random(self) -> float:
            return 1 - 2.0**-53

    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(200, 600))).float()
    logits[:, 580:] = -torch.inf
    assert choose(logits, Sampling(), [Top()] * 200).tokens.tolist() == [579] * 200  # type: ignore[list-item]
    last = logits[:1].argsort(descending=True, stable=True)[0]
    assert choose(logits[:1], Sampling(top_k=7), [Top()]).tokens.item() == int(last[6])  # type: ignore[list-item]


def test_what_sampling_took_is_counted(kit: Any) -> None:
    """Against torch's own counter of the products that transformers' code makes; the stream decoder makes no more."""
    from torch.utils.flop_counter import FlopCounterMode

    engine = kit.engine(config=kit.config(hidden_size=64, intermediate_size=160, vocab_size=512), facts={"block": None})
    sampling = Sampling(max_tokens=7, stop_ids=(), n=2, seed=1)  # fewer than packs the head, which torch does not count
    with FlopCounterMode(display=False) as counter:
        found = engine.generate(PROMPTS, sampling)
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    if kit.decoder == "auto":
        config = kit.config(hidden_size=64, intermediate_size=160, vocab_size=512)
        assert 0.6 * found.flops < kit.engine(config=config).generate(PROMPTS, sampling).flops < 1.05 * found.flops
    assert engine.forward_backward(kit.data(), kit.nll).flops > 0  # and nothing of it is left for the next call
    assert engine.generate([], sampling).flops == 0


@pytest.mark.parametrize("replays", [False, True], ids=["", "like a GPU"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, drawn=True),
        Sampling(temperature=0.6, drawn=True),
        Sampling(temperature=1.3, top_k=7, drawn=True),
        Sampling(temperature=0.8, top_p=0.7, drawn=True),
        Sampling(temperature=1.5, top_k=20, top_p=0.6, drawn=True),
    ],
)
def test_what_a_token_was_drawn_from_is_told(
    sampling: Sampling, replays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the definition in float64: softmax(z / T), the top_k likeliest, the smallest set of them that reaches
    top_p, divided by what is left."""
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(50, 61)) * 2).float()
    plain = choose(logits, sampling, [np.random.default_rng(i) for i in range(50)])
    monkeypatch.setattr(graphs, "replays", lambda device: replays)
    chosen = choose(logits, sampling, [np.random.default_rng(i) for i in range(50)])
    assert chosen.drawn is not None and chosen.kept == plain.kept
    assert torch.equal(chosen.tokens, plain.tokens) and torch.equal(chosen.logprobs.float(), plain.logprobs.float())
    for i, (row, token) in enumerate(zip(logits.double().numpy(), chosen.tokens.tolist(), strict=True)):
        p = np.exp(row / sampling.temperature)
        order = np.argsort(-p, kind="stable")[: sampling.top_k or None]
        p = p[order] / p[order].sum()
        kept = order[: 1 + int((np.cumsum(p)[:-1] < sampling.top_p).sum())]
        share = np.exp(row / sampling.temperature)
        assert chosen.drawn[i].item() == pytest.approx(np.log(share[token] / share[kept].sum()), abs=1e-5)
        if sampling.top_k or sampling.top_p < 1:
            assert chosen.kept[i] == tuple(sorted(kept.tolist()))
        else:
            assert chosen.kept == ()


def test_completions_say_what_they_were_drawn_from_if_asked(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    sampling = Sampling(max_tokens=6, temperature=0.7, top_k=5, n=2, stop_ids=())
    plain, told = engine.generate([[2, 3]], sampling), engine.generate([[2, 3]], replace(sampling, drawn=True))
    assert all(one.drawn_logprobs == one.kept == () for one in plain[0])
    for one, other in zip(plain[0], told[0], strict=True):
        assert one.tokens == other.tokens and one.logprobs == other.logprobs  # asking changes nothing
        assert len(other.drawn_logprobs) == len(other.kept) == 6
        assert all(token in kept and len(kept) == 5 for token, kept in zip(other.tokens, other.kept, strict=True))
