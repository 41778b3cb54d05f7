"""Checks every reward: training uses its result, so it must be one score per answer."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from finetooth_hooks.context import Registered
from finetooth_hooks.errors import FinetoothError, PluginError
from finetooth_hooks.protocols import Reward
from finetooth_toolbox.blame import error_line, shown, where

LARGEST = 1e100
"""Largest allowed absolute score, since advantages use squares and sums."""
ACTION = "it must return a list with one number, or None, for each completion"


@dataclass(frozen=True)
class CheckedReward:
    """A reward (`protocols.Reward`) that names its plugin if it does not keep the contract.

    Attributes:
        reward: the builder's result.
        registered: its entry.
    """

    reward: Reward
    registered: Registered

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """See `protocols.Reward`.

        Raises:
            PluginError: `needed_columns` is not a sequence of names.
        """
        names: Any = getattr(self.reward, "needed_columns", ())
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise self._wrong(f"has needed_columns of {shown(names)}", "give a tuple of names")
        return tuple(names)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """
        Raises:
            PluginError: the reward raised an exception that is not a `FinetoothError`, or did not return one finite
                number or None per completion.
        """
        try:
            scores_given: Any = self.reward(prompts, completions, columns)
            if inspect.isawaitable(scores_given):
                scores_given = _awaited(scores_given)
        except FinetoothError:
            raise
        except (Exception, SystemExit) as error:
            raise self._wrong(f"raised {error_line(error)}", "see the traceback with --debug") from error
        count = len(completions)
        if isinstance(scores_given, np.ndarray) and scores_given.ndim == 1:
            scores_given = scores_given.tolist()
        if not isinstance(scores_given, list | tuple):
            raise self._wrong(f"returned {shown(scores_given)} for {_completions(count)}")
        if len(scores_given) != count:
            scores = f"{len(scores_given)} score{'' if len(scores_given) == 1 else 's'}"
            raise self._wrong(f"returned {scores} for {_completions(count)}")
        ids = columns.get("row_id")
        return [self._number(i, score, f" ({ids[i]})" if ids else "") for i, score in enumerate(scores_given)]

    def _number(self, index: int, score: Any, row: str) -> float | None:
        if score is None:
            return None
        if isinstance(score, np.generic):
            score = score.item()
        if not isinstance(score, Real):
            raise self._wrong(f"returned {shown(score)} as the score of completion {index + 1}{row}")
        try:
            value = float(score)
        except OverflowError:
            value = math.inf
        whose = f"as the score of completion {index + 1}{row}"
        if not math.isfinite(value):
            raise self._wrong(f"returned {value} {whose}", "return None for a completion that cannot be scored")
        if abs(value) > LARGEST:
            raise self._wrong(
                f"returned {value:g} {whose}, whose square overflows",
                "return smaller scores, or None for a completion that cannot be scored",
            )
        return value

    def _wrong(self, problem: str, action: str = ACTION) -> PluginError:
        """The refusal, with the line of the exception or of the reward's code."""
        what = f"reward {self.registered.entry.name!r} {problem}"
        place = "" if problem.startswith("raised ") else where(self.reward)
        return PluginError(self.registered.distribution, f"{what}{place}", action=action)


def _awaited(awaitable: Awaitable[Any]) -> Any:
    """The result of a coroutine; runs it in a separate thread, since the caller's thread may have a running loop, as in
    notebooks."""

    async def wait() -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def _completions(count: int) -> str:
    return f"{count} completion{'' if count == 1 else 's'}"
