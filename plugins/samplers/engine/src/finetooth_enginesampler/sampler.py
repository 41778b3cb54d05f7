"""The engine that trains, as a sampler.

The engine samples all prompts of a call together, reads a prompt once for all of its rollouts, and reuses the place of
a finished row (`Engine.generate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetooth_hooks import Completion, Engine, EngineError, Sampling
from finetooth_hooks.bases import SamplerBase
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled


class EngineSampler(SamplerBase):
    """See `finetooth_hooks.protocols.Sampler`."""

    capabilities = frozenset({"own_engine"})

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """Sample with the engine that trains.

        Raises:
            EngineError: as `Engine.generate`; or sampling changes the distribution, and the engine cannot return its
                log-probabilities.
        """
        generated = engine.generate([prompt.tokens for prompt in prompts], replace(sampling, drawn=True))
        rollouts = [
            _rollout(prompt, completion, sampling)
            for prompt, completions in zip(prompts, generated, strict=True)
            for completion in completions
        ]
        return Sampled(tuple(rollouts), generated.flops)


def _rollout(prompt: Prompt, completion: Completion, sampling: Sampling) -> Rollout:
    logprobs = completion.drawn_logprobs
    if len(logprobs) != len(completion.tokens):
        if not sampling.as_it_is:
            raise EngineError(
                "the engine does not give the probabilities that it sampled from, so no policy can train on its "
                "answers",
                action="sample at temperature 1 without top_k, top_p, min_p, repetition_penalty and guided, or choose "
                "another backend",
            )
        logprobs = completion.logprobs
    return Rollout(
        id=prompt.id,
        group=prompt.group,
        prompt=tuple(prompt.tokens),
        tokens=completion.tokens,
        logprobs=logprobs,
        versions=(completion.weights_version,) * len(completion.tokens),
        text=completion.text,
        outcome=completion.stop,
        kept=completion.kept,
    )
