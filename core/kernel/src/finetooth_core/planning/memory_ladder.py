"""What to change if a run does not fit into memory: single changes of the backend's request or of its options, the
cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks.compute.savings import Saving
from finetooth_hooks.context import Registered
from finetooth_hooks.entries import Adapter, Optimizer
from finetooth_hooks.errors import FinetoothError, PlanError
from finetooth_hooks.protocols import DataPart, PlanRequest
from finetooth_recipes.recipe_picks import AUTO

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
        backend: the same with other options; None: as it is.
    """

    setting: str
    change: Change
    backend: Any = None


def ladder(job: Job) -> list[list[Rung]]:
    """What to change, the cheapest first; each a list of alternatives, the mildest first."""
    kinds = (_micro_batches, _checkpointing, _devices, _adapters, _optimizers, _quantizers, _offloads, _lengths)
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


def _devices(job: Job) -> list[Rung]:
    """Strategies that divide the model among the devices of this machine, where it trains on one of several."""
    context, place, rungs = job.context, job.request.place, []
    count = len(place.hardware.devices)
    for registered in context.catalog.all("strategy") if count > 1 and not (place.sharding or place.collective) else ():
        if "shards" in vars(registered.entry)["capabilities"]:
            with suppress(FinetoothError, ImportError):
                strategy = context.build("strategy", registered.full_name, setting="scale.strategy")
                change = _with(place=replace(place, sharding=strategy.sharding(count)))
                rungs.append(Rung(f"scale.strategy={registered.entry.name} scale.devices={count}", change))
    return rungs


def _adapters(job: Job) -> list[Rung]:
    """Adapters that train less, over a frozen base; those that train most first."""
    trains, base, context = job.request.trains, job.request.base, job.context
    rungs: list[tuple[int, Rung]] = []
    for registered in () if trains.base_frozen else context.catalog.speaking("adapter", context.framework):
        entry = registered.entry
        assert isinstance(entry, Adapter)
        if not entry.base_frozen:
            continue
        with suppress(FinetoothError, ImportError):
            adapter = context.build("adapter", registered.full_name, setting="adapter")
            trained = adapter.trained_parameters(base.facts, base.model.parameters)
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
    device = job.request.place.hardware.device.split(":")[0]
    able = [
        (r, e)
        for r, e in entries
        if isinstance(e, Optimizer) and (not e.devices or device in e.devices) and e.accumulation >= now.accumulation
    ]  # what updates inside backward asks for more changes than one
    smaller = [(r, e) for r, e in able if e.state_bytes < now.state_bytes]
    for registered, entry in sorted(smaller, key=lambda pair: -pair[1].state_bytes):
        part = replace(
            now, name=registered.full_name, state_bytes=entry.state_bytes, accumulation=entry.accumulation,
            checkpointing=entry.checkpointing, update_bytes=entry.update_bytes, tensor_bytes=entry.tensor_bytes,
        )  # fmt: skip
        yield Rung(f"optimizer={name_of(registered, context)}", _with(updates=part))


def _quantizers(job: Job) -> list[Rung]:
    """Quantizers of the base, for adapters that accept one; the most bits first."""
    context, rungs = job.context, []
    stored = job.request.base.stored is not None
    for registered in () if stored else context.catalog.speaking("quantizer", context.framework):
        with suppress(FinetoothError, ImportError):
            quantizer = context.build("quantizer", registered.full_name, setting="quantization")
            rung = Rung(f"quantization={name_of(registered, context)}", _quantised(quantizer))
            rungs.append((float(quantizer.stored.bytes_per_weight), rung))
    return [rung for _, rung in sorted(rungs, key=lambda pair: -pair[0])]


def _quantised(quantizer: Any) -> Change:
    def change(request: PlanRequest) -> PlanRequest:
        if not request.trains.accepts_quantised:
            raise PlanError("quantization: the adapter needs the base as it is", action="pick a low-rank adapter")
        return replace(request, base=replace(request.base, quantizer=quantizer))

    return change


def _offloads(job: Job) -> Iterator[Rung]:
    """Options of the backend that keep less on the device, those that cost least first."""
    for saving, pick in savings(job.context):
        setting = " ".join(f"backend.{name}={value}" for name, value in saving.options.items())
        with suppress(FinetoothError, ImportError):
            yield Rung(setting, _with(), job.context.build("backend", pick, setting="backend"))


def savings(context: RunContext) -> Iterator[tuple[Saving, Mapping[str, Any]]]:
    """The backend's options to offload, with the picks; not those that the recipe sets."""
    pick = context.recipe.backend
    options = {} if isinstance(pick, str) else dict(pick)
    named = pick if isinstance(pick, str) else str(options.pop("name"))
    if named == AUTO:
        registered = context.catalog.default("backend", framework=context.framework)
    else:
        registered = context.catalog.get("backend", named, setting="backend")
    for saving in vars(registered.entry)["savings"]:
        if not options.keys() & saving.options.keys():
            yield saving, {"name": name_of(registered, context), **options, **saving.options}


def _lengths(job: Job) -> Iterator[Rung]:
    """Halves of the longest row."""
    now = min(job.plan.train.max_length, job.asked.data.longest)
    while now > SHORTEST:
        now = max(SHORTEST, now // 2)
        yield Rung(f"train.max_length={now}", _shortened(now))


def _shortened(longest: int) -> Change:
    """Rows of which none is longer."""

    def change(request: PlanRequest) -> PlanRequest:
        data: DataPart = replace(
            request.data,
            longest=min(request.data.longest, longest),
            longest_id="",
            mean_length=min(request.data.mean_length, longest),
            length_deviation=min(request.data.length_deviation, longest / 2),
            lengths=tuple(min(length, longest) for length in request.data.lengths),
            beginning=min(request.data.beginning, longest),
        )
        return replace(request, train=replace(request.train, max_length=longest), data=data)

    return change


def name_of(registered: Registered, context: RunContext) -> str:
    """The bare name, if only one entry of the kind that the backend can use has it."""
    of_kind: Sequence[Registered] = context.catalog.speaking(registered.entry.kind, context.framework)
    alike = [other for other in of_kind if other.entry.name == registered.entry.name]
    return registered.entry.name if len(alike) == 1 else registered.full_name
