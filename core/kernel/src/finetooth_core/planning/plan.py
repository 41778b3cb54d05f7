"""Decides every `auto`, with reasons, and refuses impossible combinations; loads no weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetooth_hooks.compute.heads import ScalarHead
from finetooth_hooks.context import Registered
from finetooth_hooks.data.preparation import Limit, Preparation, PreparedAs, Rendering
from finetooth_hooks.entries import Adapter, Backend, Hardware, Loader, Optimizer, Quantizer, Schedule
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.plan import Plan
from finetooth_hooks.protocols import Adapter as BuiltAdapter
from finetooth_hooks.protocols import Backend as BuiltBackend
from finetooth_hooks.protocols import (
    BackendPlan,
    BasePart,
    ComputePart,
    DataPart,
    EngineRequest,
    HardwareFacts,
    PlanRequest,
    SnapshotsPart,
    StepCost,
    TextPart,
    TrainsPart,
    UpdatesPart,
)
from finetooth_hooks.protocols import Evaluator as BuiltEvaluator
from finetooth_hooks.protocols import Hardware as BuiltHardware
from finetooth_hooks.protocols import Method as BuiltMethod
from finetooth_hooks.reports import DataReport, Prepared
from finetooth_recipes.alternatives import SETTINGS, instead, runs_on
from finetooth_recipes.incidental import incidental_settings, is_among, without
from finetooth_recipes.recipe_picks import AUTO
from finetooth_saving.early_stopping import SETTING as STOPPING
from finetooth_saving.keeper import Keeping
from finetooth_toolbox.combined_losses import common_field

from finetooth_core.checkpoints.keeping import check_measured, keeping_of
from finetooth_core.planning.context import RunContext
from finetooth_core.planning.driven import RunParts, driven_by, single
from finetooth_core.planning.framework import by_rank
from finetooth_core.planning.heads import decide_head, head_size
from finetooth_core.planning.kernels import KernelPicker
from finetooth_core.planning.quantised import build_quantizer, check_quantised
from finetooth_core.planning.ranks import place_of
from finetooth_core.planning.roles import no_reference
from finetooth_core.planning.room import check_room
from finetooth_core.plugins.collector import paused_collector
from finetooth_core.plugins.part_builder import BuiltPart
from finetooth_core.plugins.trackers import PickedTracker
from finetooth_core.settings.picked_options import check_picked_options
from finetooth_core.settings.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A planned run, ready to build its engine.

    Attributes:
        context: of the parts.
        plan: the decisions.
        method: its data are prepared; None without data.
        prepared: steps and the report on the rows.
        backend: builds the engine from `request`.
        evaluators: in the recipe's order.
        trackers: in the recipe's order.
        reports: on the rows, by split.
        every_report: of all readers: evaluators may use other rows of one split.
        keeping: places of checkpoints; None without data.
        padding: share of padding in the backend's layout; see `BackendPlan.padding`.
        cost: of steps, or why it is unknown; see `BackendPlan.cost`.
        asked: the backend's request, with the recipe's open settings.
        passed: steps that a cascade tried before, with their memory; see `cascade`.
    """

    context: RunContext
    plan: Plan
    method: BuiltMethod | None
    prepared: Prepared
    backend: BuiltBackend
    request: EngineRequest
    asked: PlanRequest
    evaluators: tuple[BuiltEvaluator, ...]
    trackers: tuple[PickedTracker, ...]
    reports: tuple[DataReport, ...]
    keeping: Keeping | None = None
    padding: Callable[[Sequence[Sequence[int]]], float] | None = None
    cost: StepCost | str = ""
    every_report: tuple[DataReport, ...] = ()
    passed: tuple[str, ...] = ()

    @property
    def prepared_as(self) -> Mapping[str, PreparedAs]:
        """How the rows of each split become tokens."""
        return self.context.data.prepared_as

    @property
    def not_kept(self) -> Mapping[str, str]:
        """Why the tokens of a split are not cached, regardless of the recipe."""
        return self.context.data.not_kept

    def prepare(
        self, split: str, rendering: Rendering, limit: Limit | None, *, first: int | None = None, quiet: bool = False
    ) -> Preparation:
        """See `Decided.prepare`."""
        with self.context.unheard() if quiet else nullcontext():
            return self.context.prepare(split, rendering, limit, first=first)


