"""The method `self_rewarding`: rounds of answering, judging and preferring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from finetooth_hooks import Options
from finetooth_hooks.bases import MethodBase
from finetooth_hooks.context import Context
from finetooth_hooks.datum import Datum
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.errors import DataError
from finetooth_hooks.plan import Pick
from finetooth_hooks.reports import DataReport, Prepared, StepReport
from finetooth_hooks.rollouts import Prompt, Rollout
from finetooth_hooks.sampling import Sampling
from finetooth_methods.batched import train_step
from finetooth_rollouts.advantages import groups_of
from finetooth_rollouts.checked_sampler import CheckedSampler
from finetooth_rollouts.prompts import Prompts
from finetooth_rollouts.scoring import build_rewards, prompt_text, scored
from pydantic import Field

from finetooth_selfrewarding.judging import RUBRIC, OwnJudge
from finetooth_selfrewarding.rounds import Pair, write_round

REFERENCE = "reference"


class SelfRewardingOptions(Options):
    """Options of `self_rewarding`."""

    rewards: list[Pick] = Field(default_factory=list)
    """What judges answers: names of rewards, or mappings with `name`, its options and perhaps a `weight`. Left out, the
    model itself does."""
    rubric: str = RUBRIC
    """What the model is asked as a judge, with `{prompt}` and `{answer}`; it answers with 0 to 5 points."""
    sampler: Pick = "engine"
    """Where answers come from."""
    num_generations: int = Field(default=4, ge=2)
    """Answers to each prompt, of which the best and the worst become a pair."""
    max_completion_length: int = Field(default=256, ge=1)
    """Tokens of an answer at most."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """The smallest set of tokens that reaches it is drawn from; 1 is all."""
    loss: Pick = "sigmoid"
    """The loss on pairs, a name or a mapping with `name` and its options."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the model that began the round, for a loss that does not say it itself."""
    keep_equal: bool = False
    """Whether a prompt whose answers are all judged alike makes a pair of its first and last answer."""


def build(options: SelfRewardingOptions, context: Context) -> SelfRewarding:
    """Builder of `self_rewarding`."""
    return SelfRewarding(options, context)


@dataclass
class Round:
    """What is learned from before the next round begins.

    Attributes:
        number: from 1.
        pairs: in the order in which they are trained.
        done: of them.
        sha256: of the round's file.
        metrics: of the round.
        flops: that sampling took, not yet reported.
    """

    number: int = 0
    pairs: list[Pair] = field(default_factory=list)
    done: int = 0
    sha256: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Round:
        """What `asdict` gave, perhaps after a way through JSON."""
        pairs = [Pair(one["id"], *(tuple(one[name]) for name in ("prompt", "chosen", "rejected")))
                 for one in state["pairs"]]  # fmt: skip
        return cls(**{**state, "pairs": pairs, "metrics": dict(state["metrics"])})


