"""Limits the length of answers by that of their reference answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_hooks.sampling import Sampling
from finetooth_rollouts.checked_sampler import CheckedSampler


@dataclass(frozen=True, kw_only=True)
class BoundedSampler(CheckedSampler):
    """A sampler with a limit per prompt, with the same result as sampling each prompt with `max_tokens` at its limit.

    The prompts of a call are sampled together up to their largest limit, and each answer is cut at its own.

    Attributes:
        decode: from token ids to text.
        most: limits in tokens by prompt id; other prompts have no separate limit.
    """

    decode: Callable[[Sequence[int]], str]
    most: dict[str, int] = field(default_factory=dict)

    @classmethod
    def around(cls, sampler: CheckedSampler, context: Context) -> BoundedSampler:
        """A sampler with limits, initially without any."""
        return cls(sampler.sampler, sampler.name, sampler.vocabulary, decode=context.tokenizer.decode)

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """As `CheckedSampler.sample`, within the limits."""
        longest = max((self.most.get(prompt.id, sampling.max_tokens) for prompt in prompts), default=1)
        within = replace(sampling, max_tokens=min(longest, sampling.max_tokens))
        sampled = super().sample(engine, prompts, within)
        return replace(sampled, rollouts=tuple(self._cut(rollout) for rollout in sampled.rollouts))

    def _cut(self, rollout: Rollout) -> Rollout:
        """The answer up to its limit."""
        most = self.most.get(rollout.id, len(rollout.tokens))
        if len(rollout.tokens) <= most:
            return rollout
        tokens = rollout.tokens[:most]
        return replace(
            rollout, tokens=tokens, logprobs=rollout.logprobs[:most], versions=rollout.versions[:most],
            kept=rollout.kept[:most], text=self.decode(tokens), outcome="length",
        )  # fmt: skip
