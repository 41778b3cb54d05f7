"""Errors of one rank, which end a call at all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from finetooth_hooks import EngineError, NotFinite
from finetooth_hooks.compute.collectives import Collective
from finetooth_hooks.errors import FinetoothError, Interrupted

R = TypeVar("R")
_KINDS = ("failed", "interrupted", "not finite")


@contextmanager
def together(collective: Collective, *, joint: bool = False) -> Iterator[None]:
    """What the body raises at one rank ends it at every rank, once all have come through it: a rank that continued
    alone would wait for the others for ever.

    Args:
        joint: ranks compute together in the body, so that one that fails there cannot meet the others behind it.

    Raises:
        NotFinite: it was that at some rank; names the rows of all ranks where it was.
        Interrupted: some rank was asked to stop.
        EngineError: another rank failed otherwise.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        if joint and not isinstance(error, (NotFinite, Interrupted)):
            raise  # in the middle of a pass, where the others wait for this rank's parts
        own = error
    _raise(own, collective.gather(_as_json(own)))


def of_ranks(collective: Collective, call: Callable[[], R]) -> list[R]:
    """What a call gives at every rank, in the order of ranks, by one exchange. Raises as `together`."""
    own, value = None, None
    try:
        value = call()
    except Exception as error:
        own = error
    parts = collective.gather((_as_json(own), value))
    _raise(own, [error for error, _ in parts])
    return [value for _, value in parts]


def _raise(own: Exception | None, errors: Sequence[list[Any] | None]) -> None:
    """Raise what the errors of all ranks, this one's among them, come to, if there is any."""
    if own is not None and not isinstance(own, NotFinite):
        raise own
    failed = [(rank, failure) for rank, failure in enumerate(errors) if failure is not None]
    if failed:
        raise _agreed(failed) from own


def _as_json(error: Exception | None) -> list[Any] | None:
    """An exception for other ranks: its kind, problem and action, and its rows; JSON-able."""
    if error is None:
        return None
    if isinstance(error, NotFinite):
        return ["not finite", error.problem, error.action, list(error.rows)]
    if not isinstance(error, FinetoothError):
        return ["failed", f"{type(error).__name__}: {error}", "", []]
    return ["interrupted" if isinstance(error, Interrupted) else "failed", error.problem, error.action, []]


def _agreed(failed: Sequence[tuple[int, list[Any]]]) -> EngineError:
    """The error that all ranks raise for the errors of some: a fatal one comes first."""
    rank, (kind, problem, action, _) = min(failed, key=lambda failure: _KINDS.index(failure[1][0]))
    if kind == "failed":
        return EngineError(f"rank {rank} failed: {problem}", action=action)
    if kind == "interrupted":
        return Interrupted(problem, action=action)
    return NotFinite(problem, action=action, rows=tuple(row for _, failure in failed for row in failure[3]))
