"""Base of methods with rounds of preferences: the model at the start of a round answers every prompt and is the
reference of its DPO, and all pairs of a round train before the next round.

`finetooth_rollouts.rollouts_file` describes the saved file of a round.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from finetooth_hooks import Context, DataError, DataReport, Engine, MethodBase, Options, Pick, Prepared, Sampling
from finetooth_hooks.engine import RoleModel
from finetooth_hooks.reports import StepReport
from finetooth_hooks.rollouts import Prompt, Rollout
from finetooth_methods.batched import Batches, train_step
from finetooth_methods.reference import ROLE
from finetooth_rollouts.checked_sampler import CheckedSampler
from finetooth_rollouts.data import data_of_pair
from finetooth_rollouts.prompts import ANSWERS
from finetooth_rollouts.rollouts_file import write_round
from pydantic import Field


class RoundOptions(Options):
    """Options of methods with rounds of preferences."""

    sampler: Pick = "engine"
    """Samples the answers."""
    max_completion_length: int = Field(default=256, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens whose probabilities add up to this; 1 is all."""
    loss: Pick = "sigmoid"
    """The loss on pairs: a name, or a mapping with `name` and its options."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is kept close to the model at the start of the round, for a loss that does not set its
    own."""


@dataclass
class Round:
    """The data of one round.

    Attributes:
        steps: of the run so far.
        number: from 1.
        pairs: in training order: the `id` of the row, and token ids of its `prompt` and of the answers `chosen` and
            `rejected`.
        done: number of trained pairs.
        sha256: of the round's file.
        metrics: reported with every step of the round.
    """

    steps: int = 0
    number: int = 0
    pairs: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0
    sha256: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


class RoundMethod(MethodBase):
    """A `protocols.Method`. `train.epochs` counts rounds, each with one pass over the prompts; `train.batch_size`
    counts pairs.

    Attributes:
        nothing: the setting, reason and action for the error about a round without pairs.
        answers: number of answers to each prompt.
    """

    noun = "pair"
    nothing: tuple[str, str, str]
    answers = 1

    def __init__(self, options: RoundOptions, context: Context) -> None:
        self._options, self._context, self._round = options, context, Round()
        pick = {"name": options.loss} if isinstance(options.loss, str) else dict(options.loss)
        self._loss = context.loss({"beta": options.beta, **pick}, setting="method.loss")
        self._sampler = CheckedSampler.of(context, options.sampler)
        self._sampling = Sampling(options.max_completion_length, options.temperature, 0, options.top_p)

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`: a copy that becomes the policy at the start of each round."""
        return {ROLE: RoleModel()}

    def judged(self, engine: Engine, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        """The usable answers to a batch of prompts, with rewards if the method judges them."""
        return rollouts

    @abstractmethod
    def preferred(self, rollouts: Sequence[Rollout]) -> tuple[list[tuple[Rollout, Rollout]], dict[str, float]]:
        """Pairs of a preferred and another answer to the same prompt, and metrics.

        Args:
            rollouts: the judged rollouts of a round.
        """

    def begin(self, prompts: Sequence[tuple[str, tuple[int, ...]]], rows: int) -> Prepared:
        """Set the prompts of the run: id and tokens of each.

        Args:
            rows: number of rows read.
        """
        self._asked, train, count = prompts, self._context.train, len(prompts)
        lengths = [len(tokens) + self._options.max_completion_length for _, tokens in prompts]
        self._rounds = max(1, round(train.epochs)) if train.epochs else 0
        report = DataReport(
            "train", rows, count, tokens=2 * sum(lengths), longest=max(lengths), bounded_by=ANSWERS,
            unbounded=max(lengths) - self._options.max_completion_length,
        )  # fmt: skip
        # fewer steps, if prompts give no pair
        most = Batches(count, train.batch_size, self._rounds, train.max_steps, train.seed)
        return Prepared(most.total_steps, most.steps_per_epoch, report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch of pairs. The run ends at a round without pairs.

        Raises:
            DataError: the first round has no pair.
        """
        bound, size, flops = self._context.train.max_steps, self._context.train.batch_size, 0.0
        while bound is None or self._round.steps < bound:
            if self._round.done == len(self._round.pairs):
                drawn = self._next(engine)
                if drawn is None:
                    return
                flops = drawn
            now = self._round
            pairs = now.pairs[now.done : now.done + size]
            now.done, now.steps = now.done + len(pairs), now.steps + 1
            data = [datum for pair in pairs for datum in data_of_pair(**pair)]
            report = train_step(engine, data, self._loss, now.number - 1 + now.done / len(now.pairs))
            metrics = {**report.metrics, **now.metrics, "round": float(now.number)}
            yield replace(report, rows=len(pairs), metrics=metrics, flops=report.flops + flops)
            flops = 0.0

    def _next(self, engine: Engine) -> float | None:
        """Start the next round: the policy answers all prompts, `train.batch_size` at a time, and becomes the
        reference. Returns the floating-point operations of sampling; None at the end of the run."""
        number, size, rollouts, flops = self._round.number + 1, self._context.train.batch_size, list[Rollout](), 0.0
        if 0 < self._rounds < number:
            return None
        if number > 1:
            engine.move_role(ROLE, 1.0)
        for start in range(0, len(self._asked), size):
            prompts = [Prompt(id_, f"{id_}@{number}", tokens) for id_, tokens in self._asked[start : start + size]]
            seed = int(self._context.generator("answers", number, start).integers(2**31))
            sampled = self._sampler.sample(engine, prompts, replace(self._sampling, n=self.answers, seed=seed))
            rollouts += self.judged(engine, sampled.rollouts)
            flops += sampled.flops
        pairs, metrics = self.preferred(rollouts)
        if not pairs:
            setting, why, action = self.nothing
            if number == 1:
                raise DataError(setting, f"in round 1 {why}, so there is nothing to prefer", action=action)
            self._context.note(f"the run ends before round {number}: {why}, so nothing is left to prefer")
            return None
        pairs = [pairs[i] for i in self._context.generator("pairs", number).permutation(len(pairs))]
        mean = sum(len(rollout.tokens) for rollout in rollouts) / len(rollouts)
        metrics = {**metrics, "completions/mean_length": mean, "pairs": float(len(pairs))}
        about = {"weights": engine.weights_version, "answers": len(rollouts), **metrics, "parent": self._round.sha256}
        sha256 = write_round(self._context.folder, number, about, pairs)
        kept = [{"id": a.id, "prompt": a.prompt, "chosen": a.tokens, "rejected": b.tokens} for a, b in pairs]
        self._round = Round(self._round.steps, number, kept, 0, sha256, metrics)
        return flops

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Any]:
        """The round with its pairs and progress."""
        return asdict(self._round)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the method after the step of `state`."""
        self._round = Round(**state)
