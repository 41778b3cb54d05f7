"""Evaluators, which measure an engine, and rewards, which score answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.reports import DataReport, Evaluation

SAMPLED_COLUMNS = ("row_id", "conversation", "completion_ids", "outcome", "version")
"""Columns that rewards of a sampling method get in addition to those of the rows."""


class Reward(Protocol):
    """Scores completions: one finite float per completion, or None to leave it out. A reward from the context is
    checked: a wrong number of scores, or a value that is not a number, ends the run with the names of the plugin and
    the row. The check also awaits a reward with an `async def` call.

    A reward may have `needed_columns`, names of necessary columns. If no row has one of them, the data are refused
    before sampling.
    """

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """
        Args:
            columns: further columns by name, as long as `completions`; `answer` holds the expected text if known. A
                method that samples adds `row_id` (`train.jsonl:17`), `conversation` (the prompt as mappings with `role`
                and `content`; None if the row has it as text), `completion_ids` (token ids), `outcome` (`stop` or
                `length`, of a completion that was cut off) and `version` (optimizer steps of the weights that sampled
                it); rollouts of one prompt are adjacent.
        """
        ...


class Evaluator(Protocol):
    """Measures the engine on held-out examples.

    An evaluator derives from `finetooth_hooks.EvaluatorBase`, which has defaults of `noun`, `data`, `metrics` and
    `read_beginning`.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities`; for evaluators there are none yet."""
        ...

    @property
    def noun(self) -> str:
        """The word for a datum in reports: `row`, `window`, `pair`."""
        ...

    @property
    def data(self) -> Sequence[Datum]:
        """The scored data in the order of the rows, if preparation determines them; else empty."""
        ...

    @property
    def metrics(self) -> frozenset[str] | None:
        """All possible names in `Evaluation.metrics`, known after preparation, so that a recipe with an impossible name
        in `checkpoint.select_on` is refused before training. None: unknown in advance."""
        ...

    def read_beginning(self, engine: Engine) -> None:
        """As `Method.read_beginning`."""
        ...

    def prepare(self) -> DataReport | None:
        """Read the held-out examples once, before training; None if it reads none."""
        ...

    def evaluate(self, engine: Engine, step: int) -> Evaluation: ...
