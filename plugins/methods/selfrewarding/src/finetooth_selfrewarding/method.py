"""The method `self_rewarding`: rounds of answering, judging and preferring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine
from finetooth_hooks.plan import Pick
from finetooth_hooks.reports import Prepared
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.advantages import groups_of
from finetooth_rollouts.prompts import Prompts
from finetooth_rollouts.scoring import build_rewards, check_columns, prompt_text, scored
from pydantic import Field

from finetooth_selfrewarding.judging import RUBRIC, OwnJudge
from finetooth_selfrewarding.preferring import Preferred, RoundMethod, RoundOptions


class SelfRewardingOptions(RoundOptions):
    """Options of `self_rewarding`."""

    rewards: list[Pick] = Field(default_factory=list)
    """What judges answers: names of rewards, or mappings with `name`, its options and perhaps a `weight`. Left out, the
    model itself does."""
    rubric: str = RUBRIC
    """What the model is asked as a judge, with `{prompt}` and `{answer}`; it answers with 0 to 5 points."""
    num_generations: int = Field(default=4, ge=2)
    """Answers to each prompt, of which the best and the worst become a pair."""
    keep_equal: bool = False
    """Whether a prompt whose answers are all judged alike makes a pair of its first and last answer."""


def build(options: SelfRewardingOptions, context: Context) -> SelfRewarding:
    """Builder of `self_rewarding`."""
    return SelfRewarding(options, context)


class SelfRewarding(RoundMethod):
    """Iterative DPO on what the model itself, or another judge, prefers of its own answers (Yuan et al., 2024,
    arXiv:2401.10020, section 2.3; with another judge Lee et al., 2023, arXiv:2309.00267)."""

    nothing = (
        "method.rewards",
        "no prompt has answers that are judged differently",
        "look at the answers and the judge, or give more num_generations",
    )

    def __init__(self, options: SelfRewardingOptions, context: Context) -> None:
        super().__init__(options, context)
        self._own = options
        self._rewards = build_rewards(context, options.rewards, "method.rewards")
        self._judge = None if options.rewards else OwnJudge(context, options.rubric)

    def prepare(self) -> Prepared:
        """Read and tokenise the prompts.

        Raises:
            DataError: a row has an answer already, comes under the id of another, or is longer than the model reads.
        """
        self._prompts = Prompts.read(self._context)
        check_columns(self._rewards, self._prompts.columns)
        self._prompts.check_room(self._context, 1)
        return self.begin(self._prompts.tokens, self._prompts.rows)

    def preferred(self, engine: Engine, number: int) -> Preferred:
        """The best and the worst answer to each prompt."""
        flops, rollouts = 0.0, list[Rollout]()
        for sampled in self.sampled(engine, number, self._own.num_generations):
            rollouts += [rollout for rollout in self._judged(engine, sampled.rollouts) if rollout.reward is not None]
            flops += sampled.flops
        pairs = [pair for group in groups_of(rollouts) if (pair := self._pair(rollouts[group])) is not None]
        if not pairs:
            return Preferred((), len(rollouts), {}, flops)
        scores = [rollout.reward for rollout in rollouts if rollout.reward is not None]
        margins = [(a.reward or 0.0) - (b.reward or 0.0) for a, b in pairs]
        metrics = {
            "judge/mean": float(np.mean(scores)),
            "judge/std": float(np.std(scores)),
            "judge/margin": float(np.mean(margins)),
            "completions/mean_length": float(np.mean([len(rollout.tokens) for rollout in rollouts])),
        }
        return Preferred(pairs, len(rollouts), metrics, flops)

    def _judged(self, engine: Engine, rollouts: Sequence[Rollout]) -> list[Rollout]:
        if self._judge is None:
            return scored(rollouts, self._prompts.tasks, self._rewards)
        texts = [prompt_text(self._prompts.tasks[rollout.id]) for rollout in rollouts]
        scores = self._judge.scores(engine, texts, rollouts)
        return [
            replace(rollout, rewards={"self": score}, reward=score)
            for rollout, score in zip(rollouts, scores, strict=True)
        ]

    def _pair(self, group: Sequence[Rollout]) -> tuple[Rollout, Rollout] | None:
        """The best and the worst answer to a prompt; None where nothing tells them apart, or they say the same."""
        ordered = sorted(group, key=lambda rollout: -(rollout.reward or 0.0))
        best, worst = ordered[0], ordered[-1]
        differ = best.reward != worst.reward or (self._own.keep_equal and len(ordered) > 1)
        same = best.tokens == worst.tokens and not self._own.keep_equal
        return (best, worst) if differ and not same else None