def decide(context: RunContext, versions: Mapping[str, str], *, data: bool = True) -> Job:
    """From a recipe to a job.

    Args:
        context: of the recipe.
        data: False for an engine that the caller drives with its own data: nothing is read, and the job has neither
            method nor evaluators.
        versions: of every distribution that brought a plugin; part of the plan's hash.

    Raises:
        UserError: bad options, bad data, or a combination that cannot work.
    """
    recipe = context.recipe
    check_picked_options(recipe, context.catalog, context.framework, data=data)
    backend_built, backend_entry = single(context, "backend", recipe.backend, Backend)
    backend = backend_built.part
    hardware = hardware_of(context, backend_entry)
    model, facts = context.model, context.facts
    adapter_built, adapter_entry = single(context, "adapter", recipe.adapter, Adapter)
    quantizer_built = build_quantizer(context)
    optimizer_built, optimizer_entry = single(context, "optimizer", recipe.optimizer, Optimizer)
    parts = (adapter_built, optimizer_built, quantizer_built)
    used = [context.loading[0], *(built.registered for built in parts if built is not None)]
    _check_frameworks(context, used, backend_built.registered, backend_entry)
    _check_optimizer(context, optimizer_built, backend_built, backend_entry, hardware)
    _check_noise(context.train.embedding_noise, backend_built, backend_entry)
    updates = updates_of(context, optimizer_built, optimizer_entry, data, whole=not adapter_entry.base_frozen)
    check_quantised(context, adapter_built, quantizer_built)
    _check_length(context, facts.max_positions)
    head = decide_head(context, backend_entry, data=data)
    reason = no_reference(backend_entry, adapter_entry, adapter_built.part)
    driven = driven_by(context, backend_entry, reason, head) if data else RunParts()
    prepared, roles = driven.prepared, driven.roles
    keeping = keeping_of(context) if data else None
    if data:
        if (stopping := context.recipe.train.early_stopping) is not None:
            context.wait_for(stopping.metric, setting=f"{STOPPING}.metric")
        check_measured(context, driven.evaluators)
        if prepared.total_steps is not None:
            updates.schedule.factor(0, prepared.total_steps)  # refuses a warm-up that is longer than the run
    base = BasePart(model, facts, context.loader, None if quantizer_built is None else quantizer_built.part)
    trains = trains_of(context, adapter_built.part, adapter_entry, head)
    place = place_of(context, hardware, backend_entry)
    if context.hardware is None and data:  # another machine's disks are unknown; without data: no run
        check_room(
            context, keeping, trains, parameters=model.parameters, state_bytes=updates.state_bytes,
            copies=sum(role.model is None for role in roles.values()),
            extra=trains.adapter.kept_bytes(facts, model.parameters), total_steps=prepared.total_steps,
        )  # fmt: skip
    kernels = KernelPicker(context, backend_built.registered.full_name, backend_entry.framework, hardware.device)
    plan_request = PlanRequest(
        context.train, base, trains, updates, place, _lengths(context, prepared.report, driven.reports),
        needs=driven.needs,
        roles=roles,
        opened=tuple(opened.context.model for opened in context.opened),
        proportional_to=common_field(spec for _, spec in driven.losses),
        kernels=kernels,
        snapshots=_snapshots(keeping, backend_entry),
        several_calls=driven.method is None or "several_calls" in driven.method.capabilities,
    )  # fmt: skip
    decided: BackendPlan = backend.plan(plan_request)
    for decision in decided.decisions:
        context.decide(decision.setting, decision.value, decision.reason)
    kernels.tell()
    memory = replace(decided.memory, device_has=hardware.memory, host_has=hardware.host_memory)
    plan = _plan(context, replace(decided, memory=memory), prepared.total_steps, versions)
    context.planned(plan)
    text = TextPart(context.tokenizer, context.renderer.stop_ids, lambda: context.processor)
    request = EngineRequest(plan, base, trains, updates, text, place, roles, ComputePart(dict(kernels.picked)))
    return Job(
        context, plan, driven.method, prepared, backend, request, plan_request, driven.evaluators, driven.trackers,
        _by_split(driven.reports), keeping, decided.padding, decided.cost, driven.reports,
    )  # fmt: skip


def _schedule_pick(context: RunContext, data: bool, *, open_ended: bool) -> Any:
    """Returns the recipe's schedule. If the recipe leaves the choice open and the number of steps is not known, returns
    a schedule that works without it.

    Args:
        open_ended: the optimizer needs a schedule that works without the number of steps.
    """
    pick = context.recipe.schedule
    if pick != AUTO or ((data or context.train.max_steps is not None) and not open_ended):
        return pick
    endless = [r for r in context.catalog.all("schedule") if not getattr(r.entry, "needs_total", True)]
    return min(r.full_name for r in endless) if endless else pick


