"""`ft sweep RECIPE`: try settings of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from finetooth_hooks import Command, hookimpl

if TYPE_CHECKING:  # they take a tenth of what `ft --help` takes
    from finetooth_hooks import Evaluation, Run, StepReport

watching: list[Callable[[Evaluation], None]] = []
"""Called with each evaluation while a trial runs in this process; a call may raise StopRun."""

stepping: list[Callable[[], None]] = []
"""Called after each step of such a trial; a call may raise StopRun."""


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="sweep",
        build="finetooth_sweep.command:command",
        summary="try settings of a recipe, and show which are best",
        section="Train",
    )


@hookimpl
def ft_evaluated(run: Run, evaluation: Evaluation) -> None:
    """Tell the trial that runs, if one does: it may be pruned."""
    for tell in watching:
        tell(evaluation)


@hookimpl
def ft_step(run: Run, report: StepReport) -> None:
    """Tell the trial that runs, if one does: it may wait for a metric that nothing measures."""
    for tell in stepping:
        tell()
