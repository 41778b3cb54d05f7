"""The source `reasoning_gym`.

reasoning-gym seeds row i of a dataset with `seed + i`, so datasets with seeds close to each other share rows. Here a
seed is first spread over the whole range by a hash. Even so two rows may ask the same by chance; therefore a question
belongs to exactly one split, which is decided by a hash of its text: no seed can make train and eval share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal

from finetooth_hooks import DataError, Options, PluginError, RecipeError, Row, install_command
from finetooth_hooks.bases import SourceBase
from pydantic import Field, PositiveInt

EVAL_SHARE = 5
"""One question in this many belongs to the eval split."""

PATIENCE = 50
"""How many rows are generated for each one wanted before a task counts as exhausted."""


class ReasoningGymOptions(Options):
    """Options of `reasoning_gym`."""

    dataset: str
    """Name of the task, such as `chain_sum`."""
    count: PositiveInt = 1000
    """Number of rows."""
    seed: int = 0
    """Another seed gives other rows."""
    split: Literal["train", "eval"] = "train"
    """Split of the rows. The two splits never share a question, for any seeds."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings, `{min_terms: 2, max_terms: 4}`."""


def split_of(question: str) -> str:
    """The split a question belongs to."""
    digest = hashlib.sha256(question.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % EVAL_SHARE == 0 else "train"


def base_seed(seed: int) -> int:
    """A seed far from those of neighbouring seeds: 0 to 2^31 - 1, a hash of `seed`."""
    return int.from_bytes(hashlib.sha256(f"reasoning_gym:{seed}".encode()).digest()[:4], "big") >> 1


class ReasoningGym(SourceBase):
    """Rows `{"prompt", "completion", "task", "metadata"}`."""

    def __init__(self, options: ReasoningGymOptions) -> None:
        self._options = options

    def rows(self) -> Iterator[Row]:
        """Yields different questions of the split until `count` are there.

        Raises:
            PluginError: reasoning-gym is not installed.
            RecipeError: no such task, or its settings are wrong.
            DataError: the task has fewer different questions.
        """
        options = self._options
        dataset = self._dataset()
        seen: set[str] = set()
        for tried in range(options.count * PATIENCE):
            item = dataset[tried]
            question, answer = str(item["question"]), item["answer"]
            if answer is None or question in seen or split_of(question) != options.split:
                continue
            seen.add(question)
            yield Row(
                f"reasoning_gym:{options.dataset}:{options.split}:{tried}",
                {
                    "prompt": question,
                    "completion": str(answer),
                    "task": options.dataset,
                    "metadata": item.get("metadata", {}),
                },
            )
            if len(seen) == options.count:
                return
        raise DataError(
            f"reasoning_gym:{options.dataset}",
            f"only {len(seen)} different questions of split {options.split} in {options.count * PATIENCE} tries",
            action="lower count, or widen the task with parameters",
        )

    def _dataset(self) -> Any:
        options = self._options
        try:
            reasoning_gym = import_module("reasoning_gym")
        except ModuleNotFoundError as error:
            if error.name != "reasoning_gym":
                raise
            raise PluginError(
                "finetooth-reasoninggym",
                "the package reasoning-gym is not installed",
                action=f"{install_command('reasoning-gym')} (it needs a C compiler)",
            ) from error
        size = options.count * PATIENCE
        try:
            return reasoning_gym.create_dataset(
                options.dataset, seed=base_seed(options.seed), size=size, **options.parameters
            )
        except (ValueError, TypeError, AssertionError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RecipeError(
                "data", f"reasoning_gym makes no {options.dataset!r}: {reason}", action="check dataset and parameters"
            ) from error
