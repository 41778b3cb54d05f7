"""The method `kto`: answers that are desirable or not, without pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from finetooth_hooks import DataError, Datum, Engine, Prepared, RecipeError, StepReport
from finetooth_hooks.context import Context
from finetooth_hooks.data.preparation import Limit, Rendering
from finetooth_hooks.engine import RoleModel
from finetooth_methods.batched import BatchedMethod, train_step
from finetooth_methods.preference_health import Health
from finetooth_methods.reference import ReferencePolicy
from finetooth_rows.refusing import refuse_left_out

from finetooth_preference.mismatched import kl_estimate
from finetooth_preference.options import KtoOptions
from finetooth_preference.precomputed import ReferenceLogprobs, reference_numbers

MOST = 1.33
"""The paper's largest ratio of the total weight of desirable answers to that of undesirable ones (section 4.2, eq.
8)."""


class Kto(BatchedMethod):
    """One optimizer step for each batch of answers.

    Raises:
        RecipeError: the KL of each step needs a reference model that is missing, or reference numbers for answers that
            were not precomputed.
    """

    def __init__(self, options: KtoOptions, context: Context) -> None:
        self._options = options
        self._policy = ReferencePolicy(options.reference)
        weights = options.model_dump(include={"beta", "desirable_weight", "undesirable_weight"})
        spec = context.loss({"name": options.loss, **weights}, setting="method")
        super().__init__(context, self._policy.loss(spec))
        self._estimates = options.loss == "kto"
        self._known: ReferenceLogprobs | None = None
        self._health = Health(context)
        if self._estimates and self._policy.precomputed:
            raise RecipeError(
                "method.reference.policy",
                "kto estimates its KL at every step from answers to other prompts, which cannot be precomputed",
                action="set it to adapter-off or frozen-copy, or method.loss to apo_zero_unpaired",
            )
        if self._estimates and context.train.batch_size < 2:
            raise RecipeError(
                "train.batch_size",
                "kto estimates its KL from answers to the other prompts of a batch, and a batch of 1 has none",
                action="set it to 2 or more",
            )

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`."""
        return self._policy.roles

    def prepare(self) -> Prepared:
        """Read and tokenise the answers.

        Raises:
            DataError: a row is broken, or all answers are of one kind.
        """
        rendering = Rendering("finetooth_preference.rendering:labelled", {"bad_rows": self._options.bad_rows})
        preparation = self._context.prepare("train", rendering, Limit.of(self._context.train))
        if self._options.bad_rows == "raise":
            refuse_left_out(preparation.report, "method.bad_rows")
        good = sum(datum.scalars["label"] > 0.5 for datum in preparation.data)
        note = self._balance(int(good), len(preparation.data) - int(good))
        batches = self.begin(preparation.data)
        report = replace(preparation.report, notes=(*preparation.report.notes, note))
        return Prepared(batches.total_steps, batches.steps_per_epoch, report)

    def read_beginning(self, engine: Engine) -> None:
        """See `protocols.Method.read_beginning`: the reference's numbers, if they are precomputed."""
        if self._policy.precomputed and self._known is None:
            self._known = reference_numbers(self._context, engine, self._data)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch."""
        batches = self._begun()
        self.read_beginning(engine)
        for indices in batches:
            data = self._with_kl(engine, indices)
            report = _with_margins(train_step(engine, data, self._loss, batches.epoch))
            self._policy.follow(engine, report.step)
            self._health.watch(report)
            yield report

    def _datum(self, place: int) -> Datum:
        datum = self._data[place]
        return datum if self._known is None else self._known.add(place, datum)

    def _with_kl(self, engine: Engine, places: Sequence[int]) -> list[Datum]:
        data, kl = [self._datum(i) for i in places], 0.0
        if self._estimates:
            alone = len(data) == 1  # the last batch of an epoch may have one answer
            other = [self._datum((places[0] or len(self._data)) - 1)] if alone else []
            kl = kl_estimate(engine, [*data, *other], self._context.train.max_length)
        return [replace(datum, mask=datum.mask, scalars={**datum.scalars, "kl": kl}) for datum in data]

    def _balance(self, good: int, bad: int) -> str:
        """The plan's note about the counts.

        Raises:
            DataError: all answers are of one kind.
        """
        if not good or not bad:
            kind, other = ("desirable", "undesirable") if good else ("undesirable", "desirable")
            raise DataError(
                "data.train",
                f"all {good + bad:,} answers are {kind}, and kto needs both kinds",
                action=f"add {other} answers",
            )
        options = self._options
        counts = f"{good:,} desirable and {bad:,} undesirable answers"
        share = options.desirable_weight * good / (options.undesirable_weight * bad)
        if 1.0 <= share <= MOST:
            return f"{counts}, weighted {share:.3g} to 1, in the recommended range of 1 to {MOST}"
        least = options.undesirable_weight * bad / good
        highest = options.desirable_weight * good / bad
        return (
            f"{counts}, weighted {share:.3g} to 1; 1 to {MOST} is recommended: set method.desirable_weight between "
            f"{least:.3g} and {MOST * least:.3g}, or method.undesirable_weight between {highest / MOST:.3g} and "
            f"{highest:.3g}"
        )


def _with_margins(report: StepReport) -> StepReport:
    """The report with the difference of the mean rewards, if the batch has both kinds."""
    sides = [report.metrics.get(f"rewards/{side}") for side in ("chosen", "rejected")]
    if sides[0] is None or sides[1] is None:
        return report
    return replace(report, metrics={**report.metrics, "rewards/margins": sides[0] - sides[1]})
