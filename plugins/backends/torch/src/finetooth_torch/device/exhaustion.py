"""Turns running out of memory into an error that says what to change (`finetooth_modelfiles.exhaustion`).

`guarded` wraps methods of the engine that take memory, `attempted` the work of a running batch, `built` the building of
an engine.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from finetooth_hooks.protocols import EngineRequest
from finetooth_modelfiles import exhaustion
from finetooth_modelfiles.exhaustion import Situation, exhausted, longest_of

from finetooth_torch.device.accelerator import current, explained, lenient
from finetooth_torch.device.usage import usage

P = ParamSpec("P")
R = TypeVar("R")

SAMPLING = ("generate", "hold")
"""Calls that leave what sampling keeps for the next one."""


def is_exhaustion(error: BaseException) -> bool:
    """Whether the error says that the host or the device ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or exhaustion.is_exhaustion(error)


def guarded(call: str) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R]]:
    """Decorator of the engine's methods that turns running out of memory into an EngineError. The engine's device is
    torch's current one meanwhile.

    The engine drops the gradients of a failed call and keeps the weights of the last whole step. The call's memory is
    released, so that the state can be saved.
    """

    def around(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
        @wraps(method)
        def called(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return attempted(self, call, args[0] if args else (), lambda: method(self, *args, **kwargs))

        return called

    return around


def attempted(engine: Any, call: str, given: Any, work: Callable[[], R]) -> R:
    """Run `work` like a `guarded` method: for functions that take an engine's memory and are not its methods.

    Args:
        given: data or prompts of the call.
    """
    if call not in SAMPLING:
        engine._generator.kept.forget()
    with current(engine._parts.device), lenient() if call == "generate" else nullcontext():
        try:
            return _attempt(work, lambda: situation(engine, call, given))
        except Exception:
            engine._generator.kept.forget()
            raise


def built(build: Callable[[], R], request: EngineRequest, device: torch.device) -> R:
    """Run `build` with `device` as torch's current one; running out of memory is an EngineError."""
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
    """Do it; False if an accelerator had no memory for it, so that the caller may try the host. On a host this
    raises."""
    try:
        work()
        return True
    except Exception as error:
        if device.type == "cpu" or not is_exhaustion(error):
            raise
    give_back()
    return False


def give_back() -> None:
    """Free the memory that a failed call held."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


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
    """The state of the engine at the error.

    Args:
        given: the first argument of the call: data, prompts or something else.
    """
    request, device = engine._request, engine._parts.device
    taken = usage(device)
    longest, longest_id = longest_of(given)
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
        longest=longest,
        longest_id=longest_id,
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
