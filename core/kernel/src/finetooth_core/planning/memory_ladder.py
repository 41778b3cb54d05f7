"""What to change if a run does not fit into memory: single changes of the backend's request or of its options, the
cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from finetooth_hooks.compute.savings import Saving
from finetooth_hooks.context import Registered
from finetooth_hooks.entries import Adapter, Optimizer
from finetooth_hooks.errors import FinetoothError, PlanError, PluginError
from finetooth_hooks.protocols import DataPart, PlanRequest
from finetooth_recipes.alternatives import SETTINGS, runs_on
from finetooth_recipes.recipe_picks import AUTO
from finetooth_rows.choices.shorter import least_length, shortened

from finetooth_core.planning.context import RunContext
from finetooth_core.planning.heads import head_size
from finetooth_core.planning.plan import Job

SHORTEST = 64
"""Shorter rows than this are not suggested."""


Change = Callable[[PlanRequest], PlanRequest]


@dataclass(frozen=True)
class Rung:
    """One thing to change.

    Attributes:
        setting: with its value, as on the command line.
        change: of the backend's request.
        options: of the backend, to change.
    """

    setting: str
    change: Change
    options: Mapping[str, Any] = field(default_factory=dict)


def ladder(job: Job) -> list[list[Rung]]:
    """What to change, the cheapest first; each a list of alternatives, the mildest first."""
    beside = (_micro_batches, _checkpointing, _attention, _devices)
    kinds = (*beside, _adapters, _optimizers, _quantizers, _offloads, _lengths)
    return [rungs for rungs in (list(kind(job)) for kind in kinds) if rungs]


def _with(**parts: Any) -> Change:
    return lambda request: replace(request, **parts)


def _train(**settings: Any) -> Change:
    return lambda request: replace(request, train=replace(request.train, **settings))


def _checkpointing(job: Job) -> Iterator[Rung]:
    if not job.plan.train.gradient_checkpointing and job.request.updates.checkpointing:
        yield Rung("train.gradient_checkpointing=true", _train(gradient_checkpointing=True))


def _micro_batches(job: Job) -> Iterator[Rung]:
    """Halves of the micro-batch, down to the longest row."""
    now, least = job.plan.train.micro_batch_tokens or 0, max(1, job.asked.data.longest)
    while job.request.updates.accumulation and now > least:
        now = max(least, now // 2)
        yield Rung(f"train.micro_batch_tokens={now}", _train(micro_batch_tokens=now))


def _attention(job: Job) -> Iterator[Rung]:
    """Other attention, in the order of its ranks."""
    entries = job.context.catalog.speaking("attention", job.context.framework)
    for registered in sorted(entries, key=lambda one: -(getattr(one.entry, "rank", None) or 0)):
        yield _of_backend({"attention": name_of(registered, job.context)})


def _devices(job: Job) -> list[Rung]:
    """Strategies that divide the model among the devices of this machine, where it trains on one of several."""
    context, place, rungs = job.context, job.request.place, []
    count = len(place.hardware.devices)
    for registered in context.catalog.all("strategy") if count > 1 and not (place.sharding or place.collective) else ():
        if "shards" in vars(registered.entry)["capabilities"]:
            with passing_over(context):
                strategy = context.build("strategy", registered.full_name, setting="scale.strategy")
                change = _with(place=replace(place, sharding=strategy.sharding(count)))
                rungs.append(Rung(f"scale.strategy={registered.entry.name} scale.devices={count}", change))
    return rungs


def _adapters(job: Job) -> list[Rung]:
    """Adapters that train less, over a frozen base; those that train most first."""
    trains, base, context = job.request.trains, job.request.base, job.context
    rungs: list[tuple[int, Rung]] = []
    if trains.base_frozen:
        return []
    trained_by = lambda built: built.trained_parameters(base.facts, base.model.parameters)  # noqa: E731
    for registered, adapter, trained in usable(context, "adapter", trained_by, lambda entry: entry.base_frozen):
        entry = registered.entry
        assert isinstance(entry, Adapter)
        part = replace(
            trains, adapter=adapter, parameters=trained + head_size(trains.head, base.facts),
            can_disable=entry.can_disable, base_frozen=True, accepts_quantised=entry.accepts_quantised,
        )  # fmt: skip
        if part.parameters < trains.parameters:
            rungs.append((part.parameters, Rung(f"adapter={name_of(registered, context)}", _with(trains=part))))
    return [rung for _, rung in sorted(rungs, key=lambda pair: -pair[0])]


def _optimizers(job: Job) -> Iterator[Rung]:
    """Optimizers with less state per parameter, the most first."""
    context, now = job.context, job.request.updates
    entries = [(r, r.entry) for r in context.catalog.speaking("optimizer", context.framework)]
    able = [(r, e) for r, e in entries if isinstance(e, Optimizer) and runs_on(e, job.request.place.hardware.device)]
    # what updates inside backward asks for more changes than one
    smaller = [(r, e) for r, e in able if e.state_bytes < now.state_bytes and e.accumulation >= now.accumulation]
    for registered, entry in sorted(smaller, key=lambda pair: -pair[1].state_bytes):
        part = replace(
            now, name=registered.full_name, state_bytes=entry.state_bytes, accumulation=entry.accumulation,
            checkpointing=entry.checkpointing, update_bytes=entry.update_bytes, tensor_bytes=entry.tensor_bytes,
        )  # fmt: skip
        yield Rung(f"optimizer={name_of(registered, context)}", _with(updates=part))


def _quantizers(job: Job) -> list[Rung]:
    """Quantizers of the base, for adapters that accept one; the most bits first."""
    stored = job.request.base.stored is not None
    rungs = [
        (size, Rung(f"quantization={name_of(registered, job.context)}", _quantised(quantizer)))
        for registered, quantizer, size in (() if stored else usable(job.context, "quantizer", bytes_per_weight))
    ]
    return [rung for _, rung in sorted(rungs, key=lambda pair: -pair[0])]


def _quantised(quantizer: Any) -> Change:
    def change(request: PlanRequest) -> PlanRequest:
        if not request.trains.accepts_quantised:
            raise PlanError("quantization: the adapter needs the base as it is", action="pick a low-rank adapter")
        return replace(request, base=replace(request.base, quantizer=quantizer))

    return change


def _offloads(job: Job) -> Iterator[Rung]:
    """Options of the backend that keep less on the device, those that cost least first."""
    for saving, _ in savings(job.context):
        yield _of_backend(saving.options)


def _of_backend(options: Mapping[str, Any]) -> Rung:
    return Rung(" ".join(f"backend.{name}={value}" for name, value in options.items()), _with(), options)


def backend_pick(context: RunContext) -> tuple[Registered, dict[str, Any]]:
    """The entry of the backend, and the recipe's pick of it as a mapping."""
    pick = context.recipe.backend
    options = {} if isinstance(pick, str) else dict(pick)
    named = pick if isinstance(pick, str) else str(options.pop("name"))
    if named == AUTO:
        registered = context.catalog.default("backend", framework=context.framework)
    else:
        registered = context.catalog.get("backend", named, setting="backend")
    return registered, {"name": name_of(registered, context), **options}


