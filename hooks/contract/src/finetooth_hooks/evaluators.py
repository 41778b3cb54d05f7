"""Evaluators, which measure an engine, and rewards, which score answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.reports import DataReport, Evaluation

SAMPLED_COLUMNS = ("row_id", "conversation", "completion_ids", "outcome", "version")
"""Columns that rewards get in addition to those of the rows, where a method samples."""


class Reward(Protocol):
    """Scores completions: one finite float a completion, or None to leave it out. A caller that builds one through the
    context gets it with a check around it: another number of scores, or anything but a number, ends the run and
    names the plugin and the row; and a reward whose call is a coroutine (`async def`) is awaited.

    A reward may have `needed_columns`, names of columns that it cannot do without: rows of which none has one are
    refused before anything is sampled.
    """

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """
        Args:
            columns: further columns by name, as long as `completions`; `answer` holds the expected text where there
                is one. A method that samples adds `row_id` (`train.jsonl:17`), `conversation` (the prompt as mappings
                with `role` and `content`; None where the row gives it as text), `completion_ids` (token ids), `outcome`
                (`stop` or `length`, of a completion that was cut off) and `version` (optimizer steps of the weights
                that sampled it); rollouts of one prompt stand next to each other.
        """
        ...


class Evaluator(Protocol):
    """Measures the engine on held-out examples.

    An evaluator derives from `finetooth_hooks.EvaluatorBase`, where `noun`, `data`, `metrics` and `read_beginning` have
    the answers of one that needs none of them.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities`; for evaluators there are none yet."""
        ...

    @property
    def noun(self) -> str:
        """What a datum is, in reports: `row`, `window`, `pair`."""
        ...

    @property
    def data(self) -> Sequence[Datum]:
        """What it scores, in the order of the rows, if that is known once it is prepared; else empty."""
        ...

    @property
    def metrics(self) -> frozenset[str] | None:
        """Names of all metrics that `evaluate` may give, as they stand in `Evaluation.metrics`, once it is prepared; so
        that a recipe that waits for another one (`checkpoint.select_on`) is refused before it trains. None: they are
        not known ahead."""
        ...

    def read_beginning(self, engine: Engine) -> None:
        """As `Method.read_beginning`."""
        ...

    def prepare(self) -> DataReport | None:
        """Read the held-out examples once, before training; None if it reads none."""
        ...

    def evaluate(self, engine: Engine, step: int) -> Evaluation: ...