def updates_of(context: RunContext, optimizer: BuiltPart, entry: Optimizer, data: bool, *, whole: bool) -> UpdatesPart:
    """Optimizer and schedule, built.

    Args:
        whole: the whole model trains, so that an optimizer can say by its sizes what it keeps.
    """
    averages = "averages" in optimizer.part.capabilities
    pick = _schedule_pick(context, data, open_ended=averages)
    scheduled = context.builder.section("schedule", pick, "schedule")
    chosen = scheduled.registered.entry
    assert isinstance(chosen, Schedule)
    if averages and chosen.needs_total:
        context.note(
            f"schedule: {scheduled.registered.full_name} lowers the rate of {optimizer.registered.full_name}, "
            "which averages weights instead; schedule=constant keeps the rate"
        )
    name = optimizer.registered.full_name
    computed = optimizer.part.state_bytes(context.facts) if whole else None
    state = entry.state_bytes if computed is None else computed
    return UpdatesPart(
        optimizer.part, scheduled.part, name, state, entry.accumulation, entry.checkpointing, entry.update_bytes,
        entry.tensor_bytes,
    )  # fmt: skip


def _check_optimizer(
    context: RunContext, optimizer: BuiltPart, backend: BuiltPart, backend_entry: Backend, hardware: HardwareFacts
) -> None:
    """
    Raises:
        PlanError: the optimizer does not run on the device, or the backend's engines lack an ability that it needs.
    """
    name, device = optimizer.registered.full_name, hardware.device.partition(":")[0]
    speaking = context.catalog.speaking("optimizer", backend_entry.framework)
    able = [registered.entry for registered in speaking if runs_on(registered.entry, device)]
    if not runs_on(optimizer.registered.entry, device):
        has = " and ".join(sorted(getattr(optimizer.registered.entry, "devices", ())))
        raise PlanError(
            f"optimizer: {name} runs on {has}, and this run computes on {device} ({hardware.label})",
            action=instead("optimizer", name, able),
        )
    words = sorted(optimizer.part.capabilities)
    if words and "optimizers" not in backend_entry.capabilities:
        raise PlanError(
            f"optimizer: engines of {backend.registered.full_name} have no {', '.join(words)}, which {name} needs",
            action=instead("optimizer", "", [entry for entry in able if entry.default]),
        )


def _check_noise(alpha: float, backend: BuiltPart, backend_entry: Backend) -> None:
    """
    Raises:
        PlanError: the recipe sets noise on embeddings, and the backend's engines lack it.
    """
    if alpha and "embedding_noise" not in backend_entry.capabilities:
        raise PlanError(
            f"train.embedding_noise: engines of {backend.registered.full_name} add no noise",
            action="set it to 0, or pick another backend",
        )


def _snapshots(keeping: Keeping | None, backend: Backend) -> SnapshotsPart:
    """One snapshot being made, while each store in memory still has all of its own."""
    if keeping is None or not keeping.cadence or "snapshots" not in backend.capabilities:
        return SnapshotsPart()
    brought = keeping.on_disk or bool(keeping.host)
    on_device, on_host = (sum(store.most for store in stores) for stores in (keeping.device, keeping.host))
    return SnapshotsPart(device=1 + on_device, host=brought + on_host)


def trains_of(context: RunContext, adapter: BuiltAdapter, entry: Adapter, head: ScalarHead | None) -> TrainsPart:
    """The adapter with its entry's facts, and the head."""
    trained = adapter.trained_parameters(context.facts, context.model.parameters) + head_size(head, context.facts)
    return TrainsPart(
        adapter,
        trained,
        can_disable=entry.can_disable and "begins_apart" not in adapter.capabilities,
        base_frozen=entry.base_frozen,
        accepts_quantised=entry.accepts_quantised,
        head=head,
        generator=context.generator("adapter"),
        head_generator=context.generator("head"),
    )


@paused_collector()  # whether a device is there may only show once its framework is imported
def hardware_of(context: RunContext, backend: Backend) -> HardwareFacts:
    """The recipe's device, or the best one here, or the context's other machine.

    Raises:
        PlanError: it cannot be used here, or nothing here can run the backend.
    """
    facts = _hardware(context, backend)
    if not context.memory:
        return facts
    first = replace(facts.devices[0], memory=context.memory, available=None)
    return replace(facts, devices=(first, *facts.devices[1:]))


def _hardware(context: RunContext, backend: Backend) -> HardwareFacts:
    pick = context.recipe.hardware
    if context.hardware is not None:
        context.decide("hardware", context.hardware.name, f"a machine with {context.hardware.label}, made up")
        return context.hardware
    if pick != AUTO:
        named = context.builder.section("hardware", pick, "hardware")
        built: BuiltHardware = named.part
        speaks = getattr(named.registered.entry, "framework", backend.framework)
        if speaks != backend.framework:
            raise PlanError(
                f"hardware: {named.registered.full_name} is for {speaks}, but the backend is {backend.framework}",
                action="set hardware: auto, or pick another backend",
            )
        missing = built.missing()
        if missing:
            raise PlanError(
                f"hardware: {named.registered.full_name} cannot be used here: {missing}", action="set hardware: auto"
            )
        return _alone(context, built.facts())
    passed: list[str] = []
    unused: list[str] = []
    for registered in by_rank(context.catalog, backend.framework):
        built = context.build("hardware", registered.full_name, setting="hardware")
        missing = built.missing()
        if missing:
            passed.append(f"{registered.entry.name}: {missing}")
            unused += _unused(registered, missing)
            continue
        facts = built.facts()
        reason = facts.label + (f"; {'; '.join(passed)}" if passed else "")
        context.decide("hardware", registered.full_name, reason)
        context.log.pick("hardware", registered.full_name)
        for note in unused:
            context.note(note)
        return _alone(context, facts)
    tried = "; ".join(passed) or "no plugin brings any"
    raise PlanError(
        f"hardware: nothing here can run the {backend.framework} backend ({tried})", action="run: ft plugins list"
    )


