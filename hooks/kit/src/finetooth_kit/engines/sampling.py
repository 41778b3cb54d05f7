"""Checks of `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.sampling import Completion, Sampling

from finetooth_kit.checks import expect
from finetooth_kit.engines.cases import EngineCase, close
from finetooth_kit.losses import BEHIND_LIKELIEST, WEIGHTED_NLL

_GREEDY = Sampling(max_tokens=6, temperature=0.0, stop_ids=())
_SAMPLED = Sampling(max_tokens=6, temperature=1.0, stop_ids=(), n=2, seed=7)


def _tokens(completions: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.tokens for completion in several] for several in completions]


def greedy_takes_the_likeliest(case: EngineCase) -> None:
    """At temperature 0 every token is the likeliest one by `logprobs`, and the text is its length limit."""
    engine = case.engine("generate")
    for prompt, (completion,) in zip(case.prompts(), engine.generate(case.prompts(), _GREEDY), strict=True):
        expect(len(completion.tokens) == 6, "generate(max_tokens=6)", f"{len(completion.tokens)} tokens", "6")
        expect(completion.stop == "length", "generate without stop tokens", completion.stop, "'length'")
        read = [*prompt, *completion.tokens[:-1]]
        scores = engine.logprobs([case.every_target(read)])[0][len(prompt) - 1 :]
        for i, token in enumerate(completion.tokens):
            best = float(scores[i].max())
            close(engine, f"score of greedy token {i}", float(scores[i][token]), best, "the highest at its place")


def completion_logprobs_are_logprobs(case: EngineCase) -> None:
    """The log-probabilities of a completion are those `logprobs` gives the same tokens, whatever the temperature."""
    engine = case.engine("generate")
    for sampling in (_GREEDY, _SAMPLED, replace(_SAMPLED, temperature=0.5, top_k=5)):
        for prompt, several in zip(case.prompts(), engine.generate(case.prompts(), sampling), strict=True):
            for completion in several:
                _compare(engine, prompt, completion, f"generate(temperature={sampling.temperature}).logprobs")


def _compare(engine: Engine, prompt: list[int], completion: Completion, called: str) -> None:
    weights = [0.0] * len(prompt) + [1.0] * len(completion.tokens)
    datum = Datum.from_tokens([*prompt, *completion.tokens], weights, id="kit:completion")
    wanted = engine.logprobs([datum])[0][len(prompt) - 1 :]
    close(engine, called, completion.logprobs, wanted, "logprobs of the same tokens")


def seed_alone_decides(case: EngineCase) -> None:
    """The same seed gives the same tokens, alone, in a batch, and again; another seed gives others."""
    engine = case.engine("generate")
    prompts = case.prompts()
    first = _tokens(engine.generate(prompts, _SAMPLED))
    expect(_tokens(engine.generate(prompts, _SAMPLED)) == first, "generate, a second time", "other tokens", "the same")
    expect(first[0][0] != first[0][1], "generate(n=2)", f"twice {first[0][0]}", "two draws")
    other = _tokens(engine.generate(prompts, replace(_SAMPLED, seed=8)))
    expect(other != first, "generate with another seed", "the same tokens", "other ones")
    alone = _tokens(engine.generate(prompts[:1], _SAMPLED))
    expect(alone[0] == first[0], "generate of the first prompt alone", alone[0], f"{first[0]}, as in the batch")
    shorter = _tokens(engine.generate(prompts[:2], _SAMPLED))
    expect(shorter == first[:2], "generate of the first two prompts", shorter, f"{first[:2]}, as in the batch")


def top_k_one_is_greedy(case: EngineCase) -> None:
    """`top_k=1`, and a vanishing `top_p`, leave only the likeliest token."""
    engine = case.engine("generate")
    greedy = _tokens(engine.generate(case.prompts(), _GREEDY))
    for name, sampling in (
        ("top_k=1", replace(_SAMPLED, top_k=1, n=1)),
        ("top_p=1e-6", replace(_SAMPLED, top_p=1e-6, n=1)),
    ):
        got = _tokens(engine.generate(case.prompts(), sampling))
        expect(got == greedy, f"generate({name})", got, f"{greedy}, as at temperature 0")


def min_p_one_is_greedy(case: EngineCase) -> None:
    """`min_p=1` leaves only the likeliest token, where the engine names the capability."""
    engine = case.engine("generate")
    if "min_p" not in engine.capabilities:
        return
    greedy = _tokens(engine.generate(case.prompts(), _GREEDY))
    got = _tokens(engine.generate(case.prompts(), replace(_SAMPLED, min_p=1.0, n=1)))
    expect(got == greedy, "generate(min_p=1)", got, f"{greedy}, as at temperature 0")


def a_repetition_penalty_parts_what_was_there(case: EngineCase) -> None:
    """Greedy tokens under a penalty are the likeliest ones of a loss with that penalty, whose log-probabilities are not
    those of the model; those of the completion are. Where the engine names the capability."""
    engine = case.engine("generate")
    if "repetition_penalty" not in engine.capabilities:
        return
    penalty = 1e3
    greedy = replace(_GREEDY, repetition_penalty=penalty)
    for prompt, (completion,) in zip(case.prompts(), engine.generate(case.prompts(), greedy), strict=True):
        called = f"generate(repetition_penalty={penalty:g})"
        _compare(engine, prompt, completion, f"{called}.logprobs")
        read = [*prompt, *completion.tokens[:-1]]
        every = case.every_target(read)
        drawn = np.equal(every.targets, np.asarray([*prompt[1:], *completion.tokens])[:, None])
        mask = np.arange(len(read)) >= len(prompt) - 1
        marked = replace(every, mask=mask, fields={"weights": drawn * 1.0})
        behind = engine.forward([marked], replace(BEHIND_LIKELIEST, repetition_penalty=penalty)).loss
        close(engine, called, behind, 0.0, "the likeliest tokens of a loss with that penalty")
        plain = case.engine().forward([marked], WEIGHTED_NLL).loss
        parted = engine.forward([marked], replace(WEIGHTED_NLL, repetition_penalty=penalty)).loss
        assert parted is not None and plain is not None  # both are of a loss
        expect(abs(parted - plain) > 1e-3, "forward of a loss with a penalty", parted, f"not {plain}, as without one")


def _without_repeats(tokens: Sequence[int]) -> bool:
    return len(set(tokens)) == len(tokens)


def additions_are_to_logits(case: EngineCase) -> None:
    """Checks additions to logits, for an engine with the capability `additions`: a banned token is never drawn, a token
    with a large bias is always drawn, and a large penalty prevents repeats; log-probabilities stay the model's own."""
    engine = case.engine("generate")
    if "additions" not in engine.capabilities:
        return
    prompts = case.prompts()
    plain = [of[0].tokens for of in engine.generate(prompts, _GREEDY)]
    first = plain[0][0]
    greedy = replace(_GREEDY, stop_ids=())
    for called, settings, holds in (
        ("a logit_bias of -1e4", replace(greedy, logit_bias=((first, -1e4),)), lambda tokens: first not in tokens),
        ("a logit_bias of 1e4", replace(greedy, logit_bias=((first, 1e4),)), lambda tokens: set(tokens) == {first}),
        ("presence_penalty=1e4", replace(greedy, presence_penalty=1e4), _without_repeats),
        ("frequency_penalty=1e4", replace(greedy, frequency_penalty=1e4), _without_repeats),
    ):
        for prompt, (completion,) in zip(prompts, engine.generate(prompts, settings), strict=True):
            fits: bool = holds(completion.tokens)
            expect(fits, f"generate({called})", completion.tokens, f"other ones than {plain}")
            _compare(engine, prompt, completion, f"generate({called}).logprobs")


