"""Learning from rollouts: sample, score, give advantages, train.

An algorithm is a function from scored rollouts to advantages; all else is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from finetooth_hooks.bases import MethodBase
from finetooth_hooks.capabilities import METHOD
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine, Forward, RoleModel
from finetooth_hooks.errors import EngineError, PlanError, RecipeError
from finetooth_hooks.reports import DataReport, Prepared, Sample, StepReport
from finetooth_hooks.rollouts import Rollout
from finetooth_methods.batched import Batches, refuse_curriculum, stepped_report
from finetooth_methods.reference import ROLE as REFERENCE
from finetooth_methods.reference import ReferencePolicy

from finetooth_rollouts.advantages import AdvantagesFn, for_each, groups_of
from finetooth_rollouts.asking import for_sampled
from finetooth_rollouts.checked_sampler import CheckedSampler
from finetooth_rollouts.data import data_of, sampled_logprobs, with_logprobs, with_old
from finetooth_rollouts.drawing import MOST_PASSED_OVER, Drawing
from finetooth_rollouts.drawn import Drawn, NothingToLearn
from finetooth_rollouts.entropy import EntropyBonus, weighed
from finetooth_rollouts.flight import Flight, split
from finetooth_rollouts.health import Health
from finetooth_rollouts.judging import WeightedEnvironment, build_judges
from finetooth_rollouts.metrics import (
    GAP,
    SMALL_IS_WORSE,
    batch_metrics,
    gap_metrics,
    ratio_metrics,
    staleness,
)
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.policy_options import PolicyOptions
from finetooth_rollouts.prompts import ANSWERS, Prompts
from finetooth_rollouts.rollouts_file import write_rollouts
from finetooth_rollouts.schedule import Schedule
from finetooth_rollouts.scoring import check_columns, prompt_text
from finetooth_rollouts.token_weights import token_weights

BEHAVIOUR = "behaviour_logprobs"
"""Field of what tokens were drawn by, where other weights than those that train may have drawn them."""
FRESH, STALE = 0.2, 1.0
"""How far sampler and trainer may be apart, where the recipe does not say it: over tokens that the weights of this
moment drew (bf16 makes 0.01 to 0.07), and over those of which earlier ones drew some."""
SAMPLES = 3
"""Rollouts shown in the report of a step."""


class RolloutMethod(MethodBase):
    """A `protocols.Method`: one batch of `train.batch_size` prompts after the other is answered, scored and trained.

    Everything random comes from the run's seed and the number of the batch, and `state` holds the prompts' cursor and
    the rollouts in flight, so a run that is killed continues as it would have.

    Args:
        options: of the method.
        advantages: the algorithm. A method for which rewards do not say all overrides `with_advantages`.
        loss: what is made of advantages; default: `surrogate` as the options say.

    Attributes:
        own_ratios: whether the loss compares the policy with the weights that sampled (field `old_logprobs`).
    """

    noun = "rollout"
    own_ratios: bool = True

    def __init__(
        self, options: RolloutOptions, context: Context, advantages: AdvantagesFn, *, loss: LossSpec | None = None
    ) -> None:
        self.options, self.context, self._advantages = options, context, advantages
        self._reference = ReferencePolicy(options.reference)
        self._environment, self._rewards = build_judges(context, options)
        if self._environment is not None and options.partial_rollouts:
            _check_seeded(self._environment)
        self.sampler = CheckedSampler.of(context, options.sampler)
        self.loss = surrogate_loss(options, context) if loss is None else loss
        self._others = (
            options.prefetch > 0 or options.replay_groups > 0 or "own_engine" not in self.sampler.capabilities
        )
        self._health = Health(context)
        self._bonus = EntropyBonus(options)
        others = options.beta or options.entropy_coef or self._bonus.steered
        self._drops = options.skip_zero_advantage_batches and not others
        self._batches: Batches | None = None
        self._restored: Mapping[str, Any] | None = None
        self._flight: Flight | None = None
        self._steps = self._total = 0

    @property
    def capabilities(self) -> frozenset[str]:
        """`own_engine`, where its sampler draws there."""
        return self.sampler.capabilities & frozenset(METHOD)

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`: the reference, if there is a KL to it."""
        return self._reference.roles if self.options.beta else {}

    # --- before the run -----------------------------------------------------------------------------------------------

    def prepare(self) -> Prepared:
        """Read and tokenise the prompts.

        Raises:
            DataError: a row has an answer already, or comes under the id of another.
            RecipeError: a batch has fewer prompts than it shall take steps.
        """
        train, options = self.context.train, self.options
        if options.mini_batches > train.batch_size:
            raise RecipeError(
                "method.mini_batches",
                f"{options.mini_batches} steps for the {train.batch_size} prompts of a batch",
                action="raise train.batch_size, or lower it",
            )
        self._prompts = Prompts.read(self.context)
        check_columns(self._rewards, {*self._prompts.columns, *self.sampler.columns})
        if options.environment is None:
            # answers in parts need all of their room
            self._prompts.check_room(self.context, options.max_completion_length if options.partial_rollouts else 1)
        self._check_ends()
        count, per, bound = len(self._prompts.tokens), options.num_iterations * options.mini_batches, train.max_steps
        most = None if bound is None else math.ceil(bound / per)
        if most is not None and (self._drops or options.dynamic_sampling):
            most *= MOST_PASSED_OVER  # batches may be passed over, and the steps are what the recipe counts
        refuse_curriculum(train)
        self._batches = Batches(count, train.batch_size, train.epochs, most, train.seed, shuffle=train.shuffle)
        self._total = self._batches.total_steps * per
        self._total = self._total if bound is None else min(self._total, bound)
        self._schedule = Schedule(
            options.prefetch, per, options.max_staleness, options.partial_groups, options.sync_every
        )
        self._drawing = Drawing(
            self.context,
            options,
            self._prompts,
            self._batches,
            self.sampler,
            self._rewards,
            self._schedule,
            self._environment,
        )
        if self._restored is not None:
            self.take(self._restored)
        lengths = [len(tokens) + options.max_completion_length for _, tokens in self._prompts.tokens]
        if options.environment is None and max(lengths) > train.max_length + 1:
            self.context.note(
                f"train.max_length={train.max_length} cuts nothing off: prompts and answers train whole, up to "
                f"{max(lengths)} tokens (method.max_completion_length bounds answers)"
            )
        answers = options.num_generations  # of each prompt
        report = DataReport(
            "train", self._prompts.rows, answers * count, tokens=answers * sum(lengths), longest=max(lengths),
            examples=count, bounded_by=ANSWERS, unbounded=max(lengths) - options.max_completion_length,
        )  # fmt: skip
        return Prepared(self._total, self._batches.steps_per_epoch * per, report)

    def _check_ends(self) -> None:
        """
        Raises:
            RecipeError: the model has no such token.
        """
        size = self.context.facts.vocab_size
        for place, id_ in enumerate(self.options.stop_ids or ()):
            if id_ >= size:
                raise RecipeError(
                    f"method.stop_ids.{place}",
                    f"{id_} is not a token of the model, which has {size}",
                    action="give ids of its tokenizer, or the text that ends an answer in method.stop",
                )

    # --- the run ------------------------------------------------------------------------------------------------------

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step an item.

        Raises:
            DataError: batch after batch has nothing to learn from.
            PlanError: the engine cannot train what is sampled so.
        """
        for setting, off in (("temperature", 1.0), ("repetition_penalty", 1.0)):
            value = getattr(self.options, setting)
            if value != off and setting not in engine.capabilities:
                raise PlanError(
                    f"method.{setting}={value}: the engine cannot train what is sampled at it",
                    action=f"set it to {off:g}, or choose another backend",
                )
        own = "own_engine" in self.sampler.capabilities
        if self.options.guided is not None and own and "schema" not in engine.capabilities:
            raise PlanError("method.guided: the engine holds no answer to a form", action="choose another backend")
        indices = iter(self._begun())
        self._drawing.begin(engine)
        try:
            while self._steps < self._total:
                flight = self._flight = self._flight or self._next(engine, indices)
                if flight is None:
                    return
                left, remaining = flight.steps - flight.done, self._total - self._steps
                self._drawing.go_ahead(engine, indices, left=left, remaining=remaining)
                yield self._step(engine, flight)
        finally:
            self._drawing.stop()

    def _next(self, engine: Engine, indices: Iterator[list[int]]) -> Flight | None:
        """The next batch of rollouts that has something to learn from; None where the prompts are used up, or nothing
        is left to learn.

        Raises:
            NothingToLearn: there never was anything, or rewards leave all answers out.
        """
        drawn = Drawn()
        try:
            flight = self._next_of(engine, indices, drawn)
            if flight is None and not self._steps:  # a run needs a step
                raise NothingToLearn(drawn)
            return flight
        except NothingToLearn:
            if not self._steps or drawn.judged is None:
                raise
            self.context.note(
                f"the run ends after step {self._steps}: in the last {drawn.passed_over} batches no group had rewards "
                f"that differ, so nothing is left to learn; the mean reward is {drawn.judged:.3g} now. If it could be "
                "higher, the policy says the same all the time: lower optimizer.learning_rate, or set method.beta",
                topic="nothing left to learn",
            )
            return None

    def _next_of(self, engine: Engine, indices: Iterator[list[int]], drawn: Drawn) -> Flight | None:
        while self._drawing.batch(engine, indices, drawn, remaining=self._total - self._steps):
            rollouts, metrics = self.with_advantages(engine, drawn.rollouts) if drawn.rollouts else ([], {})
            if rollouts and (not self._drops or any(any(rollout.advantages) for rollout in rollouts)):
                return self._in_flight(engine, rollouts, drawn, metrics)
            drawn.rollouts = []
            self._drawing.pass_over(drawn)
        return None

    def _step(self, engine: Engine, flight: Flight) -> StepReport:
        """One optimizer step on a part of what is in flight."""
        place, first = flight.done % len(flight.parts), flight.done == 0
        flight.done += 1  # before the engine is called: a step that fails is passed over
        self._steps += 1
        self._flight = flight if flight.done < flight.steps else None
        trained, data = self._data(engine, flight, place)
        if flight.old:
            data = with_old(data, flight.old[place])
        now = weighed(engine, data, self.options, self._bonus)
        data = now.data
        result = engine.forward_backward(data, self.loss)
        if not flight.old and self.own_ratios:
            self._take_own(engine, flight, place, trained, data, result)
        stepped = engine.step(metrics={"loss": result.loss or 0.0})
        report = stepped_report(result, stepped, len(data), flight.epoch)
        self._reference.follow(engine, report.step)
        report = replace(report, metrics={**report.metrics, **flight.metrics}, flops=report.flops + now.flops)
        report = self._with_entropy(report, now.entropy)
        if first:
            report = self._with_rollouts(report, flight)
        self._health.watch(report)
        return report

    def _with_entropy(self, report: StepReport, of_trained: float | None) -> StepReport:
        """The report with what steers the bonus, which sees the step.

        Args:
            of_trained: mean entropy of the tokens that train; None: of all.
        """
        trained = {} if of_trained is None else {"entropy/trained": of_trained}
        seen = of_trained if of_trained is not None else report.metrics.get("entropy")
        return replace(report, metrics={**report.metrics, **trained, **({} if seen is None else self._bonus.see(seen))})

    def _with_rollouts(self, report: StepReport, flight: Flight) -> StepReport:
        """The report of the first step that learns from them."""
        rollouts = flight.rollouts
        if self.options.keep_rollouts:
            write_rollouts(self.context.folder, report.step, rollouts)
        samples = tuple(self._sample(rollout) for rollout in rollouts[:: max(1, len(rollouts) // SAMPLES)][:SAMPLES])
        return replace(report, flops=report.flops + flight.flops, rollouts=tuple(rollouts), samples=samples)

    def _sample(self, rollout: Rollout) -> Sample:
        question = prompt_text(self._prompts.tasks[rollout.id])
        return Sample(rollout.id, question, "", rollout.text, rollout.reward or 0.0)

    # --- from rollouts to data ----------------------------------------------------------------------------------------

    def with_advantages(self, engine: Engine, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], dict[str, float]]:
        """A batch of rollouts that are scored with what the algorithm says, for each token, and numbers to report. What
        it leaves out is not trained.

        Args:
            engine: before the first step on them, for what rewards alone do not say (a critic, a teacher).
            rollouts: at least one, those of a group next to each other.
        """
        if self.options.beta and self.options.kl_in == "reward":
            rollouts = self._less_kl(engine, rollouts)
        with_each = []
        for rollout, advantage in zip(rollouts, for_each(self._advantages, rollouts), strict=True):
            each = np.broadcast_to(np.asarray(advantage, dtype=np.float64), (len(rollout.tokens),))
            with_each.append(replace(rollout, advantages=tuple(each.tolist())))
        return with_each, {}

    def training_data(self, engine: Engine, rollouts: Sequence[Rollout], weights: Sequence[float]) -> list[Datum]:
        """What a step trains of some rollouts.

        Args:
            engine: before that step.
            weights: of a token, for each rollout.
        """
        return data_of(rollouts, weights)

    def _less_kl(self, engine: Engine, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Rewards less `beta` times the sum over tokens of log policy - log reference."""
        data = data_of(rollouts, [0.0] * len(rollouts))
        there = engine.forward(data, self.loss, role=REFERENCE, returns=("logprobs",), train=False).outputs
        lowered = []
        for rollout, datum, outputs in zip(rollouts, data, there, strict=True):
            drawn = np.array(rollout.of_policy(rollout.logprobs))
            apart = float(np.sum(drawn - sampled_logprobs(datum, outputs["logprobs"])))
            lowered.append(replace(rollout, reward=(rollout.reward or 0.0) - self.options.beta * apart))
        return lowered

    def _in_flight(self, engine: Engine, rollouts: list[Rollout], drawn: Drawn, metrics: Mapping[str, float]) -> Flight:
        """Cut a batch into optimizer steps. Where it takes more than one, the weights that sampled it are asked for
        their log-probabilities first: of the same data in the same layout, so that the first ratios are 1 exactly."""
        options = self.options
        if self._others:
            rollouts = [replace(r, fields={**r.fields, BEHAVIOUR: r.logprobs}) for r in rollouts]
        of_batch = {**batch_metrics(rollouts), **drawn.metrics(), **metrics}
        replays = options.replay_staleness if options.replay_groups else 0
        if self._schedule.ahead or replays:
            of_batch |= staleness(rollouts, engine.weights_version, max(self._schedule.bound, replays))
        parts = split(rollouts, groups_of(rollouts), options.mini_batches)
        steps = options.num_iterations * len(parts)
        flight = Flight(parts, [], steps, metrics=of_batch, flops=drawn.flops, epoch=drawn.epoch)
        if flight.steps > 1 and self.own_ratios:
            for place in range(len(parts)):
                trained, data = self._data(engine, flight, place)
                result = engine.forward(data, self.loss, returns=("logprobs",), train=False)
                flight.old.append([outputs["logprobs"] for outputs in result.outputs])
                flight.flops += result.flops
                self._take_own(engine, flight, place, trained, data, result)
        return flight

    def _data(self, engine: Engine, flight: Flight, place: int) -> tuple[list[int], list[Datum]]:
        """What a step trains of a part: which rollouts, and their data. What divides is counted over all of them."""
        part = flight.parts[place]
        weights = self._weights(flight, place)
        trained = [i for i, weight in enumerate(weights) if weight]
        if self._drops and self.options.top_entropy_quantile == 1:
            trained = [i for i in trained if any(part[i].advantages)]
        trained = trained or [0]  # a step without a gradient, if nothing counts: steps stay what was planned
        return trained, self.training_data(engine, [part[i] for i in trained], [weights[i] for i in trained])

    def _weights(self, flight: Flight, place: int) -> list[float]:
        """The weight of a token, for each rollout of a part; 0 for those that the loss leaves out."""
        options = self.options

        def lengths(part: Sequence[Rollout]) -> list[int]:
            masked = options.mask_truncated_completions
            return [0 if masked and rollout.outcome == "length" else rollout.length for rollout in part]

        whole = sum(sum(lengths(part)) for part in flight.parts) / len(flight.parts)
        longest = options.max_completion_length
        return token_weights(options.loss_type, lengths(flight.parts[place]), longest=longest, whole=whole)

    def _take_own(
        self, engine: Engine, flight: Flight, place: int, trained: Sequence[int], data: Sequence[Datum], result: Forward
    ) -> None:
        """Compare what tokens were drawn by with the trainer's own pass, and take its log-probabilities where the
        sampler is the engine that trains: the same distribution, without what another order of sums rounds."""
        part, drawn, own = flight.parts[place], list[float](), list[float]()
        for i, datum, outputs in zip(trained, data, result.outputs, strict=False):
            logprobs = [float(value) for value in sampled_logprobs(datum, outputs["logprobs"])]
            drawn, own = [*drawn, *part[i].of_policy(part[i].logprobs)], [*own, *logprobs]
            if not self._others:
                part[i] = with_logprobs(part[i], logprobs)
        if own:
            gap = gap_metrics(drawn, own) | (ratio_metrics(drawn, own) if self._others else {})
            self._check_gap(gap, [part[i] for i in trained], engine.weights_version)
            worst = {name: min if name in SMALL_IS_WORSE else max for name in gap}
            flight.metrics |= {name: worst[name](value, flight.metrics.get(name, value)) for name, value in gap.items()}

    def _check_gap(self, gap: Mapping[str, float], trained: Sequence[Rollout], version: int) -> None:
        """
        Raises:
            EngineError: sampler and trainer are too far apart.
        """
        fresh = all(of == version for rollout in trained for of in rollout.of_policy(rollout.versions))
        fresh = fresh and "other_weights" not in self.sampler.capabilities
        mean, most = gap[GAP], self.options.max_logp_difference or (FRESH if fresh else STALE)
        if not mean <= most:
            raise EngineError(
                f"method.sampler: its log-probabilities are {mean:.3g} away from the trainer's on average over the "
                f"tokens of this step, at most {most:g} is allowed",
                action="see that it has the weights that train, in their precision, and draws as the recipe says; or "
                "raise method.max_logp_difference",
            )

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Any]:
        """The prompts' cursor, the rollouts in flight, and those that wait: one state of one moment."""
        flight = None if self._flight is None else self._flight.state()
        waiting = self._drawing.state()
        plain = {"batches": dict(self._begun().state()), "steps": self._steps, "flight": flight, "waiting": waiting}
        return {**plain, "entropy": dict(self._bonus.state())} if self._bonus.steered else plain

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the method as it was after the step at which `state` was taken; called before or after `prepare`."""
        self._restored = state
        if self._batches is not None:
            self.take(state)

    def take(self, state: Mapping[str, Any]) -> None:
        """Take a state over, once the prompts are known. A method with more of its own adds it to `state`, and takes it
        here."""
        self._begun().restore(state["batches"])
        self._steps = int(state["steps"])
        self._flight = None if state["flight"] is None else Flight.of(state["flight"])
        self._drawing.take(state["waiting"])
        self._bonus.restore(state.get("entropy", {}))

    def _begun(self) -> Batches:
        if self._batches is None:
            raise RuntimeError("prepare() comes before steps() and state()")
        return self._batches


def _check_seeded(environment: WeightedEnvironment) -> None:
    """
    Raises:
        RecipeError: its episodes cannot be played again, which a run that was killed between two parts does.
    """
    if "seeded" not in environment.environment.capabilities:
        raise RecipeError(
            "method.partial_rollouts",
            f"the environment {environment.name} does not say the same again for the same turns, so its episodes are "
            "played whole",
            action="leave it out, or declare the capability seeded",
        )


def surrogate_loss(options: RolloutOptions, context: Context) -> LossSpec:
    """The loss `surrogate` as the options say, of the distribution that is sampled from."""
    pick = {
        "name": "surrogate",
        "objective": options.loss_type if options.loss_type in ("cispo", "sapo", "vespo") else "clip",
        **{name: getattr(options, name) for name in PolicyOptions.model_fields},
        "beta": options.beta_of_loss,
    }
    spec = context.loss(pick, setting="method")
    needs = spec.needs | ({f"logprobs@{REFERENCE}"} if options.beta_of_loss else set())
    return for_sampled(replace(spec, needs=frozenset(needs)), options)
