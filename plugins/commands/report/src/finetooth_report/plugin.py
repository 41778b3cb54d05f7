"""`report.html` in the folder of every run, and `ft report RUN` for one that has none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from finetooth_hooks import Command, hookimpl

if TYPE_CHECKING:  # they take a tenth of what `ft --help` takes
    from finetooth_hooks import Outcome, Run


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="report",
        build="finetooth_report.command:command",
        summary="write a page about a run: plan, curves, answers, data",
        section="Use",
    )


@hookimpl
def ft_run_end(run: Run, outcome: Outcome) -> None:
    """Write the page. If it cannot be written, one line says so, and the run is as good as before."""
    from finetooth_report.written import write_at_end

    write_at_end(run, outcome)
