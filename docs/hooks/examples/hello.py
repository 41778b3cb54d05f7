"""`ft hello RUN`: evaluate a run, and print its rows with what the model answered."""

from __future__ import annotations

from collections.abc import Iterator

import click
from finetooth_hooks import Command, CommandContext, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(name="hello", build=f"{__name__}:hello", summary="evaluate a run and print its rows")


@click.command()
@click.argument("run")
@click.option("--data", help="Rows to measure on; the held-out rows of the run if left out.")
@click.pass_obj
def hello(context: CommandContext, run: str, data: str | None) -> None:
    """Evaluate RUN with exact_match, and print its rows."""
    (evaluation,) = context.evaluate(run, ["exact_match"], data, answers=True)
    for sample in evaluation.samples:
        click.echo(f"{sample.score:.0f}  {sample.expected!r}  {sample.answer!r}")
    click.echo(", ".join(f"{name} {value:.4g}" for name, value in evaluation.metrics.items()))