class SelfRewarding(MethodBase):
    """A `protocols.Method`: iterative DPO on what the model itself, or another judge, prefers of its own answers
    (Yuan et al., 2024, arXiv:2401.10020, section 2.3; with another judge Lee et al., 2023, arXiv:2309.00267).

    A round asks every prompt once, and `train.epochs` counts rounds. The model that begins a round answers, judges and
    is the reference of its DPO; `train.batch_size` counts pairs.
    """

    noun = "pair"

    def __init__(self, options: SelfRewardingOptions, context: Context) -> None:
        self._options, self._context = options, context
        given = {"name": options.loss} if isinstance(options.loss, str) else dict(options.loss)
        self._loss = context.loss({"beta": options.beta, **given}, setting="method.loss")
        sampler = options.sampler if isinstance(options.sampler, str) else str(options.sampler.get("name"))
        built = context.build("sampler", options.sampler, setting="method.sampler")
        self._sampler = CheckedSampler(built, sampler, context.facts.vocab_size)
        self._rewards = build_rewards(context, options.rewards, "method.rewards")
        self._judge = None if options.rewards else OwnJudge(context, options.rubric)
        self._round, self._steps = Round(), 0

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`: a copy that is moved to the policy when a round begins."""
        return {REFERENCE: RoleModel()}

    def prepare(self) -> Prepared:
        """Read and tokenise the prompts.

        Raises:
            DataError: a row has an answer already, comes under the id of another, or is longer than the model reads.
        """
        self._prompts = Prompts.read(self._context)
        self._prompts.check_room(self._context, 1)
        train, lengths = self._context.train, [len(tokens) for _, tokens in self._prompts.tokens]
        longest = max(lengths) + self._options.max_completion_length
        tokens = 2 * (sum(lengths) + len(lengths) * self._options.max_completion_length)
        self._rounds = max(1, round(train.epochs)) if train.epochs else None
        report = DataReport("train", self._prompts.rows, len(lengths), tokens=tokens, longest=longest)
        a_round = -(-len(lengths) // train.batch_size)  # or less, where prompts make no pair
        planned = train.max_steps if self._rounds is None else self._rounds * a_round
        bounds = [bound for bound in (planned, train.max_steps) if bound is not None]
        return Prepared(min(bounds) if bounds else None, a_round, report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch of pairs.

        Raises:
            DataError: no prompt of a round has answers that are judged differently.
        """
        bound, size = self._context.train.max_steps, self._context.train.batch_size
        while bound is None or self._steps < bound:
            if self._round.done >= len(self._round.pairs):
                if self._rounds is not None and self._round.number >= self._rounds:
                    return
                self._round = self._begun(engine)
            now = self._round
            pairs = now.pairs[now.done : now.done + size]
            now.done, self._steps, flops = now.done + len(pairs), self._steps + 1, now.flops
            now.flops = 0.0
            data = [datum for pair in pairs for datum in data_of_pair(pair)]
            epoch = now.number - 1 + now.done / len(now.pairs)
            report = train_step(engine, data, self._loss, epoch)
            metrics = {**report.metrics, **now.metrics, "round": float(now.number)}
            yield replace(report, rows=len(pairs), metrics=metrics, flops=report.flops + flops)

    def _begun(self, engine: Engine) -> Round:
        """The next round: the reference is where the policy is now, which answers and judges."""
        number = self._round.number + 1
        if number > 1:
            engine.move_role(REFERENCE, 1.0)
        rollouts, flops = self._answers(engine, number)
        kept = [pair for group in groups_of(rollouts) if (pair := self._pair(rollouts[group])) is not None]
        if not kept:
            raise DataError(
                "method.rewards",
                f"in round {number} no prompt has answers that are judged differently, so there is nothing to prefer",
                action="look at the answers and the judge, or give more num_generations",
            )
        order = self._context.generator("pairs", number).permutation(len(kept))
        kept = [kept[i] for i in order]
        scores = [one.reward for one in rollouts if one.reward is not None]
        apart = [(a.reward or 0.0) - (b.reward or 0.0) for a, b in kept]
        metrics = {
            "judge/mean": float(np.mean(scores)),
            "judge/std": float(np.std(scores)),
            "judge/margin": float(np.mean(apart)),
            "pairs": float(len(kept)),
            "completions/mean_length": float(np.mean([len(one.tokens) for one in rollouts])),
        }
        about = {"round": number, "weights": engine.weights_version, "answers": len(rollouts), **metrics}
        sha256 = write_round(self._context.folder, about, kept, parent=self._round.sha256)
        pairs = [Pair(a.id, a.prompt, a.tokens, b.tokens) for a, b in kept]
        return Round(number, pairs, 0, sha256, metrics, flops)

    def _answers(self, engine: Engine, number: int) -> tuple[list[Rollout], float]:
        """Judged answers to all prompts, `train.batch_size` prompts at a time."""
        options, size, flops = self._options, self._context.train.batch_size, 0.0
        found: list[Rollout] = []
        for start in range(0, len(self._prompts.tokens), size):
            sampling = Sampling(
                options.max_completion_length, options.temperature, 0, options.top_p, options.num_generations,
                seed=int(self._context.generator("answers", number, start).integers(2**31)),
            )  # fmt: skip
            asked = [
                Prompt(id_, f"{id_}@{number}", tokens) for id_, tokens in self._prompts.tokens[start : start + size]
            ]
            sampled = self._sampler.sample(engine, asked, sampling)
            found += self._judged(engine, sampled.rollouts)
            flops += sampled.flops
        return [one for one in found if one.reward is not None], flops

    def _judged(self, engine: Engine, rollouts: Sequence[Rollout]) -> list[Rollout]:
        if self._judge is None:
            return scored(rollouts, self._prompts.tasks, self._rewards)
        asked = [prompt_text(self._prompts.tasks[one.id]) for one in rollouts]
        scores = self._judge.scores(engine, asked, rollouts)
        return [
            replace(one, rewards={"self": score}, reward=score) for one, score in zip(rollouts, scores, strict=True)
        ]

    def _pair(self, group: Sequence[Rollout]) -> tuple[Rollout, Rollout] | None:
        """The best and the worst answer to a prompt; None where nothing tells them apart, or they say the same."""
        ordered = sorted(group, key=lambda one: -(one.reward or 0.0))
        best, worst = ordered[0], ordered[-1]
        differ = best.reward != worst.reward or (self._options.keep_equal and len(ordered) > 1)
        same = best.tokens == worst.tokens and not self._options.keep_equal
        return (best, worst) if differ and not same else None

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Any]:
        """The round with its pairs, and how far it is."""
        return {"steps": self._steps, "round": asdict(self._round)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the step at which `state` was taken."""
        self._steps, self._round = int(state["steps"]), Round.of(state["round"])


def data_of_pair(pair: Pair) -> tuple[Datum, Datum]:
    """The two answers behind their prompt, the chosen one first; likelihood counts in that one alone."""

    def datum(answer: Sequence[int], weight: float) -> Datum:
        tokens = [*pair.prompt, *answer]
        each = [0.0] * len(pair.prompt) + [1.0] * len(answer)
        made = Datum.from_tokens(tokens, each, scalars={"label": weight}, group=pair.id, id=pair.id)
        weights = made.fields["weights"] if weight else np.zeros(len(made))
        return replace(made, mask=made.mask, fields={"weights": weights})

    return datum(pair.chosen, 1.0), datum(pair.rejected, 0.0)
