"""Running out of memory, as an error that says what to change.

`guarded` is put around whatever of the engine takes memory, `attempted` around what a running batch of it does,
`built` around building it. The advice follows a fixed
order, cheapest first: a smaller micro-batch (never changes the result), recomputation, fewer trained parameters,
shorter rows, another device. What no micro-batch changes, such as weights and what the optimizer keeps, is told apart:
where that fills the memory, smaller portions are not advised.
"""

from __future__ import annotations

import errno
import gc
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from finetooth_hooks import Datum, EngineError, Plan
from finetooth_hooks.protocols import EngineRequest
from finetooth_toolbox.text.measures import size

from finetooth_torch.device.accelerator import current, explained, lenient
from finetooth_torch.device.usage import usage

P = ParamSpec("P")
R = TypeVar("R")

_SAID = re.compile(
    r"can't allocate memory|out of memory|bad.?alloc|cannot allocate memory|memory object", re.IGNORECASE
)
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]i?B)")
PORTIONS = frozenset({"activations", "logits"})
"""Parts of an estimate that grow with the micro-batch."""

OF_STEPS = frozenset({"forward", "backward", "forward_backward", "logprobs", "generate", "step"})
"""Calls of a step. The others hold all that trains, whatever the portions are."""

FULL = 0.95
"""Share of the memory which, taken by what no portion changes, leaves no room for any."""

