"""The methods on pairs: `dpo`, `orpo`, `simpo`, `cpo`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Engine, LossSpec, Pick, Prepared, RecipeError, StepReport
from finetooth_hooks.context import Context
from finetooth_hooks.data.preparation import Limit, Rendering
from finetooth_hooks.engine import RoleModel
from finetooth_methods.batched import BatchedMethod, train_step
from finetooth_methods.preference_health import Health
from finetooth_methods.reference import ADAPTER_OFF, ReferenceOptions, ReferencePolicy
from finetooth_rows.refusing import refuse_left_out
from finetooth_toolbox.combined_losses import combined

from finetooth_preference.options import (
    CpoOptions,
    DpoOptions,
    OrpoOptions,
    SimpoOptions,
)
from finetooth_preference.pair_data import PairData, report_of
from finetooth_preference.precomputed import reference_numbers

NO_BETA = ("sft", "cross_entropy")
"""Losses without a beta."""


def dpo(options: DpoOptions, context: Context) -> PairMethod:
    """Direct preference optimization, with one loss or several.

    Raises:
        RecipeError: `loss` and `losses` are both given, or a weight is not a number above 0.
    """
    picks: list[tuple[str, Pick]] = [("method.loss", options.loss)]
    if options.losses:
        if "loss" in options.model_fields_set:
            raise RecipeError("method.losses", "loss and losses are both given", action="leave one of them out")
        picks = [(f"method.losses.{i}", pick) for i, pick in enumerate(options.losses)]
    parts = [_weighted(context, pick, setting, options.beta) for setting, pick in picks]
    margins = any(_options_of(pick).get("margin_weight") for _, pick in picks)
    return PairMethod(context, combined(parts), options.reference, options.bad_rows, margins=margins)


def orpo(options: OrpoOptions, context: Context) -> PairMethod:
    return _alone("orpo", options, context)


def simpo(options: SimpoOptions, context: Context) -> PairMethod:
    return _alone("simpo", options, context)


def cpo(options: CpoOptions, context: Context) -> PairMethod:
    return _alone("cpo", options, context)


def _alone(name: str, options: OrpoOptions | SimpoOptions | CpoOptions, context: Context) -> PairMethod:
    """A method with one loss and no reference."""
    spec = context.loss({"name": name, **options.model_dump(exclude={"bad_rows"})}, setting="method")
    return PairMethod(context, spec, ReferenceOptions(policy=ADAPTER_OFF), options.bad_rows)


def _weighted(context: Context, pick: Pick, setting: str, beta: float | None) -> tuple[LossSpec, float]:
    """A loss with its weight; its beta is the method's, unless it sets one."""
    options = _options_of(pick)
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise RecipeError(
            f"{setting}.weight", f"{weight!r} is not a number above 0", action="give one, or leave it out"
        )
    if beta is not None and str(options.get("name")).rpartition(":")[2] not in NO_BETA:
        options.setdefault("beta", beta)
    return context.loss(options, setting=setting), float(weight)


def _options_of(pick: Pick) -> dict[str, Any]:
    return {"name": pick} if isinstance(pick, str) else dict(pick)


class PairMethod(BatchedMethod):
    """One optimizer step for each batch of pairs; `train.batch_size` counts pairs. `data` are their answers.

    Args:
        reference: the reference of the losses, if they need one.
        bad_rows: see `RowOptions`.
        margins: every row must have a margin.
    """

    noun = "answer"

    def __init__(
        self, context: Context, loss: LossSpec, reference: ReferenceOptions, bad_rows: str, *, margins: bool = False
    ) -> None:
        self._policy = ReferencePolicy(reference)
        self._reads_reference = "reference" in loss.roles
        super().__init__(context, self._policy.loss(loss) if self._reads_reference else loss)
        self._rendering = Rendering("finetooth_preference.rendering:pairs", {"bad_rows": bad_rows, "margins": margins})
        self._refuses = bad_rows == "raise"
        self._pairs = PairData(())
        self._health = Health(context)

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`."""
        return self._policy.roles if self._reads_reference else {}

    def prepare(self) -> Prepared:
        """Read and tokenise the pairs.

        Raises:
            DataError: a row is broken, or not a pair.
        """
        preparation = self._context.prepare("train", self._rendering, Limit.of(self._context.train))
        if self._refuses:
            refuse_left_out(preparation.report, "method.bad_rows")
        self._pairs = PairData(preparation.data)
        batches = self.begin(preparation.data, of_row=2)
        report = report_of(preparation.report, len(self._pairs))
        return Prepared(batches.total_steps, batches.steps_per_epoch, report)

    def read_beginning(self, engine: Engine) -> None:
        """See `protocols.Method.read_beginning`: the reference's numbers, if they are precomputed."""
        if self._reads_reference and self._policy.precomputed and self._pairs.known is None:
            self._pairs.known = reference_numbers(self._context, engine, self._pairs.rows)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch of pairs."""
        batches = self._begun()
        self.read_beginning(engine)
        for indices in batches:
            data = [datum for i in indices for datum in self._pairs[i]]
            report = replace(train_step(engine, data, self._loss, batches.epoch), rows=len(indices))
            self._policy.follow(engine, report.step)
            self._health.watch(report)
            yield report
