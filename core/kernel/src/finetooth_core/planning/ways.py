"""Ways to train a model: every step of the cascade with its memory and cost.

Only the model's config is read. Memory and operations are the backend's, as in a run's plan.
"""

from __future__ import annotations

from dataclasses import replace

from finetooth_hooks.compute.ways import Way, Ways
from finetooth_hooks.entries import Adapter, Backend, Optimizer
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.protocols import BasePart, DataPart, PlacePart, PlanRequest, Sharding

from finetooth_core.planning.cascade import Step, steps
from finetooth_core.planning.context import RunContext
from finetooth_core.planning.driven import single
from finetooth_core.planning.memory_check import shortages
from finetooth_core.planning.plan import hardware_of, trains_of, updates_of
from finetooth_core.planning.quantised import check_quantised
from finetooth_core.plugins.part_builder import BuiltPart


def ways(
    context: RunContext, *, length: int | None = None, measure: bool = True, sharding: Sharding | None = None
) -> Ways:
    """Plan every step of the cascade.

    Args:
        context: of a recipe that leaves adapter and quantization open, its model sketched.
        length: tokens of a row; None: 512, or what the model was made for if that is less.
        measure: ask what the device does at most, if it is here.
        sharding: what a strategy divides among ranks; the memory is that of one of them.

    Raises:
        FinetoothError: nobody loads the model, or its config cannot be read.
    """
    most = context.facts.max_positions or 512
    length = min(512, most) if length is None else length
    if length > most:
        raise RecipeError("--length", f"{length} is more than the {most} positions of the model", action="take less")
    backend, entry = single(context, "backend", context.recipe.backend, Backend)
    hardware = hardware_of(context, entry)
    place = PlacePart(hardware, sharding=sharding)
    planned, peak = [], 0.0
    for step in steps(context):
        way = Way(step.kind, step.label, step.gives_up, step.changes, None)
        try:
            request = _plan_request(context, step, place, length)
            pick = step.changes.get("backend")
            chosen = backend if pick is None else single(context, "backend", pick, Backend)[0]
            decided = chosen.part.plan(request)
        except PlanError as error:
            planned.append(replace(way, lacks=error.problem))
            continue
        cost = None if isinstance(decided.cost, str) else decided.cost
        if cost is not None and not peak and measure and context.hardware is None:
            peak = cost.peak_flops()
        batch = request.train.batch_size
        flops = None if cost is None else cost.flops([[length] * batch], 1.0) / batch
        lacks = "; it ".join(shortages(decided.memory, hardware))
        planned.append(replace(way, memory=decided.memory, lacks=lacks, flops=flops))
    return Ways(context.model.parameters, hardware, length, peak, tuple(planned))


def _plan_request(context: RunContext, step: Step, place: PlacePart, length: int) -> PlanRequest:
    """What the backend is asked for a step.

    Raises:
        PlanError: the combination cannot work.
    """
    recipe, builder = context.recipe, context.builder
    speaks = context.framework
    pick = step.changes.get("adapter", recipe.adapter)
    adapter = builder.build("adapter", pick, setting="adapter", framework=speaks)
    quantizer: BuiltPart | None = None
    if (pick := step.changes.get("quantization")) is not None:
        quantizer = builder.build("quantizer", pick, setting="quantization", framework=speaks)
    optimizer, optimizer_entry = single(context, "optimizer", recipe.optimizer, Optimizer)
    entry = adapter.registered.entry
    assert isinstance(entry, Adapter)
    check_quantised(context, adapter, quantizer)
    train = replace(
        context.train,
        max_length=length,
        gradient_checkpointing=step.changes.get("train.gradient_checkpointing", context.train.gradient_checkpointing),
    )
    return PlanRequest(
        train,
        BasePart(context.model, context.facts, context.loader, None if quantizer is None else quantizer.part),
        trains_of(context, adapter.part, entry, None),
        updates_of(context, optimizer, optimizer_entry, False, whole=not entry.base_frozen),
        place,
        DataPart(length),
    )
