"""`adapter: auto` and `quantization: auto`: what trains is the first step of a cascade that the memory has room for.

    all weights -> an adapter -> over a base in 8 bits -> in 4 bits
    -> the adapter with activations recomputed -> so over 8 bits -> so over 4 bits
    -> with what the backend can keep elsewhere (activations, frozen layers)

Quantisation is tried before recomputation; if it was not enough or saved nothing (a small model, whose activations take
more than its weights), recomputation starts without it, so that no precision is lost in vain.

Every step is the recipe with its choices made, and its figure the memory estimate of that recipe's own plan, held
against what the device has and what of it is free. Each tried step is a note of the plan, and the choice is written
into the run's recipe, so that a resumed run keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks.context import Registered
from finetooth_hooks.entries import Quantizer
from finetooth_hooks.errors import PlanError
from finetooth_recipes.recipe_picks import AUTO
from finetooth_toolbox.text import measures

from finetooth_core.planning.context import RunContext
from finetooth_core.planning.memory_check import shortages
from finetooth_core.planning.memory_ladder import bytes_per_weight, name_of, savings, usable
from finetooth_core.planning.plan import Job
from finetooth_core.settings.recipe import Recipe

Decide = Callable[[RunContext], Job]
"""From a recipe without open choices to its plan."""

BITS = {8: (0.75, 1.5), 4: (0.0, 0.75)}
"""Ranges of bytes per weight, by number of bits: more than the first, at most the second."""

CHECKPOINTING = "train.gradient_checkpointing"


@dataclass(frozen=True)
class Step:
    """One way to train a model.

    Attributes:
        kind: `whole`, `adapter`, `8 bits`, `4 bits`, `recomputed` or `elsewhere`: its addition to the previous ways.
        label: for people.
        gives_up: all its disadvantages compared with full fine-tuning.
        changes: settings of the recipe by their dotted paths.
    """

    kind: str
    label: str
    gives_up: tuple[str, ...]
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class StepTrial:
    """A step and its plan, or why it has none.

    Attributes:
        job: its plan; None where the combination cannot work.
        obstacle: why it is skipped; empty: it is usable.
    """

    step: Step
    job: Job | None
    obstacle: str = ""

    @property
    def figure(self) -> str:
        """The memory it takes on the device, or `cannot work`."""
        return "cannot work" if self.job is None else measures.size(self.job.plan.memory.total)


# --- which choices are open -------------------------------------------------------------------------------------------


def is_open(recipe: Recipe) -> bool:
    """Whether a recipe lets memory decide what trains."""
    return opens_adapter(recipe) or recipe.quantization == AUTO


def opens_adapter(recipe: Recipe) -> bool:
    """`adapter: auto`, written out; a recipe without `adapter` takes the default one."""
    return recipe.as_dict().get("adapter") == AUTO


def steps(context: RunContext) -> list[Step]:
    """The steps of a recipe, what costs least first."""
    recipe = context.recipe
    keep = {CHECKPOINTING: False} if recipe.train.gradient_checkpointing == AUTO else {}
    ladder = [Step(kind, label, gives_up, {**keep, **changes}) for kind, label, gives_up, changes in _adapters(context)]
    if recipe.quantization == AUTO:
        ladder = [replace(step, changes={**step.changes, "quantization": None}) for step in ladder]
    last = ladder[-1]
    over = [last]  # bases of the adapter, the most bits first
    if recipe.quantization == AUTO:
        for bits, registered in _quantizers(context):
            name = name_of(registered, context)
            over.append(
                Step(
                    f"{bits} bits",
                    f"{last.label} over {name}",
                    (*last.gives_up, f"the linear weights of the base are rounded to {bits} bits"),
                    {**last.changes, "quantization": name},
                )
            )
        ladder += over[1:]
    if keep:
        for step in over:
            label = f"{step.label}, activations recomputed"
            lost = (*step.gives_up, "time: the layers compute their forward pass twice")
            ladder.append(Step("recomputed", label, lost, {**step.changes, CHECKPOINTING: True}))
    last = ladder[-1]
    for saving, backend in savings(context):
        label, lost = f"{last.label}, {saving.label}", (*last.gives_up, saving.costs)
        ladder.append(Step("elsewhere", label, lost, {**last.changes, "backend": backend}))
    return ladder


def _adapters(context: RunContext) -> Iterator[tuple[str, str, tuple[str, ...], dict[str, Any]]]:
    """Kind, label, what is given up and changes: all weights, then the default adapter, unless the recipe picks one."""
    if not opens_adapter(context.recipe):
        pick = context.recipe.adapter
        named = pick if isinstance(pick, str) else str(pick["name"])
        if named == AUTO:
            named = name_of(context.catalog.default("adapter", framework=context.framework), context)
        yield "adapter", named, (), {}
        return
    whole, size = None, 0
    trained_by = lambda built: built.trained_parameters(context.facts, context.model.parameters)  # noqa: E731
    for registered, _, trained in usable(context, "adapter", trained_by, lambda entry: not entry.base_frozen):
        if trained > size:
            whole, size = registered, trained
    if whole is not None:
        yield "whole", name_of(whole, context), (), {"adapter": name_of(whole, context)}
    added = context.catalog.default("adapter", setting="adapter", framework=context.framework)
    if whole is None or added.full_name != whole.full_name:
        name = name_of(added, context)
        yield "adapter", name, ("the weights of the base stay as they are",), {"adapter": name}


def _quantizers(context: RunContext) -> Iterator[tuple[int, Registered]]:
    """The quantizer for each number of bits: of those that can be built the one with the highest rank, then the one
    with the most bytes."""
    candidates: list[tuple[float, tuple[int, float, str], Registered]] = []
    for registered, _, size in usable(context, "quantizer", bytes_per_weight):
        assert isinstance(registered.entry, Quantizer)
        candidates.append((size, (-registered.entry.rank, -size, registered.full_name), registered))
    for bits, (above, most) in BITS.items():
        fitting = [(order, registered) for size, order, registered in candidates if above < size <= most]
        if fitting:
            yield bits, min(fitting, key=lambda candidate: candidate[0])[1]


# --- which of them is taken -------------------------------------------------------------------------------------------


def tried(context: RunContext, decide: Decide, candidates: list[Step], *, all_of_them: bool = False) -> list[StepTrial]:
    """Steps with their plans, up to the first that fits.

    Args:
        all_of_them: continue after it.

    Raises:
        FinetoothError: what is wrong with the recipe whatever trains.
    """
    outcomes: list[StepTrial] = []
    for step in candidates:
        try:
            job = decide(context.beside(context.recipe.changed(step.changes)))
        except PlanError as error:
            outcomes.append(StepTrial(step, None, error.problem))
            continue
        lacking = shortages(job.plan.memory, job.request.place.hardware)
        outcomes.append(StepTrial(step, job, "; it ".join(lacking)))
        if not lacking and not all_of_them:
            break
    return outcomes


def choose(context: RunContext, decide: Decide) -> Job:
    """Returns the plan of the first step that fits. If none fits, it returns the plan of the last step that can work;
    the check of memory then says what it lacks.

    Raises:
        PlanError: no step can work, whatever the memory.
        FinetoothError: what is wrong with the recipe whatever trains.
    """
    ladder = steps(context)
    outcomes = tried(context, decide, ladder)
    able = [trial for trial in outcomes if trial.job is not None]
    if not able:
        lines = "; ".join(f"{trial.step.label}: {trial.obstacle}" for trial in outcomes)
        raise PlanError(f"{_settings(context.recipe)}: no way of training works ({lines})", action="name an adapter")
    taken = next((trial for trial in able if not trial.obstacle), able[-1])
    return _explained(context, taken, outcomes)


def _explained(context: RunContext, taken: StepTrial, outcomes: list[StepTrial]) -> Job:
    """The plan of a step, which says what was tried before it."""
    job = taken.job
    assert job is not None
    reason = _reason(taken, outcomes)
    settings = taken.step.changes.keys()
    decisions = tuple(replace(old, reason=reason) if old.setting in settings else old for old in job.plan.decisions)
    notes = dict.fromkeys((*context.notes, *_lines(context.recipe, taken, outcomes), *job.plan.notes))
    plan = replace(job.plan, decisions=decisions, notes=tuple(notes))
    for decision in decisions:
        job.context.decide(decision.setting, decision.value, decision.reason)
    job.context.planned(plan)
    passed = tuple(f"{trial.step.label} {trial.figure}" for trial in outcomes if trial is not taken)
    return replace(job, plan=plan, request=replace(job.request, plan=plan), passed=passed)


def _settings(recipe: Recipe) -> str:
    open_ones = (("adapter", opens_adapter(recipe)), ("quantization", recipe.quantization == AUTO))
    return ", ".join(f"{setting}: auto" for setting, is_auto in open_ones if is_auto)


def _reason(taken: StepTrial, outcomes: list[StepTrial]) -> str:
    """The reasons for the chosen settings."""
    if taken.obstacle:
        return f"auto: nothing fits, and this takes the least memory, {taken.figure}"
    before = next((tried for tried in reversed(outcomes) if tried.obstacle), None)
    if before is None:
        return f"auto: it fits, with {taken.figure}"
    would = "cannot work" if before.job is None else f"would take {before.figure}"
    return f"auto: {before.step.label} {would}, this takes {taken.figure}"


def _lines(recipe: Recipe, taken: StepTrial, outcomes: list[StepTrial]) -> Iterator[str]:
    """The result of each step, for the notes of the plan."""
    settings = _settings(recipe)
    for place, trial in enumerate(outcomes):
        if trial.job is None:
            yield f"{settings}: {trial.step.label} cannot work: {trial.obstacle}"
        elif trial.obstacle and trial is not taken:
            yield f"{settings}: {trial.step.label} {trial.obstacle}: not taken{_in_vain(trial, outcomes[:place])}"
        elif trial is taken:
            fits = "does not fit either, but takes the least memory" if trial.obstacle else "is taken"
            lost = f"; given up: {', '.join(trial.step.gives_up)}" if trial.step.gives_up else ""
            yield f"{settings}: {trial.step.label} {fits}: {trial.figure} at the peak{lost}"


def _in_vain(tried: StepTrial, before: list[StepTrial]) -> str:
    """A note that a step saves nothing compared with a milder one."""
    least = min((earlier for earlier in before if earlier.job is not None), key=_total, default=None)
    return "" if least is None or _total(tried) < _total(least) else f" (no less than {least.step.label})"


def _total(tried: StepTrial) -> int:
    assert tried.job is not None
    return tried.job.plan.memory.total
