"""Builds and checks method, evaluators and trackers, and reads their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from finetooth_hooks.compute.heads import ScalarHead
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.compute.outputs import OutputName
from finetooth_hooks.engine import RoleModel
from finetooth_hooks.entries import Backend, Evaluator, Method
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.protocols import Evaluator as BuiltEvaluator
from finetooth_hooks.protocols import Method as BuiltMethod
from finetooth_hooks.protocols import RoleRequest
from finetooth_hooks.reports import DataReport, Prepared
from finetooth_recipes.recipe_picks import AUTO
from finetooth_toolbox.blame import error_line

from finetooth_core.planning.context import RunContext
from finetooth_core.planning.heads import check_head_is_there
from finetooth_core.planning.roles import brought_roles, held_roles
from finetooth_core.plugins.part_builder import BuiltPart, is_auto
from finetooth_core.plugins.trackers import PickedTracker

NO_DATA = Prepared(None, 0, DataReport("train", 0, 0))


@dataclass(frozen=True)
class RunParts:
    """The parts that drive the engine over the recipe's data, and what they need. Empty if the caller has its own data.

    Attributes:
        reports: on the rows of each split, training rows first.
        needs: engine capabilities.
        losses: each with the setting that picked it.
        roles: models other than the policy.
    """

    method: BuiltMethod | None = None
    prepared: Prepared = NO_DATA
    evaluators: tuple[BuiltEvaluator, ...] = ()
    trackers: tuple[PickedTracker, ...] = ()
    reports: tuple[DataReport, ...] = ()
    needs: frozenset[str] = frozenset()
    losses: tuple[tuple[str, LossSpec], ...] = ()
    roles: Mapping[str, RoleRequest] = field(default_factory=dict)


def driven_by(context: RunContext, backend: Backend, no_reference: str, head: ScalarHead | None) -> RunParts:
    """Builds and checks method, evaluators and trackers, and reads their data.

    Args:
        no_reference: why the policy without its adapter cannot be the reference; empty if it can.
    """
    built, entry = single(context, "method", context.recipe.method, Method)
    if "own_engine" in built.part.capabilities:  # as its options stand
        entry = replace(entry, needs=entry.needs | {"generate"})
    evaluators, entries = _evaluators(context, entry)
    losses = [loss for source in (built, *evaluators) for loss in source.losses]
    trackers = _trackers(context)
    for index, pick in enumerate(context.recipe.export):
        named = context.builder.entry("exporter", pick, setting=f"export.{index}").full_name
        context.log.pick(f"export.{index}", named)
    needs = _check_capabilities(backend, entry, entries, no_reference)
    brought = brought_roles(built.part, spared=not no_reference)
    for setting, spec in losses:
        _check_loss(setting, spec, backend, no_reference, brought)
        check_head_is_there(setting, spec, head)
    roles = held_roles(context, [spec for _, spec in losses], brought, backend)
    prepared = built.part.prepare()
    held_out = (evaluator.part.prepare() for evaluator in evaluators)
    reports = (prepared.report, *(report for report in held_out if report is not None))
    check_profile(context, backend, prepared.total_steps)
    return RunParts(
        built.part,
        prepared,
        tuple(evaluator.part for evaluator in evaluators),
        tuple(trackers),
        reports,
        needs,
        tuple(losses),
        roles,
    )


def evaluators_of(context: RunContext) -> list[BuiltPart]:
    """The evaluators that a recipe picks, built."""
    pick = context.recipe.method
    builder = context.builder
    registered = context.catalog.default("method") if is_auto(pick) else builder.entry("method", pick, setting="method")
    assert isinstance(registered.entry, Method)
    return _evaluators(context, registered.entry)[0]


def single(context: RunContext, kind: str, pick: Any, entry_type: type[Any]) -> tuple[BuiltPart, Any]:
    """Build a single-choice section; return what was built and its entry."""
    built = context.builder.section(kind, pick, kind, framework=context.framework)
    entry = built.registered.entry
    assert isinstance(entry, entry_type)
    return built, entry


def _evaluators(context: RunContext, method: Method) -> tuple[list[BuiltPart], list[Evaluator]]:
    picks = context.recipe.evaluate.evaluators
    if picks == AUTO:
        if not context.data.has("eval"):
            context.decide("evaluate.evaluators", [], "data.eval is not set")
            return [], []
        picks = list(method.evaluators) or [r.full_name for r in context.catalog.all("evaluator") if r.entry.default]
        reason = f"the evaluator of method {method.name}" if method.evaluators else "the defaults"
        context.decide("evaluate.evaluators", picks, f"{reason}, since data.eval is set")
    built, entries = [], []
    for index, pick in enumerate(picks):
        setting = f"evaluate.evaluators.{index}"
        evaluator = context.builder.build("evaluator", pick, setting=setting)
        entry = evaluator.registered.entry
        assert isinstance(entry, Evaluator)
        built.append(evaluator)
        entries.append(entry)
        context.log.pick(f"evaluator.{index}", evaluator.registered.full_name)
    return built, entries


def _trackers(context: RunContext) -> list[PickedTracker]:
    """The trackers of a run. A default tracker that fails to build is skipped with a warning: the user did not pick
    it."""
    picks = context.recipe.trackers
    listed = picks != AUTO
    if picks == AUTO:
        picks = [r.full_name for r in context.catalog.all("tracker") if r.entry.default]
        context.decide("trackers", picks, "the defaults")
    plugins = () if context.plugins is None else context.plugins.loaded
    named = {plugin.distribution for plugin in plugins if plugin.named_by_user}
    built: list[PickedTracker] = []
    for index, pick in enumerate(picks):
        setting = f"trackers.{index}"
        registered = context.builder.entry("tracker", pick, setting=setting)
        by_user = listed or registered.distribution in named
        try:
            tracker = context.builder.built(registered, pick, setting)
        except Exception as error:
            if by_user:
                raise
            context.note(
                f"tracker {registered.full_name} cannot be built: {error_line(error)}; this run continues without it"
            )
            continue
        again = sum(earlier.name.partition("#")[0] == registered.full_name for earlier in built)
        name = f"{registered.full_name}#{again + 1}" if again else registered.full_name
        built.append(PickedTracker(name, tracker.part, by_user))
        context.log.pick(f"tracker.{index}", registered.full_name)
    return built


def _check_capabilities(
    backend: Backend, method: Method, evaluators: list[Evaluator], no_reference: str
) -> frozenset[str]:
    """The engine capabilities that method and evaluators need; the backend must have all."""
    asking: list[Method | Evaluator] = [method, *evaluators]
    for entry in asking:
        lacking = sorted(entry.needs - backend.capabilities)
        if lacking:
            raise PlanError(
                f"{entry.kind}: {entry.name} needs {', '.join(lacking)}, which backend {backend.name} cannot do",
                action=f"pick another {entry.kind} or backend",
            )
    if "reference" in method.roles and no_reference:
        raise PlanError(
            f"method: {method.name} needs a reference model, and {no_reference}",
            action="pick a new low-rank adapter, and name the run as the model",
        )
    return method.needs.union(*(entry.needs for entry in evaluators))


def check_profile(context: RunContext, backend: Backend, total_steps: int | None) -> None:
    """Check that the steps of `profile` can be recorded and, if the run's length is known, occur."""
    section = context.recipe.profile
    if not section.steps:
        return
    if "profile" not in backend.capabilities:
        raise PlanError(
            f"profile: backend {backend.name} cannot record its steps",
            action="leave profile out, or pick another backend",
        )
    if total_steps is None:
        return
    last = section.start + section.steps - 1
    if section.start > total_steps:
        raise RecipeError(
            "profile.start",
            f"it is {section.start}, and the run ends after {_count(total_steps)}: nothing would be recorded",
            action=f"set it to at most {total_steps}",
        )
    if last > total_steps:
        only = section.start == total_steps
        recorded = f"step {total_steps}" if only else f"steps {section.start} to {total_steps}"
        context.note(
            f"profile: {recorded} will be recorded, not {section.start} to {last}: the run ends after "
            f"{_count(total_steps)}"
        )