def stop_ids_end_a_completion(case: EngineCase) -> None:
    """A stop id ends its completion and is its last token; the others continue."""
    engine = case.engine("generate")
    prompts = case.prompts()
    plain = engine.generate(prompts, _GREEDY)
    stop_id = plain[0][0].tokens[2]
    stopped = engine.generate(prompts, replace(_GREEDY, stop_ids=(stop_id,)))
    for i, ((before,), (after,)) in enumerate(zip(plain, stopped, strict=True)):
        ends = before.tokens.index(stop_id) + 1 if stop_id in before.tokens else len(before.tokens)
        called = f"generate(stop_ids=({stop_id},)), prompt {i}"
        expect(after.tokens == before.tokens[:ends], called, after.tokens, f"{before.tokens[:ends]}")
        wanted = "stop" if stop_id in before.tokens else "length"
        expect(after.stop == wanted, called, after.stop, wanted)
        expect(len(after.logprobs) == len(after.tokens), called, f"{len(after.logprobs)} logprobs", "one a token")


def completions_name_their_weights(case: EngineCase) -> None:
    """`weights_version` of a completion is the engine's, operations are counted or 0, and no gradient is touched."""
    engine, data = case.engine("generate"), case.data()
    engine.forward_backward(data, WEIGHTED_NLL)
    engine.generate(case.prompts(), _SAMPLED)
    norm = engine.step().grad_norm
    other = case.engine()
    other.forward_backward(data, WEIGHTED_NLL)
    close(engine, "grad_norm with generate before the step", norm, other.step().grad_norm, "the same without")
    completions = engine.generate(case.prompts(), _GREEDY)
    expect(
        np.isfinite(completions.flops) and completions.flops >= 0,
        "generate(...).flops",
        completions.flops,
        "a number, 0 or more",
    )
    version = completions[0][0].weights_version
    expect(version == 1, "generate(...) after one step", f"weights_version {version}", "1")
    again = np.array(engine.generate(case.prompts(), _GREEDY)[0][0].logprobs)
    expect(np.isfinite(again).all() and (again <= 1e-6).all(), "completion.logprobs", again, "finite, at most 0")


CHECKS = (
    greedy_takes_the_likeliest,
    completion_logprobs_are_logprobs,
    seed_alone_decides,
    top_k_one_is_greedy,
    min_p_one_is_greedy,
    a_repetition_penalty_parts_what_was_there,
    additions_are_to_logits,
    stop_ids_end_a_completion,
    completions_name_their_weights,
)
