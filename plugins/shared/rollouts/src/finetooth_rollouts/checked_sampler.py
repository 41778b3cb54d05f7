"""Checks every sampler: training uses its results, so they must match the request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import EngineError
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Sampler
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_hooks.sampling import Sampling
from finetooth_toolbox import blame

ROUNDED = 1e-3
"""By how much a log-probability may be above 0: sums of a distribution are rounded."""


@dataclass(frozen=True)
class CheckedSampler:
    """A sampler (`protocols.Sampler`) that is named if it does not keep the contract.

    Attributes:
        sampler: as its builder made it.
        name: as the recipe has it.
        vocabulary: number of the model's token ids; 0 if unknown.
    """

    sampler: Sampler
    name: str
    vocabulary: int = 0

    @classmethod
    def of(cls, context: Context, pick: Pick) -> CheckedSampler:
        """A method's sampler: that of its option `sampler`, for the model of the run.

        Raises:
            PluginError: no sampler has such a name.
        """
        name = pick if isinstance(pick, str) else str(pick.get("name"))
        return cls(context.build("sampler", pick, setting="method.sampler"), name, context.facts.vocab_size)

    @property
    def capabilities(self) -> frozenset[str]:
        """The sampler's."""
        return self.sampler.capabilities

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of numbers that it gives with each rollout, for rewards; most samplers give none."""
        return tuple(getattr(self.sampler, "columns", ()))

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """Samples, and checks every rollout.

        Raises:
            EngineError: as the sampler; or its results do not match the request.
        """
        sampled = self.sampler.sample(engine, prompts, sampling)
        if not isinstance(sampled, Sampled):
            raise self._wrong(f"gave {type(sampled).__name__}, not what it sampled (Sampled)")
        expected = [prompt for prompt in prompts for _ in range(sampling.n)]
        if len(sampled.rollouts) != len(expected):
            raise self._wrong(f"gave {len(sampled.rollouts)} rollouts, {len(expected)} were asked for")
        for prompt, rollout in zip(expected, sampled.rollouts, strict=True):
            problem = _problem(prompt, rollout, sampling, engine.weights_version) or self._unknown(rollout)
            if problem:
                raise self._wrong(f"{problem} (a rollout of {prompt.id})")
        return sampled

    def _unknown(self, rollout: Rollout) -> str:
        """Which token is none of the model's; empty if all are."""
        wrong = [token for token in rollout.tokens if token < 0 or (self.vocabulary and token >= self.vocabulary)]
        return f"gave the token {wrong[0]}, and the model has {self.vocabulary or 'none below 0'}" if wrong else ""

    def _wrong(self, problem: str) -> EngineError:
        return EngineError(
            f"method.sampler: {self.name} {problem}{blame.where(self.sampler.sample)}",
            action="fix the sampler or take another, then ft resume RUN",
        )


def _problem(prompt: Prompt, rollout: Rollout, sampling: Sampling, version: int) -> str:
    """The fault of a rollout; empty if it is right."""
    if (rollout.id, rollout.group, tuple(rollout.prompt)) != (prompt.id, prompt.group, tuple(prompt.tokens)):
        return "answered another prompt"
    if not 0 < len(rollout.tokens) <= sampling.max_tokens:
        return f"gave {len(rollout.tokens)} tokens, 1 to {sampling.max_tokens} were asked for"
    if any(not math.isfinite(logprob) or logprob > ROUNDED for logprob in rollout.logprobs):
        return "gave a log-probability that is none"
    wrong = [drawn_at for drawn_at in rollout.of_policy(rollout.versions) if not 0 <= drawn_at <= version]
    if wrong:
        return f"says that weights of {wrong[0]} steps drew a token, and those that train have {version}"
    if sampling.form is not None and not rollout.kept:
        return "does not say which tokens the form of method.guided left, or does not know forms"
    sets = ((token, ids) for token, ids in zip(rollout.tokens, rollout.kept, strict=False) if ids)
    if any(-1 - token in ids if ids[0] < 0 else token not in ids for token, ids in sets):
        return "gave a token that is not among those it was drawn from"
    return ""
