"""What of a model can be trained in which memory: every step of the cascade with its memory, its time and its quality.

Only the model's config is read. Memory and operations are the backend's own, those of a run's plan; the time is the
operations by a speed that is stated; what is said of quality is published, with the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from finetooth_hooks.entries import Adapter, Backend, Optimizer
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.plan import MemoryEstimate
from finetooth_hooks.protocols import BackendPlan, BasePart, DataPart, HardwareFacts, PlacePart, PlanRequest

from finetooth_core.cascade import Step, steps
from finetooth_core.context import RunContext
from finetooth_core.driven import single
from finetooth_core.memory_check import shortages
from finetooth_core.part_builder import Built
from finetooth_core.plan import hardware_of, trains_of, updates_of
from finetooth_core.quantised import check_quantised

UTILISATION = 0.4
"""Share of what a device does at most that training reaches; 0.3 to 0.5 is usual (PaLM, Chowdhery et al., 2022,
arXiv:2204.02311, table 3, compares such figures)."""

ASSUMED_FLOPS = 50e12
"""FLOP/s that an accelerator of which only the memory is known is taken to sustain: a GPU of the middle class."""

QUALITY: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "whole": ("the most that the data can give; forgets most of what it knew", "Biderman et al., 2024, 2405.09673"),
        "adapter": (
            "as full on small and medium data sets where it adapts all linear modules; behind on much new knowledge "
            "(code, mathematics)",
            "Biderman et al., 2024, 2405.09673; Schulman et al., 2025, LoRA Without Regret",
        ),
        "8 bits": ("the base predicts as in 16 bits up to 175B", "Dettmers et al., 2022, 2208.07339"),
        "4 bits": (
            "on a par with 16 bits at 7B to 65B where levels follow a normal distribution; even ones lose more",
            "Dettmers et al., 2023, 2305.14314",
        ),
        "recomputed": ("the same numbers, about a third more time", "Chen et al., 2016, 1604.06174"),
        "elsewhere": (
            "the same numbers; how much more time depends on how fast they come back",
            "Ren et al., 2021, 2101.06840; Rajbhandari et al., 2021, 2104.07857",
        ),
    }
)
"""What published comparisons say by kind of step, and where; numbers are of arXiv."""


@dataclass(frozen=True)
class Way:
    """One way to train the model.

    Attributes:
        step: of the cascade.
        memory: at the peak, in bytes; None where the combination cannot work.
        lacks: what keeps it from this machine; empty: it fits.
        flops: of one pass over the rows; None where it is not known.
        seconds: of that pass at `Advice.speed`.
    """

    step: Step
    memory: MemoryEstimate | None
    lacks: str = ""
    flops: float | None = None
    seconds: float | None = None

    @property
    def fits(self) -> bool:
        """Whether it can be taken here."""
        return self.memory is not None and not self.lacks


@dataclass(frozen=True)
class Advice:
    """What of a model fits a machine.

    Attributes:
        parameters: of the model.
        hardware: the machine.
        rows, length: how many rows of how many tokens each.
        speed: FLOP/s that the times rest on.
        speed_from: what that rests on, as the end of a sentence.
        ways: in the order of the cascade.
    """

    parameters: int
    hardware: HardwareFacts
    rows: int
    length: int
    speed: float
    speed_from: str
    ways: tuple[Way, ...]

    @property
    def taken(self) -> Way | None:
        """What `adapter: auto` and `quantization: auto` would take: the first that fits."""
        return next((way for way in self.ways if way.fits), None)


def advise(context: RunContext, *, rows: int, length: int | None = None, speed: float | None = None) -> Advice:
    """Plan every step of the cascade.

    Args:
        context: of a recipe that leaves adapter and quantization open, its model sketched.
        length: tokens of a row; None: 512, or what the model was made for if that is less.
        speed: FLOP/s that training reaches; None: what the device does at most times `UTILISATION`, or
            `ASSUMED_FLOPS` where only its memory is known.

    Raises:
        FinetoothError: nobody loads the model, or its config cannot be read.
    """
    most = context.facts.max_positions or 512
    length = min(512, most) if length is None else length
    if length > most:
        raise RecipeError("--length", f"{length} is more than the {most} positions of the model", action="take less")
    backend, entry = single(context, "backend", context.recipe.backend, Backend)
    hardware = hardware_of(context, entry)
    ways, peak = [], 0.0
    for step in steps(context):
        try:
            asked = _asked(context, step, hardware, length)
            pick = step.changes.get("backend")
            chosen = backend if pick is None else single(context, "backend", pick, Backend)[0]
            decided = chosen.part.plan(asked)
        except PlanError as error:
            ways.append(Way(step, None, error.problem))
            continue
        if not peak and speed is None and context.hardware is None:
            peak = _peak(decided)
        lacks = "; it ".join(shortages(decided.memory, hardware))
        ways.append(Way(step, decided.memory, lacks, _flops(decided, asked, rows, length)))
    if speed is not None:
        why = "as it was stated"
    elif peak:
        speed, why = UTILISATION * peak, f"{UTILISATION:.0%} of the {peak / 1e12:.3g} TFLOP/s that the device does"
    else:
        speed, why = ASSUMED_FLOPS, "assumed: state what your device sustains with --tflops"
    timed = (way if way.flops is None else replace(way, seconds=way.flops / speed) for way in ways)
    return Advice(context.model.parameters, hardware, rows, length, speed, why, tuple(timed))


def _asked(context: RunContext, step: Step, hardware: HardwareFacts, length: int) -> PlanRequest:
    """What the backend is asked for a step.

    Raises:
        PlanError: the combination cannot work.
    """
    recipe, builder = context.recipe, context.builder
    adapter = builder.build("adapter", step.changes.get("adapter", recipe.adapter), setting="adapter")
    pick = step.changes.get("quantization")
    quantizer: Built | None = None if pick is None else builder.build("quantizer", pick, setting="quantization")
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
        PlacePart(hardware),
        DataPart(length),
    )


def _flops(decided: BackendPlan, asked: PlanRequest, rows: int, length: int) -> float | None:
    """Operations of one pass over the rows."""
    if isinstance(decided.cost, str):
        return None
    batch = asked.train.batch_size
    return decided.cost.flops([[length] * batch], 1.0) * rows / batch


def _peak(decided: BackendPlan) -> float:
    return 0.0 if isinstance(decided.cost, str) else decided.cost.peak_flops()
