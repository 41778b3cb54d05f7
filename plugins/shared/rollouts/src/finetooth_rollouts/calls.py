"""Calls of an environment: within a time limit, side by side where it allows that, what they raise held."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Generic, Literal, TypeVar

from finetooth_hooks.errors import UserError
from finetooth_toolbox import blame

T = TypeVar("T")

MOST_AT_ONCE = 64
"""Threads of calls that run at a time."""


@dataclass(frozen=True)
class Failure:
    """A call that gave nothing.

    Attributes:
        outcome: it raised something, or did not return in time.
        reason: one line.
    """

    outcome: Literal["error", "timeout"]
    reason: str


@dataclass(frozen=True)
class Returned(Generic[T]):
    """The result of a call."""

    value: T


def call_all(functions: Sequence[Callable[[], T]], limit: float, *, together: bool) -> list[Returned[T] | Failure]:
    """Call them, and say of each what came of it, in their order.

    A call that does not return in time is left to itself, in a thread that does not keep the process.

    Args:
        limit: seconds for each.
        together: they may run at the same time.

    Raises:
        UserError: a call found that what the user gave is wrong, which is nobody's outcome.
    """
    width = MOST_AT_ONCE if together else 1
    outcomes: list[Returned[T] | Failure] = []
    for first in range(0, len(functions), width):
        begun = [_start(function) for function in functions[first : first + width]]
        until = monotonic() + limit
        outcomes += [_outcome(future, until, limit) for future in begun]
    return outcomes


def _start(function: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # a thread has nobody else to tell
            future.set_exception(error)

    threading.Thread(target=run, name="environment", daemon=True).start()
    return future


def _outcome(future: Future[T], until: float, limit: float) -> Returned[T] | Failure:
    try:
        return Returned(future.result(timeout=max(0.0, until - monotonic())))
    except UserError:
        raise
    except TimeoutError:
        if future.done():  # its own, raised inside
            return Failure("error", "TimeoutError: the environment's own time limit")
        return Failure("timeout", f"no answer within {limit:g} s")
    except Exception as error:
        return Failure("error", blame.named(error))