def _unused(registered: Registered, missing: str) -> list[str]:
    """A note on an unusable device of the machine."""
    entry = registered.entry
    assert isinstance(entry, Hardware)
    device = entry.in_machine() if entry.in_machine is not None else ""
    return [f"hardware: {device} is in this machine and is not used: {missing}"] if device else []


def _alone(context: RunContext, facts: HardwareFacts) -> HardwareFacts:
    """The hardware's facts; a note names other, unused devices of the kind."""
    idle = sorted((*facts.devices[1:], *facts.others), key=lambda device: device.index)
    if idle:
        names = ", ".join(f"{device.name} ({device.label})" for device in idle)
        context.note(f"hardware: {facts.device} ({facts.label}) computes; also here, and not used: {names}")
    return facts


def _check_frameworks(context: RunContext, used: Sequence[Registered], picked: Registered, backend: Backend) -> None:
    for registered in used:
        kind, entry = registered.entry.kind, registered.entry
        assert isinstance(entry, (Adapter, Optimizer, Loader, Quantizer))
        if backend.framework not in entry.frameworks:
            raise PlanError(
                f"{SETTINGS.get(kind, kind)}: {registered.full_name} works with {', '.join(sorted(entry.frameworks))}, "
                f"but backend {picked.full_name} is {backend.framework}",
                action=instead(kind, entry.name, [r.entry for r in context.catalog.speaking(kind, backend.framework)]),
            )


def _lengths(context: RunContext, train: DataReport, reports: Sequence[DataReport]) -> DataPart:
    """The lengths of the data: the average of training rows, and the longest of all, since held-out rows are computed
    too."""
    longest = max((train, *reports), key=lambda report: report.longest)
    return DataPart(
        longest=longest.longest or context.train.max_length,
        longest_id=longest.longest_id,
        mean_length=train.tokens / max(1, train.used),
        length_deviation=train.length_deviation,
        lengths=train.lengths,
        beginning=train.beginning,
        segmented=train.segmented,
        of_a_row=max(1.0, train.used / train.examples) if train.examples else 1.0,
        trained_share=min(1.0, train.trained_tokens / train.tokens) if train.trained_tokens else 1.0,
        bounded_by=longest.bounded_by,
        unbounded=longest.unbounded,
    )


def _check_length(context: RunContext, max_positions: int) -> None:
    if context.train.max_length > max_positions > 0:
        raise RecipeError(
            "train.max_length",
            f"{context.train.max_length} is more than the {max_positions} positions of {context.recipe.model.name}",
            action=f"set it to at most {max_positions}",
        )


def _plan(context: RunContext, decided: BackendPlan, total_steps: int | None, versions: Mapping[str, str]) -> Plan:
    plan = Plan(
        recipe=context.recipe.as_dict(),
        picks=dict(context.log.picks),
        options=dict(context.options),
        train=decided.train,
        decisions=tuple(context.decisions.values()),
        memory=decided.memory,
        total_steps=total_steps,
        notes=tuple(context.notes),
    )
    return replace(plan, hash=_hash(plan, versions))


def _hash(plan: Plan, versions: Mapping[str, str]) -> str:
    """SHA-256 over everything that affects the numbers: not over reasons, places of output or costs."""
    content = as_json(plan)
    for volatile in ("memory", "notes", "hash", "decisions"):
        content.pop(volatile)
    settings = frozenset(incidental_settings(Recipe))
    content["recipe"] = without(content["recipe"], settings)
    content["picks"] = {k: v for k, v in content["picks"].items() if not k.startswith("tracker.")}
    content["decided"] = {d.setting: d.value for d in plan.decisions if not is_among(d.setting, settings)}
    content["versions"] = dict(sorted(versions.items()))
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data, for plan.json."""
    return json.loads(json.dumps(asdict(plan), default=str))  # type: ignore[no-any-return]


def _by_split(reports: Sequence[DataReport]) -> tuple[DataReport, ...]:
    """One report per split: several evaluators read the same rows."""
    seen: dict[str, DataReport] = {}
    for report in reports:
        seen.setdefault(report.split, report)
    return tuple(seen.values())
