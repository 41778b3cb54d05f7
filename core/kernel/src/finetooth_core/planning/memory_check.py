"""Whether a run fits into memory, and what would fit if it does not.

A plan decides by total memory, so that it is reproducible; free memory is checked when the run begins. Every figure is
the backend's own estimate of a plan with one thing changed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks.errors import FinetoothError, PlanError
from finetooth_hooks.plan import MemoryEstimate
from finetooth_hooks.protocols import HardwareFacts, PlanRequest
from finetooth_toolbox.text.measures import size

from finetooth_core.planning.memory_ladder import Rung, backend_pick, ladder
from finetooth_core.planning.plan import Job

WORTHWHILE = 0.95
"""A change that is not enough is suggested together with others if it reduces the peak to this share."""


OF_ROWS = frozenset({"activations", "logits", "update"})
"""Parts that grow with the rows of a step, whose length only the caller knows."""

OF_TRAINING = OF_ROWS | {"gradients", "earlier_gradients", "optimizer", "snapshots"}
"""Parts that exist only in training."""


@dataclass(frozen=True)
class Pool:
    """A separate memory.

    Attributes:
        where: its place.
        needed: bytes by part.
        total: bytes; 0: unknown.
        available: bytes for this process; None: unknown.
    """

    where: str
    needed: Mapping[str, int]
    total: int
    available: int | None

    @property
    def taken(self) -> int:
        """Bytes that are needed."""
        return sum(self.needed.values())

    @property
    def shortage(self) -> str:
        """What it lacks; empty if nothing."""
        largest = sorted(self.needed.items(), key=lambda part: -part[1])[:3]
        takes = f"would take {size(self.taken)} at the peak ({', '.join(f'{n} {size(s)}' for n, s in largest if s)})"
        if self.total and self.taken > self.total:
            return f"{takes}, and {self.where} has {size(self.total)}"
        if self.available is not None and self.taken > self.available:
            of = f" of {size(self.total)}" if self.total else ""
            return f"{takes}, and {self.where} has {size(self.available)}{of} free now"
        return ""


def pools(memory: MemoryEstimate, hardware: HardwareFacts) -> tuple[Pool, ...]:
    """An estimate's memory of the first device, of the host, and of the disk of temporary files."""
    first = hardware.devices[0]
    device = Pool(first.label, memory.parts, first.memory, first.available)
    host = Pool("the host", memory.host, hardware.host_memory, hardware.host_available)
    in_memory = (device, host) if memory.host else (device,)
    if not memory.disk:
        return in_memory
    folder = tempfile.gettempdir()
    return (
        *in_memory,
        Pool(f"the disk of {folder} (TMPDIR names another)", memory.disk, 0, shutil.disk_usage(folder).free),
    )


def shortages(memory: MemoryEstimate, hardware: HardwareFacts) -> list[str]:
    """What each memory lacks; empty if the run fits."""
    return [pool.shortage for pool in pools(memory, hardware) if pool.shortage]


def check_memory(job: Job, without: Collection[str] = ()) -> None:
    """Checks that the plan's memory fits into what the device and the host have free.

    Args:
        without: parts of the estimate that do not count.

    Raises:
        PlanError: a plan does not fit into memory; it says what would.
    """
    hardware = job.request.place.hardware
    memory = _reduced(job.plan.memory, without)
    short = shortages(memory, hardware)
    if not short:
        return
    would_fit = shortages(memory, hardware.lasting) == []
    wait = "end other programs that take memory; " if would_fit else ""
    said = len(job.context.notes)
    advice = "; ".join((_advice(job, without), *job.context.notes[said:]))
    raise PlanError(
        f"memory: {'the model' if without else 'the run'} {'; it '.join(short)}{_passed(job)}",
        action=f"{wait}{advice}; or run it all the same with --accept-memory (train.accept_memory=true)",
    )


def _passed(job: Job) -> str:
    """The tried steps before the last one."""
    return f" ({', '.join(job.passed)} would take more or cannot work)" if job.passed else ""


def _reduced(memory: MemoryEstimate, without: Collection[str]) -> MemoryEstimate:
    """The estimate without some of its parts."""
    device, host, disk = (
        {part: takes for part, takes in pool.items() if part not in without}
        for pool in (memory.parts, memory.host, memory.disk)
    )
    return replace(memory, parts=device, host=host, disk=disk)


# --- what would fit ---------------------------------------------------------------------------------------------------


def _advice(job: Job, without: Collection[str]) -> str:
    """What would fit: each change that is enough by itself; else all that help, together."""
    trial = _Trial(job, without)
    groups = ladder(job)
    alone = [fit for fit in (trial.mildest(job.asked, rungs) for rungs in groups) if fit is not None]
    if alone:
        return "what would fit: " + "; ".join(f"{rung.setting} ({size(taken)})" for rung, taken in alone)
    request, chosen, takes = job.asked, [], _reduced(job.plan.memory, without).total
    for rungs in groups:
        enough = trial.mildest(request, rungs)
        change = enough or trial.strongest(request, rungs, takes)
        if change is None:
            continue
        rung, takes = change
        request, trial.options = rung.change(request), {**trial.options, **rung.options}
        chosen.append(rung.setting)
        if enough is not None:
            return f"what would fit: {' with '.join(chosen)} ({size(takes)})"
    with_all = f" (with {', '.join(chosen)} it would still take {size(takes)})" if chosen else ""
    return f"no installed plugin makes it fit{with_all}: take a smaller model, or a device with more memory"


class _Trial:
    """The memory of a run with a change."""

    def __init__(self, job: Job, without: Collection[str]) -> None:
        self._job, self._hardware, self._without = job, job.request.place.hardware, without
        self.options: Mapping[str, Any] = {}  # of the backend, changed so far

    def memory(self, request: PlanRequest, rung: Rung) -> MemoryEstimate | None:
        """None: the combination cannot work."""
        context, options = self._job.context, {**self.options, **rung.options}
        try:
            pick = {**backend_pick(context)[1], **options}
            backend = context.build("backend", pick, setting="backend") if options else self._job.backend
            return _reduced(backend.plan(rung.change(request)).memory, self._without)
        except FinetoothError:
            return None

    def mildest(self, request: PlanRequest, rungs: Sequence[Rung]) -> tuple[Rung, int] | None:
        """The first sufficient alternative, with the run's device memory."""
        for rung in rungs:
            memory = self.memory(request, rung)
            if memory is not None and not shortages(memory, self._hardware):
                return rung, memory.total
        return None

    def strongest(self, request: PlanRequest, rungs: Sequence[Rung], takes: int) -> tuple[Rung, int] | None:
        """The alternative with the least device memory, if clearly less than `takes`; before it those for which the
        other memories have room."""
        able = [(memory, rung) for rung in rungs if (memory := self.memory(request, rung)) is not None]
        able.sort(key=lambda of: (shortages(replace(of[0], parts={}), self._hardware) != [], of[0].total))
        return (able[0][1], able[0][0].total) if able and able[0][0].total < WORTHWHILE * takes else None
