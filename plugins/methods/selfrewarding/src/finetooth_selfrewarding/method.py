"""The method `self_rewarding`: rounds of answering, judging and preferring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from finetooth_hooks import Context, Engine, Pick, Prepared, Rollout
from finetooth_rollouts.advantages import groups_of, rewards_of
from finetooth_rollouts.prompts import Prompts, shows
from finetooth_rollouts.scoring import build_rewards, check_columns, scored
from pydantic import Field

from finetooth_selfrewarding.judging import RUBRIC, OwnJudge
from finetooth_selfrewarding.preferring import RoundMethod, RoundOptions


class SelfRewardingOptions(RoundOptions):
    """Options of `self_rewarding`."""

    rewards: list[Pick] = Field(default_factory=list)
    """Rewards that score answers: names, or mappings with `name`, its options and perhaps a `weight`. Left out, the
    model itself judges."""
    rubric: Annotated[str, shows("prompt", "answer")] = RUBRIC
    """The model's prompt as a judge, with `{prompt}` and `{answer}`; it answers with 0 to 5 points."""
    num_generations: int = Field(default=4, ge=2)
    """Answers to each prompt; the best and the worst become a pair."""
    keep_equal: bool = False
    """Whether the first and the last answer to a prompt become a pair if all its answers get the same score."""


class SelfRewarding(RoundMethod):
    """Iterative DPO on the model's own answers, with preferences of the model itself or another judge (Yuan et al.,
    2024, arXiv:2401.10020, section 2.3; with another judge Lee et al., 2023, arXiv:2309.00267)."""

    nothing = (
        "method.rewards",
        "no prompt has two answers with different scores",
        "look at the answers and the judge, or raise method.num_generations",
    )

    def __init__(self, options: SelfRewardingOptions, context: Context) -> None:
        super().__init__(options, context)
        self.answers, self._keep_equal = options.num_generations, options.keep_equal
        self._rewards = build_rewards(context, options.rewards, "method.rewards")
        self._judge = None if options.rewards else OwnJudge(context, options.rubric)

    def prepare(self) -> Prepared:
        """Read and tokenise the prompts.

        Raises:
            DataError: a row already has an answer or the id of another row; or its prompt, or the judge's prompt for
                it, is too long for the model.
        """
        self._prompts = Prompts.read(self._context)
        check_columns(self._rewards, self._prompts.columns)
        self._prompts.check_room(self._context, 1)
        if self._judge is not None:
            self._judge.check_room(self._prompts, self._options.max_completion_length)
        return self.begin(self._prompts.tokens, self._prompts.rows)

    def judged(self, engine: Engine, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        """The answers with a reward: the model's points, or the rewards computed at the first rank."""
        tasks = self._prompts.tasks
        if self._judge is not None:
            return self._judge.scored(engine, rollouts, tasks)
        judged = engine.first(lambda: scored(rollouts, tasks, self._rewards))
        return [rollout for rollout in judged if rollout.reward is not None]

    def preferred(self, rollouts: Sequence[Rollout]) -> tuple[list[tuple[Rollout, Rollout]], dict[str, float]]:
        """The best and the worst answer to each prompt, if they differ."""
        groups = [sorted(rollouts[of], key=lambda rollout: -(rollout.reward or 0.0)) for of in groups_of(rollouts)]
        ends = [(group[0], group[-1]) for group in groups if len(group) > 1]
        pairs = [(a, b) for a, b in ends if self._keep_equal or (a.reward != b.reward and a.tokens != b.tokens)]
        if not pairs:
            return [], {}
        scores, (best, worst) = rewards_of(rollouts), map(rewards_of, zip(*pairs, strict=True))
        margin = float((best - worst).mean())
        return pairs, {"judge/mean": float(scores.mean()), "judge/std": float(scores.std()), "judge/margin": margin}
