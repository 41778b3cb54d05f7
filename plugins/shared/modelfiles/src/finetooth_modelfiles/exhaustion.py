"""Explains an out-of-memory error in one line with the settings to change.

The advice follows a fixed order, cheapest first: a smaller micro-batch (never changes the result), recomputation, fewer
trained parameters, shorter rows, another device. What no micro-batch changes, such as weights and what the optimizer
keeps, is told apart: where that fills the memory, smaller portions are not advised.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import Datum, EngineError, Plan
from finetooth_toolbox.text.measures import size

_SAID = re.compile(
    r"can't allocate memory|out of memory|bad.?alloc|cannot allocate memory|memory object|unable to allocate|"
    r"attempting to allocate|insufficient memory|resource limit|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""Messages of torch, MLX and Metal; the last two mean a too large buffer, and a command without memory."""
_ASKED = re.compile(r"(?:[Tt]ried|Unable|Attempting) to allocate ([\d.]+) ?(bytes|[KMGT]i?B)")
PORTIONS = frozenset({"activations", "logits"})
"""Parts of an estimate that grow with the micro-batch."""

OF_STEPS = frozenset({"forward", "backward", "forward_backward", "logprobs", "generate", "step"})
"""Calls of a step. Other calls need memory for all trained parameters, for any size of portions."""

ANSWERS = "max_completion_length"
"""Option of methods that sample answers: their longest."""

FULL = 0.95
"""Share of the memory which, taken by what no portion changes, leaves no room for any."""

_UNITS = {"bytes": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Situation:
    """The situation when memory ran out.

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
    """Whether the error means that the host or the device ran out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_SAID.search(str(error))))


def longest_of(given: Any) -> tuple[int, str]:
    """Positions and id of the longest row of a call; (0, "") if it has none.

    Args:
        given: its first argument: data, prompts or something else.
    """
    rows = [datum for datum in given if isinstance(datum, Datum)] if isinstance(given, Sequence) else []
    longest = max(rows, key=len, default=None)
    return (0, "") if longest is None else (len(longest), longest.id or "")


def requested_bytes(error: BaseException) -> int:
    """Bytes of the failed allocation, if the error has them; else 0."""
    match = _ASKED.search(str(error))
    return int(float(match[1]) * _UNITS[match[2] if match[2] == "bytes" else match[2][0]]) if match else 0


def exhausted(error: BaseException, now: Situation) -> EngineError:
    """The error in one line: the call, the plan, the available memory, and the settings to change in order."""
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
        action="in this order: " + "; ".join([*_others(now, requested), *ladder(now)]),
    )


def _others(now: Situation, requested: int) -> list[str]:
    """What to do where most of a device is in other hands."""
    if now.host or 2 * (max(now.used, now.peak) + requested) > now.total:
        return []
    return ["end other programs that take memory of the device, or pick another device"]


def ladder(now: Situation) -> list[str]:
    """Settings to change, the cheapest first, with the figures of this run."""
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
    setting, limit = _bound(now.plan)
    longest = min(now.longest or limit, limit)
    if in_portions and longest > 64:
        rungs.append(f"lower {setting} from {limit} to {max(32, longest // 2)}")
    return [*rungs, "take a device with more memory" if not now.host else "give the process more memory"]


def _bound(plan: Plan) -> tuple[str, int]:
    """The setting that bounds the rows of a call, and its value: that of answers, if the method samples them."""
    answers = plan.options.get("method", {}).get(ANSWERS)
    return ("train.max_length", plan.train.max_length) if answers is None else (f"method.{ANSWERS}", int(answers))


def is_filled(now: Situation) -> bool:
    """Whether memory that does not depend on portions leaves no space for any."""
    fixed = sum(takes for name, takes in now.plan.memory.parts.items() if name not in PORTIONS)
    return now.total > 0 and fixed > FULL * now.total


def _smaller(now: Situation) -> list[str]:
    """A change that reduces the largest part that does not depend on portions."""
    parts = now.plan.memory.parts
    fixed = {name: takes for name, takes in parts.items() if name not in PORTIONS}
    largest = max(fixed, key=lambda name: fixed[name], default="")
    remedies = {
        "optimizer": ["choose an optimizer that keeps less"],
        "earlier_gradients": ["give all data of a step in one call"],
        "weights": ["store the base in fewer bits (quantization), or choose a smaller model"],
        "snapshots": ["keep fewer snapshots (checkpoint.stores), or none (checkpoint.every=0)"],
    }
    return remedies.get(largest, [])
