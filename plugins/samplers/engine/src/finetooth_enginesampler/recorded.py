"""A sampler that returns the recorded rollouts of a run again, without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from finetooth_hooks import Context, Engine, EngineError, Options, RecipeError, Sampling
from finetooth_hooks.bases import SamplerBase
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_rollouts.advantages import groups_of
from finetooth_rollouts.rollouts_file import read_rollouts
from pydantic import Field


class RecordedOptions(Options):
    """Options of `kept_rollouts`."""

    run: str = Field(min_length=1)
    """The run whose rollouts to use: its folder, or its name under `runs/`. Data, seed and batch size must be those of
    that run, so that the same prompts come in the same order."""


class RecordedSampler(SamplerBase):
    """See `finetooth_hooks.protocols.Sampler`. Log-probabilities and versions are the recorded ones."""

    capabilities = frozenset({"other_weights"})

    def __init__(self, options: RecordedOptions, context: Context) -> None:
        self._run = options.run

    @cached_property
    def _groups(self) -> dict[str, list[Rollout]]:
        """The recorded rollouts, by group.

        Raises:
            RecipeError: the run does not exist, or has no recorded rollouts.
            UserError: a file is damaged.
        """
        places = (Path(self._run), Path("runs") / self._run)
        folder = next((place for place in places if place.is_dir()), places[0])
        by_group: dict[str, list[Rollout]] = {}
        for _, rollouts in read_rollouts(folder):
            for group in groups_of(rollouts):
                by_group.setdefault(rollouts[group][0].group, list(rollouts[group]))
        if not by_group:
            raise RecipeError(
                "method.sampler.run",
                f"{self._run} has no rollouts",
                action="give a run whose method samples, and that had method.keep_rollouts on",
            )
        return by_group

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """Return the recorded rollouts of these prompts.

        Raises:
            RecipeError: the run does not exist, or has no recorded rollouts.
            EngineError: the record lacks these prompts, or has fewer answers to them.
        """
        return Sampled(tuple(rollout for prompt in prompts for rollout in self._of(prompt, sampling)))

    def _of(self, prompt: Prompt, sampling: Sampling) -> list[Rollout]:
        rollouts = self._groups.get(prompt.group)
        if rollouts is None:
            raise self._wrong(
                f"has no rollouts of {prompt.group}",
                "replay with its data, train.seed and train.batch_size; record with "
                "method.skip_zero_advantage_batches=false, so that every batch is kept",
            )
        if any(rollout.episode for rollout in rollouts):
            raise self._wrong("has episodes of an environment, whose turns cannot be asked again", "give another run")
        if any(rollout.prompt != prompt.tokens for rollout in rollouts):
            raise self._wrong(f"has other prompt tokens for {prompt.group}", "replay with its data and its model")
        if len(rollouts) != sampling.n:
            action = f"set method.num_generations to {len(rollouts)}"
            raise self._wrong(
                f"has {len(rollouts)} rollouts of {prompt.group}, and the method needs {sampling.n}", action
            )
        if any(len(rollout.tokens) > sampling.max_tokens for rollout in rollouts):
            longest = max(len(rollout.tokens) for rollout in rollouts)
            raise self._wrong(f"has an answer of {longest} tokens", "raise method.max_completion_length")
        return [replace(rollout, rewards={}, reward=None, advantages=(), fields={}) for rollout in rollouts]

    def _wrong(self, problem: str, action: str) -> EngineError:
        return EngineError(f"sampler kept_rollouts: {self._run} {problem}", action=action)
