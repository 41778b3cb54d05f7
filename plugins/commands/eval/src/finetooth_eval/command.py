"""`ft eval`: measure runs and models on any rows, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.errors import UserError

if TYPE_CHECKING:
    from finetooth_hooks.context import CommandContext
    from finetooth_hooks.reports import Evaluation


@click.command("eval")
@click.argument("references", nargs=-1, required=True, metavar="RUN_OR_MODEL...")
@click.option("--data", metavar="DATA", help="Rows to measure on; default: the held-out rows of each run.")
@click.option(
    "--evaluator",
    "evaluators",
    multiple=True,
    metavar="NAME",
    help="What to measure, a name or JSON with options; may be repeated. Default: what the run measured.",
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME",
    help="An evaluator that brings its own questions, a name or JSON with options (probes); may be repeated.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting of the recipe.")
@click.option("--answers", type=click.Path(path_type=Path), help="Write every question with its answer to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    commands: CommandContext,
    references: tuple[str, ...],
    data: str | None,
    evaluators: tuple[str, ...],
    suites: tuple[str, ...],
    overrides: tuple[str, ...],
    answers: Path | None,
    as_json: bool,
) -> None:
    """Measure each RUN_OR_MODEL: a run by its folder or name, a model's folder, or a hub id.

    All are measured on the same rows when --data names them, and shown side by side.
    """
    if answers is not None and answers.exists():
        raise UserError(f"--answers {answers} exists", action="choose another file")
    if answers is not None:  # what was measured would be lost if the file could not be written then
        answers.parent.mkdir(parents=True, exist_ok=True)
    references = tuple(dict.fromkeys(references))
    picks = [*map(_pick, evaluators), *(_suite(commands, text) for text in suites)]
    every = answers is not None
    measured = {name: commands.evaluate(name, picks, data, overrides, answers=every) for name in references}
    if answers is not None:
        answers.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(measured)), "utf-8")
    if as_json:
        click.echo(
            json.dumps({name: [asdict(evaluation) for evaluation in made] for name, made in measured.items()}, indent=2)
        )
        return
    from finetooth_toolbox.cli.tables import plain_console, show, table

    console = plain_console()
    show(
        console,
        table(console, "Measured", ("metric", "rows", *references), _cells(measured), numbers=1 + len(measured)),
    )
    for evaluator, setting in _differing(measured):
        click.echo(f"{evaluator}: {setting} is not the same for all models; --json shows each", err=True)


def _pick(text: str) -> Any:
    """An evaluator as a recipe names it.

    Raises:
        UserError: it begins like JSON and is none.
    """
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"--evaluator {text!r} is not JSON: {error}", action="check quotes and commas") from error


def _suite(commands: CommandContext, text: str) -> Any:
    """An evaluator that brings its own questions.

    Raises:
        UserError: it needs rows, or its options are not JSON.
        RecipeError: none is called so.
    """
    pick = _pick(text)
    name = str(pick.get("name", "")) if isinstance(pick, dict) else pick
    from finetooth_hooks.entries import Evaluator

    entry = commands.catalog.get("evaluator", name, setting="--suite").entry
    if not (isinstance(entry, Evaluator) and entry.brings_rows):
        raise UserError(f"--suite {name}: it needs rows", action=f"use --evaluator {name} --data FILE")
    return pick


def _cells(results: dict[str, tuple[Evaluation, ...]]) -> list[list[str]]:
    """A row for each metric, a column for each model; a dash where a model was not measured so."""
    names = dict.fromkeys(
        (evaluation.name, metric) for made in results.values() for evaluation in made for metric in evaluation.metrics
    )
    cells = []
    for evaluator, metric in names:
        values, rows = [], set()
        for made in results.values():
            measured = next((e for e in made if e.name == evaluator and metric in e.metrics), None)
            values.append("-" if measured is None else f"{measured.metrics[metric]:.4f}")
            rows |= set() if measured is None else {measured.rows}
        cells.append([f"{evaluator} {metric}", "/".join(map(str, sorted(rows))), *values])
    return cells


def _differing(results: dict[str, tuple[Evaluation, ...]]) -> list[tuple[str, str]]:
    """Evaluators with what their answers depend on and is not the same for every model."""
    seen: dict[tuple[str, str], list[Any]] = {}
    for made in results.values():
        for done in made:
            for name, value in done.settings.items():
                seen.setdefault((done.name, name), []).append(value)
    return [where for where, values in seen.items() if any(value != values[0] for value in values)]


def _rows(results: dict[str, Sequence[Evaluation]] | dict[str, tuple[Evaluation, ...]]) -> list[dict[str, Any]]:
    """Every kept answer, with the model that gave it."""
    return [
        {"model": name, "evaluator": evaluation.name, **asdict(sample)}
        for name, made in results.items()
        for evaluation in made
        for sample in evaluation.samples
    ]
