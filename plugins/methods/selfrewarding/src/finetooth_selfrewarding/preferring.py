"""What methods share that prefer in rounds: the model that begins a round answers every prompt and is the reference of
its DPO, and the pairs of the round are learned before the next one begins."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from finetooth_hooks import Options
from finetooth_hooks.bases import MethodBase
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.errors import DataError
from finetooth_hooks.plan import Pick
from finetooth_hooks.reports import DataReport, Prepared, StepReport
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_hooks.sampling import Sampling
from finetooth_methods.batched import train_step
from finetooth_rollouts.checked_sampler import CheckedSampler
from pydantic import Field

from finetooth_selfrewarding.rounds import Pair, write_round

REFERENCE = "reference"


class RoundOptions(Options):
    """Options of methods that prefer in rounds."""

    sampler: Pick = "engine"
    """Where answers come from."""
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
        pairs = [Pair(pair["id"], *(tuple(pair[name]) for name in ("prompt", "chosen", "rejected")))
                 for pair in state["pairs"]]  # fmt: skip
        return cls(**{**state, "pairs": pairs, "metrics": dict(state["metrics"])})


@dataclass(frozen=True)
class Preferred:
    """What the answers of a round gave.

    Attributes:
        pairs: the answer to prefer and the other one.
        answers: how many were drawn.
        metrics: to report with every step of the round.
        flops: that drawing took.
    """

    pairs: Sequence[tuple[Rollout, Rollout]]
    answers: int
    metrics: Mapping[str, float]
    flops: float


class RoundMethod(MethodBase):
    """A `protocols.Method`. `train.epochs` counts rounds, in each of which every prompt is asked once;
    `train.batch_size` counts pairs.

    Attributes:
        nothing: the setting to blame where a round has no pair, why it has none, and what to do.
    """

    noun = "pair"
    nothing: tuple[str, str, str]

    def __init__(self, options: RoundOptions, context: Context) -> None:
        self._options, self._context = options, context
        pick = {"name": options.loss} if isinstance(options.loss, str) else dict(options.loss)
        self._loss = context.loss({"beta": options.beta, **pick}, setting="method.loss")
        self._sampler = CheckedSampler.of(context, options.sampler)
        self._asked: Sequence[tuple[str, tuple[int, ...]]] = ()
        self._round, self._steps = Round(), 0

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`: a copy that is moved to the policy when a round begins."""
        return {REFERENCE: RoleModel()}

    @abstractmethod
    def preferred(self, engine: Engine, number: int) -> Preferred:
        """What a round learns from.

        Args:
            engine: with the weights that begin the round.
            number: of the round, from 1.
        """

    def begin(self, prompts: Sequence[tuple[str, tuple[int, ...]]], rows: int) -> Prepared:
        """Take the prompts of the run: the id and the tokens of each.

        Args:
            rows: that were read.
        """
        self._asked = prompts
        train, lengths = self._context.train, [len(tokens) for _, tokens in prompts]
        longest = max(lengths) + self._options.max_completion_length
        tokens = 2 * (sum(lengths) + len(lengths) * self._options.max_completion_length)
        self._rounds = max(1, round(train.epochs)) if train.epochs else None
        report = DataReport("train", rows, len(lengths), tokens=tokens, longest=longest)
        a_round = -(-len(lengths) // train.batch_size)  # or less, where prompts make no pair
        planned = train.max_steps if self._rounds is None else self._rounds * a_round
        bounds = [bound for bound in (planned, train.max_steps) if bound is not None]
        return Prepared(min(bounds) if bounds else None, a_round, report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch of pairs. The run ends where a round has none.

        Raises:
            DataError: the first round has no pair.
        """
        bound, size = self._context.train.max_steps, self._context.train.batch_size
        while bound is None or self._steps < bound:
            if self._round.done >= len(self._round.pairs):
                if self._rounds is not None and self._round.number >= self._rounds:
                    return
                begun = self._begun(engine)
                if begun is None:
                    return
                self._round = begun
            now = self._round
            pairs = now.pairs[now.done : now.done + size]
            now.done, self._steps, flops = now.done + len(pairs), self._steps + 1, now.flops
            now.flops = 0.0
            data = [datum for pair in pairs for datum in data_of_pair(pair)]
            epoch = now.number - 1 + now.done / len(now.pairs)
            report = train_step(engine, data, self._loss, epoch)
            metrics = {**report.metrics, **now.metrics, "round": float(now.number)}
            yield replace(report, rows=len(pairs), metrics=metrics, flops=report.flops + flops)

    def _begun(self, engine: Engine) -> Round | None:
        """The next round: the reference is where the policy is now, which answers."""
        number = self._round.number + 1
        if number > 1:
            engine.move_role(REFERENCE, 1.0)
        made = self.preferred(engine, number)
        if not made.pairs:
            setting, why, action = self.nothing
            if number == 1:
                raise DataError(setting, f"in round 1 {why}, so there is nothing to prefer", action=action)
            self._context.note(f"the run ends before round {number}: {why}, so nothing is left to prefer")
            return None
        order = self._context.generator("pairs", number).permutation(len(made.pairs))
        shuffled = [made.pairs[i] for i in order]
        metrics = {**made.metrics, "pairs": float(len(shuffled))}
        about = {"round": number, "weights": engine.weights_version, "answers": made.answers, **metrics}
        sha256 = write_round(self._context.folder, about, shuffled, parent=self._round.sha256)
        pairs = [Pair(a.id, a.prompt, a.tokens, b.tokens) for a, b in shuffled]
        return Round(number, pairs, 0, sha256, metrics, made.flops)

    def sampled(self, engine: Engine, number: int, answers: int) -> Iterator[Sampled]:
        """Answers to all prompts, `train.batch_size` prompts at a time.

        Args:
            number: of the round.
            answers: to each prompt.
        """
        options, size = self._options, self._context.train.batch_size
        for start in range(0, len(self._asked), size):
            sampling = Sampling(
                options.max_completion_length, options.temperature, 0, options.top_p, answers,
                seed=int(self._context.generator("answers", number, start).integers(2**31)),
            )  # fmt: skip
            prompts = [Prompt(id_, f"{id_}@{number}", tokens) for id_, tokens in self._asked[start : start + size]]
            yield self._sampler.sample(engine, prompts, sampling)

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Any]:
        """The round with its pairs, and how far it is."""
        return {"steps": self._steps, "round": asdict(self._round)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the method as it was after the step at which `state` was taken."""
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
