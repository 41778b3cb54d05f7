"""The reward `reasoning_gym`: the task's own score of an answer, since several answers may be right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import Options, PluginError, install_command
from finetooth_toolbox.text.column_names import column_of
from finetooth_workers.workers import Failure, WorkerError, Workers
from pydantic import Field

from finetooth_reasoninggym.scoring import as_json

COLUMNS = ("task", "completion", "metadata")


class ScoreOptions(Options):
    """Options of the reward `reasoning_gym`."""

    tag: str | None = Field(default=None, min_length=1)
    """The tag that holds the answer, such as `answer`; a text without it scores 0. Left out, the whole text is the
    answer."""
    time_limit: float = Field(default=10.0, gt=0)
    """Seconds for each answer; one that takes longer scores None."""
    workers: int = Field(default=1, ge=1)
    """Number of processes that score."""


@dataclass(frozen=True)
class Scored:
    """`protocols.Reward`."""

    options: ScoreOptions
    workers: Workers
    needed_columns: tuple[str, ...] = COLUMNS

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """From 0 to 1; None for rows of other sources.

        Raises:
            DataError: the columns of the source `reasoning_gym` are missing.
            PluginError: reasoning-gym is not installed, or a task does not score.
        """
        action = "take the rows from the source reasoning_gym, with data.format: task"
        values = [column_of(columns, name, "reasoning_gym", action) for name in COLUMNS]
        scores: list[float | None] = [None] * len(completions)
        requests: dict[int, dict[str, Any]] = {}
        for i, (task, answer, metadata) in enumerate(zip(*values, strict=True)):
            reply = self._answer(completions[i])
            if task is not None and reply is None:
                scores[i] = 0.0
            elif task is not None:
                entry = as_json({"question": prompts[i], "answer": answer, "metadata": metadata})
                requests[i] = {"task": task, "said": reply, "entry": entry}
        try:
            results = self.workers(list(requests.values())) if requests else []
        except WorkerError as error:
            action = f"{install_command('reasoning-gym')} (it needs a C compiler)"
            raise PluginError(
                "finetooth-reasoninggym", f"reasoning-gym cannot be used: {error}", action=action
            ) from None
        for i, result in zip(requests, results, strict=True):
            scores[i] = self._failed(requests[i], result) if isinstance(result, Failure) else result
        return scores

    def _answer(self, completion: str) -> str | None:
        if self.options.tag is None:
            return completion.strip()
        tag = re.escape(self.options.tag)
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", completion, re.S)
        return inside[-1].strip() if inside else None

    def _failed(self, request: Mapping[str, Any], failure: Failure) -> float | None:
        if failure.kind == "time":
            return None
        problem = f"task {request['task']!r} does not score an answer: {failure.text}"
        raise PluginError("finetooth-reasoninggym", problem, action="leave the task out, or report it to reasoning-gym")


def build(options: ScoreOptions) -> Scored:
    """Builder of the reward `reasoning_gym`."""
    return Scored(options, Workers("finetooth_reasoninggym.scoring:serve", {}, options.workers, options.time_limit))
