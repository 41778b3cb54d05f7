"""From the recipe's `checkpoint` section to stores and gates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.entries import Gate as GateEntry
from finetooth_hooks.entries import Store as StoreEntry
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_recipes import cadence
from finetooth_recipes.recipe_picks import AUTO
from finetooth_saving.keeper import Keeping
from finetooth_saving.metric_names import distinct
from finetooth_saving.names import FOLDER
from finetooth_saving.retention import MEASURED, Best, mode_of
from finetooth_toolbox.text.nearest import nearest

if TYPE_CHECKING:
    from finetooth_hooks.protocols import Evaluator

    from finetooth_core.planning.context import RunContext


def keeping_of(context: RunContext) -> Keeping:
    """Stores and gates of a run, built and recorded in the plan.

    Raises:
        UserError: a store or gate is missing or has wrong options, or settings contradict each other.
    """
    section = context.recipe.checkpoint
    often = cadence.parse(section.every)
    best = best_of(context)
    stores = _stores(context) if often or section.stores != AUTO else []
    by_tier: dict[str, list[Any]] = {}
    for entry, store in stores:
        by_tier.setdefault(entry.tier, []).append(store)
    if len(by_tier.get("disk", ())) > 1:
        raise RecipeError("checkpoint.stores", "two stores have the tier disk", action="keep one of them")
    disk = next(iter(by_tier.get("disk", ())), None)
    if context.recipe.train.on_bad_step == "rollback" and not (
        often and (by_tier.get("device") or by_tier.get("host"))
    ):
        raise PlanError(
            "train.on_bad_step=rollback: no store keeps snapshots in memory to roll back to",
            action="set checkpoint.every, and add device or host to checkpoint.stores",
        )
    if section.select_on is not None and disk is None:
        raise PlanError(
            f"checkpoint.select_on={section.select_on}: no store keeps checkpoints on disk to select from",
            action="add disk to checkpoint.stores",
        )
    gates, engine_gates = _gates(context) if often else ({}, {})
    return Keeping(
        folder=Path(disk.place) if disk is not None else context.folder / FOLDER,
        cadence=often,
        last=section.keep_last,
        best=best,
        disk=disk,
        remote=tuple(by_tier.get("remote", ())),
        device=tuple(by_tier.get("device", ())),
        host=tuple(by_tier.get("host", ())),
        gates=gates,
        engine_gates=engine_gates,
    )


def best_of(context: RunContext) -> Best | None:
    """The metric and number of best checkpoints: from `keep_best`, else one by `select_on`."""
    section = context.recipe.checkpoint
    chosen, metric = section.keep_best, section.select_on
    if chosen is not None:
        if metric is not None and metric != chosen.metric:
            raise RecipeError(
                "checkpoint.select_on",
                f"it is {metric}, and checkpoint.keep_best keeps the best by {chosen.metric}",
                action="name the same metric",
            )
        mode = mode_of(chosen.metric) if chosen.mode == "auto" else chosen.mode
        return Best(chosen.n, chosen.metric, mode)
    return None if metric is None else Best(1, metric, mode_of(metric))


def check_measured(context: RunContext, evaluators: Sequence[Evaluator]) -> None:
    """Check that evaluators report the metric that selects the best checkpoint, and those that parts of the run wait
    for, as far as their metrics are known in advance; metrics of training steps are not.

    Args:
        evaluators: prepared.

    Raises:
        RecipeError: no evaluator reports it; names the existing ones.
    """
    best = best_of(context)
    setting = "checkpoint.select_on" if context.recipe.checkpoint.select_on is not None else "checkpoint.keep_best"
    wanted = ({} if best is None else {setting: best.metric}) | context.awaited
    for where, metric in wanted.items():
        if metric.startswith(MEASURED):
            _check_metric(where, metric, evaluators)


def _check_metric(setting: str, metric: str, evaluators: Sequence[Evaluator]) -> None:
    if not evaluators:
        raise RecipeError(
            setting,
            f"nothing measures {metric}: the recipe has no evaluator",
            action="set data.eval, or name a metric of the training steps, such as loss",
        )
    known: set[str] = set()
    for evaluator in evaluators:
        if evaluator.metrics is None:
            return
        known |= {distinct(f"{MEASURED}{name}", known) for name in evaluator.metrics}
    if metric not in known:
        raise not_measured(setting, metric, known)


def not_measured(setting: str, metric: str, known: Iterable[str]) -> RecipeError:
    """The error for a metric that no evaluator reports.

    Args:
        known: reported ones, as `eval/NAME`.
    """
    there = sorted(known)
    near = nearest(metric, there)
    return RecipeError(
        setting,
        f"no evaluator gives {metric}; there are: {', '.join(there) or 'none'}",
        action=f"did you mean {near}?" if near else "name one of them",
    )


def store_of(context: RunContext, pick: Any, setting: str) -> tuple[StoreEntry, Any]:
    """A store by name, by place (`s3://bucket/run`), or by a mapping.

    Raises:
        UserError: no store knows it, or its options are wrong.
    """
    if isinstance(pick, str) and not _is_name(context, pick):
        claimed = []
        for registered in context.catalog.all("store"):
            claims = getattr(registered.entry, "claims", None)
            if claims is not None and claims(pick) is not None:
                claimed.append(registered)
        if len(claimed) > 1:
            names = " and ".join(sorted(registered.full_name for registered in claimed))
            raise RecipeError(setting, f"{names} both claim {pick!r}", action="write {name: NAME, url: ...}")
        if claimed:
            pick = {"name": claimed[0].full_name, "url": pick}
    registered = context.builder.entry("store", pick, setting=setting)
    assert isinstance(registered.entry, StoreEntry)
    return registered.entry, context.build("store", pick, setting=setting)


def _is_name(context: RunContext, pick: str) -> bool:
    return any(pick in (registered.entry.name, registered.full_name) for registered in context.catalog.all("store"))


def _stores(context: RunContext) -> list[tuple[StoreEntry, Any]]:
    picks: Sequence[Any] | str = context.recipe.checkpoint.stores
    if picks == AUTO:
        picks = [registered.full_name for registered in context.catalog.all("store") if registered.entry.default]
        context.decide("checkpoint.stores", picks, "the default stores")
    stores = []
    for index, pick in enumerate(picks):
        setting = f"checkpoint.stores.{index}"
        entry, store = store_of(context, pick, setting)
        stores.append((entry, store))
    return stores


def _gates(context: RunContext) -> tuple[dict[str, Any], dict[str, Any]]:
    picks: Sequence[Any] | str = context.recipe.checkpoint.gates
    if picks == AUTO:
        picks = [registered.full_name for registered in context.catalog.all("gate") if registered.entry.default]
        context.decide("checkpoint.gates", picks, "the default gates")
    threaded: dict[str, Any] = {}
    standing: dict[str, Any] = {}
    for index, pick in enumerate(picks):
        setting = f"checkpoint.gates.{index}"
        registered = context.builder.entry("gate", pick, setting=setting)
        assert isinstance(registered.entry, GateEntry)
        chosen = standing if registered.entry.engine else threaded
        name = registered.entry.name
        if name in threaded or name in standing:
            name = f"{name} ({index})"
        chosen[name] = context.build("gate", pick, setting=setting)
    return threaded, standing


__all__ = ["MEASURED", "best_of", "check_measured", "keeping_of", "not_measured", "store_of"]
