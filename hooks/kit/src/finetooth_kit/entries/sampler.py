"""Checks of samplers, over the fake engine."""

from __future__ import annotations

from typing import cast

from finetooth_hooks.entries import Sampler as Entry
from finetooth_hooks.protocols import Sampler
from finetooth_hooks.rollouts import Prompt
from finetooth_hooks.sampling import Sampling

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect
from finetooth_kit.fake_engine import FakeEngine


@check_for("sampler")
def samples_each_prompt_as_often_as_asked(case: EntryCase) -> None:
    """`sampling.n` rollouts of each prompt, in the prompts' order, not yet scored; the same again for the same seed."""
    if cast(Entry, case.entry).remote:
        raise CheckSkipped("it calls a server: test it together with one")
    context = case.context()
    sampler: Sampler = case.build(context)
    tokens = tuple(context.tokenizer.encode("What is 2 plus 2?"))
    prompts = [Prompt("a:1", "a:1@1", tokens), Prompt("a:2", "a:2@1", tokens[:4]), Prompt("a:1", "a:1@2", tokens)]
    sampling = Sampling(max_tokens=5, n=3, seed=7)
    engine = FakeEngine(context.tokenizer, context.renderer.stop_ids)
    rollouts = sampler.sample(engine, prompts, sampling).rollouts
    who = [(rollout.id, rollout.group, rollout.prompt) for rollout in rollouts]
    expected = [(prompt.id, prompt.group, prompt.tokens) for prompt in prompts for _ in range(3)]
    expect(who == expected, "sample(engine, 3 prompts, n=3)", who, "3 rollouts of each prompt, in order")
    for rollout in rollouts:
        expect(0 < len(rollout.tokens) <= 5, "rollout.tokens", rollout.tokens, "1 to 5 tokens")
        expect(all(value <= 0 for value in rollout.logprobs), "rollout.logprobs", rollout.logprobs, "none above 0")
        expect(rollout.reward is None and not rollout.advantages, "rollout", rollout, "no reward and no advantages yet")
    again = sampler.sample(engine, prompts, sampling).rollouts
    expect(again == rollouts, "sample, a second time with the same seed", "other rollouts", "the same")