def _count(steps: int) -> str:
    """`1 step`, `3 steps`."""
    return f"{steps} {'step' if steps == 1 else 'steps'}"


def _check_loss(
    setting: str, spec: LossSpec, backend: Backend, no_reference: str, brought: Mapping[str, RoleModel | None]
) -> None:
    """Check that the backend has the outputs that losses read, and that there is a reference model.

    Args:
        brought: the method's roles.
    """
    names = [OutputName.of(need) for need in sorted(spec.needs)]
    lacking = sorted({name.kind for name in names} - backend.outputs)
    if lacking and not backend.outputs:
        raise PlanError(
            f"{setting}: loss {spec.name} cannot be computed by backend {backend.name}, which only answers and "
            "cannot train",
            action="leave backend out, or pick another one",
        )
    if lacking:
        raise PlanError(
            f"{setting}: loss {spec.name} reads {', '.join(lacking)}, which backend {backend.name} does not have",
            action=f"choose a loss that reads {', '.join(sorted(backend.outputs))}",
        )
    deep = [need for need, name in zip(sorted(spec.needs), names, strict=True) if name.depth is not None]
    if deep and "depths" not in backend.capabilities:
        raise PlanError(
            f"{setting}: loss {spec.name} reads {', '.join(deep)}, and backend {backend.name} gives hidden states of "
            "the last layer only",
            action="choose a backend with the capability depths, such as torch, or a loss that reads hidden",
        )
    unknown = sorted(spec.roles - {"reference", *brought})
    if unknown:
        raise PlanError(
            f"{setting}: loss {spec.name} needs the role {unknown[0]}, and the method brings no model for it",
            action="choose another loss",
        )
    if "reference" in spec.roles - brought.keys() and no_reference:
        raise PlanError(
            f"{setting}: loss {spec.name} needs a reference model, and {no_reference}",
            action="set method.reference to frozen-copy, or pick a low-rank adapter that starts as its base",
        )