_UNITS = {"bytes": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Situation:
    """What was going on when memory ran out.

    Attributes:
        call: the primitive.
        step: optimizer steps done.
        plan: of the run.
        total: bytes of the device.
        used: bytes at the moment.
        peak: bytes at the peak.
        trained: parameters that train.
        parameters: all parameters.
        longest: positions of the longest row of the call; 0 if it has none.
        longest_id: that row.
        host: the memory is that of the host.
    """

    call: str
    step: int
    plan: Plan
    total: int
    used: int
    peak: int
    trained: int
    parameters: int
    longest: int = 0
    longest_id: str = ""
    host: bool = True


def is_exhaustion(error: BaseException) -> bool:
    """Whether the error says that the host or the device has no more memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_SAID.search(str(error)))


def requested_bytes(error: BaseException) -> int:
    """Bytes that the allocation asked for, as far as the error says; else 0."""
    match = _ASKED.search(str(error))
    return int(float(match[1]) * _UNITS[match[2] if match[2] == "bytes" else match[2][0]]) if match else 0


def exhausted(error: BaseException, now: Situation) -> EngineError:
    """The error in one line: which call, what was planned, what there is, and what to change in which order."""
    requested = requested_bytes(error)
    parts = sorted(now.plan.memory.parts.items(), key=lambda part: -part[1])
    planned = ", ".join(f"{name} {size(takes)}" for name, takes in parts[:2])
    rows = ""
    if now.longest:
        rows = f", longest row {now.longest} tokens" + (f" ({now.longest_id})" if now.longest_id else "")
    when = f"at step {now.step + 1}" if now.call in OF_STEPS else f"after step {now.step}" if now.step else ""
    return EngineError(
        f"{now.call} ran out of memory"
        + (f" {when}" if when else "")
        + (f", asking for {size(requested)} more" if requested else "")
        + f": {'the process' if now.host else 'the device'} held {size(now.used)} (peak {size(now.peak)}) of "
        f"{size(now.total)}, planned were {size(now.plan.memory.total)}" + (f" ({planned})" if planned else "") + rows,
        action="in this order: " + "; ".join(ladder(now)),
    )


def ladder(now: Situation) -> list[str]:
    """What to change, what costs least first, with the figures of this run."""
    train = now.plan.train
    budget, rungs = train.micro_batch_tokens or 0, []
    least = max(now.longest, 1)
    in_portions = now.call in OF_STEPS - {"step"} and not is_filled(now)
    if now.call == "generate":
        rungs.append("generate fewer prompts at once, or lower max_tokens")
    if in_portions and budget > least:
        rungs.append(f"lower train.micro_batch_tokens from {budget} to {max(least, budget // 2)}")
    if in_portions and now.call not in ("generate", "logprobs") and not train.gradient_checkpointing:
        rungs.append("set train.gradient_checkpointing=true")
    if now.trained > now.parameters // 2:
        rungs.append(f"train fewer than the {now.trained / 1e6:,.0f} M parameters, with a low-rank adapter")
    elif now.call == "step":
        rungs.append(f"train fewer than the {now.trained / 1e6:,.1f} M parameters, with a lower rank or fewer targets")
    if not in_portions and now.call != "generate":
        rungs += _smaller(now)
    longest = now.longest or train.max_length
    if in_portions and longest > 64:
        rungs.append(
            f"lower train.max_length from {train.max_length} to {max(32, min(longest, train.max_length) // 2)}"
        )
    return [*rungs, "take a device with more memory" if not now.host else "give the process more memory"]


def is_filled(now: Situation) -> bool:
    """What no portion changes leaves no room."""
    fixed = sum(takes for name, takes in now.plan.memory.parts.items() if name not in PORTIONS)
    return now.total > 0 and fixed > FULL * now.total


def _smaller(now: Situation) -> list[str]:
    """What makes the part smaller that takes most of what no portion changes."""
    parts = now.plan.memory.parts
    fixed = {name: takes for name, takes in parts.items() if name not in PORTIONS}
    largest = max(fixed, key=lambda name: fixed[name], default="")
    remedies = {
        "optimizer": ["choose an optimizer that keeps less"],
        "weights": ["store the base in fewer bits (quantization), or choose a smaller model"],
        "snapshots": ["keep fewer snapshots (checkpoint.stores), or none (checkpoint.every=0)"],
    }
    return remedies.get(largest, [])


def guarded(call: str) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R]]:
    """Put around a method of the engine: what runs out of memory becomes an EngineError. The engine's device is torch's
    current one meanwhile.

    The engine's own guarantees hold: gradients of a failed call are dropped, the weights are those of the last whole
    step. What the failed call held is given back, so that the state can be saved.
    """

    def around(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
        @wraps(method)
        def called(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return attempted(self, call, args[0] if args else (), lambda: method(self, *args, **kwargs))

        return called

    return around


def attempted(engine: Any, call: str, given: Any, work: Callable[[], R]) -> R:
    """What `work` returns, as `guarded` does it: for functions that take an engine's memory and are not its methods.

    Args:
        given: data or prompts of the call.
    """
    with current(engine._parts.device), lenient() if call == "generate" else nullcontext():
        return _attempt(work, lambda: situation(engine, call, given))


def built(build: Callable[[], R], request: EngineRequest, device: torch.device) -> R:
    """What `build` returns, with `device` as torch's current one; memory that runs out is an EngineError."""
    with current(device):
        return _attempt(build, lambda: _situation_of_building(request, device))


def _attempt(work: Callable[[], R], now: Callable[[], Situation]) -> R:
    try:
        return work()
    except Exception as error:
        if not is_exhaustion(error):
            if (named := explained(error)) is not None:
                raise named from error
            raise
        refusal = exhausted(error, now())
        # the error itself is not kept: its traceback holds the graph of the failed call
        cause = RuntimeError(str(error).splitlines()[0] if str(error) else type(error).__name__)
    give_back()
    raise refusal from cause


def has_room(work: Callable[[], None], device: torch.device) -> bool:
    """Do it; False if an accelerator had no memory for it, so that the host may be tried. On a host that raises."""
    try:
        work()
        return True
    except Exception as error:
        if device.type == "cpu" or not is_exhaustion(error):
            raise
    give_back()
    return False


def give_back() -> None:
    """Let go of what a failed call held."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _situation_of_building(request: EngineRequest, device: torch.device) -> Situation:
    taken = usage(device)
    return Situation(
        call="building the engine",
        step=0,
        plan=request.plan,
        total=_total(request, device),
        used=taken.memory,
        peak=taken.peak_memory,
        trained=request.trains.parameters,
        parameters=request.base.model.parameters,
        host=device.type == "cpu",
    )


def situation(engine: Any, call: str, given: Any) -> Situation:
    """Read off the engine.

    Args:
        given: the first argument of the call: data, prompts or something else.
    """
    request, device = engine._request, engine._parts.device
    taken = usage(device)
    rows = [datum for datum in given if isinstance(datum, Datum)] if isinstance(given, Sequence) else []
    longest = max(rows, key=len, default=None)
    info = engine.info
    return Situation(
        call=call,
        step=engine.weights_version,
        plan=request.plan,
        total=_total(request, device),
        used=taken.memory,
        peak=taken.peak_memory,
        trained=info.trained,
        parameters=info.parameters,
        longest=len(longest) if longest is not None else 0,
        longest_id=(longest.id or "") if longest is not None else "",
        host=device.type == "cpu",
    )


def _total(request: EngineRequest, device: torch.device) -> int:
    memory = request.place.hardware.memory
    return _limit(memory) if device.type == "cpu" else memory


def _limit(memory: int) -> int:
    """Bytes this process may take: the machine's, or the limit on its address space if that is lower."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError, ValueError):
        return memory
    return memory if soft == resource.RLIM_INFINITY else min(memory, soft)
