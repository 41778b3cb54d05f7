"""Turns running out of memory into an error that says what to change (`finetooth_modelfiles.exhaustion`).

MLX raises what its allocator and Metal's commands report. The engine drops the gradients of the failed call and keeps
the weights of the last whole step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import mlx.core as mx
from finetooth_hooks.protocols import EngineRequest
from finetooth_modelfiles.exhaustion import Situation, exhausted, is_exhaustion, longest_of

P = ParamSpec("P")
R = TypeVar("R")


def guarded(call: str) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R]]:
    """Decorator of the engine's methods that turns running out of memory into an EngineError. Kept prompts stay
    only where `generate` succeeds."""

    def around(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
        @wraps(method)
        def called(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
            given = args[0] if args else ()
            if call != "generate":
                self._generator.kept.forget()
            try:
                return attempted(
                    lambda: method(self, *args, **kwargs), call, self._request, given=given, step=self.weights_version
                )
            except Exception:
                self._generator.kept.forget()
                raise

        return called

    return around


def attempted(work: Callable[[], R], call: str, request: EngineRequest, *, given: Any = (), step: int = 0) -> R:
    """Run `work` and return its result.

    Args:
        given: examples or prompts of the call.
        step: optimizer steps done.

    Raises:
        EngineError: memory ran out.
    """
    try:
        return work()
    except Exception as error:
        if not is_exhaustion(error):
            raise
        longest, longest_id = longest_of(given)
        refusal = exhausted(error, Situation(
            call=call, step=step, plan=request.plan, total=request.place.hardware.memory,
            used=int(mx.get_active_memory()), peak=int(mx.get_peak_memory()), trained=request.trains.parameters,
            parameters=request.base.model.parameters, longest=longest, longest_id=longest_id,
            host=request.place.hardware.device == "cpu",
        ))  # fmt: skip
        # the error itself is not kept: its traceback holds the graph of the failed call
        cause = RuntimeError(str(error).splitlines()[0] if str(error) else type(error).__name__)
    gc.collect()
    mx.clear_cache()
    raise refusal from cause