def savings(context: RunContext) -> Iterator[tuple[Saving, Mapping[str, Any]]]:
    """The backend's options to offload, with the picks; not those that the recipe sets."""
    registered, pick = backend_pick(context)
    for saving in vars(registered.entry)["savings"]:
        if not pick.keys() & saving.options.keys():
            yield saving, {**pick, **saving.options}


def _lengths(job: Job) -> Iterator[Rung]:
    """Halves of the setting that bounds the longest row; rows of other readers stay as they are."""
    data, train = job.asked.data, job.plan.train
    setting, of_rows = data.bounded_by, data.bounded_by == "train.max_length"
    now = min(train.max_length, data.longest) if of_rows else data.longest - data.unbounded
    others = max((report.longest for report in job.every_report if report.bounded_by != setting), default=0)
    least = max(SHORTEST, least_length(data, train.excess_length)) if of_rows else SHORTEST
    while now > least:
        now = max(least, now // 2)
        part, of_train = shortened(data, data.unbounded + now, others), {"max_length": now} if of_rows else {}
        yield Rung(f"{setting}={now}", _shorter(part, of_train))


def _shorter(data: DataPart, of_train: Mapping[str, int]) -> Change:
    return lambda request: _train(**of_train)(replace(request, data=data))


def bytes_per_weight(quantizer: Any) -> float:
    """Of a quantizer."""
    return float(quantizer.stored.bytes_per_weight)


def usable(
    context: RunContext, kind: str, of: Callable[[Any], Any], fits: Callable[[Any], bool] = lambda entry: True
) -> Iterator[tuple[Registered, Any, Any]]:
    """The entries of a kind that fit and can be built without options, each with what is built and what is asked of it.
    A note names a library that is installed and broken."""
    for registered in context.catalog.speaking(kind, context.framework):
        if fits(registered.entry):  # building imports libraries
            with passing_over(context):
                built = context.build(kind, registered.full_name, setting=SETTINGS.get(kind, kind))
                yield registered, built, of(built)


@contextmanager
def passing_over(context: RunContext) -> Iterator[None]:
    """Passes over what cannot be built. A note names a library that is installed and broken."""
    try:
        yield
    except (FinetoothError, ImportError) as error:
        if isinstance(error, PluginError) and not isinstance(error.__cause__, ModuleNotFoundError | None):
            context.note(f"passed over: {error.problem}")


def name_of(registered: Registered, context: RunContext) -> str:
    """The bare name, if only one entry of the kind that the backend can use has it."""
    of_kind: Sequence[Registered] = context.catalog.speaking(registered.entry.kind, context.framework)
    alike = [other for other in of_kind if other.entry.name == registered.entry.name]
    return registered.entry.name if len(alike) == 1 else registered.full_name
