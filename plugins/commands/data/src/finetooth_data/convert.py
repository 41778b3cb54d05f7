"""`ft data convert`: rows in another shape, with nothing lost."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from finetooth_hooks.context import CommandContext
from finetooth_hooks.errors import DataError, UserError

from finetooth_data.shapes import SHAPES, Unwritable

ENDINGS = (".jsonl", ".json", ".csv")


@click.command()
@click.argument("data", metavar="DATA")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--to", "shape", type=click.Choice(list(SHAPES)), required=True, help="The format of the new rows.")
@click.option(
    "--format", "format_", metavar="FORMAT", help="The format of DATA, as in data.format; default: by its columns."
)
@click.pass_obj
def convert(context: CommandContext, data: str, output: Path, shape: str, format_: str | None) -> None:
    """Write the rows of DATA in another shape into OUTPUT (.jsonl, .json or .csv).

    DATA is what data.train may be: a file, a hub id, or a source as JSON. Rows are read as a run reads them. If a row
    holds something that the shape cannot express, nothing is written (exit code 2); rows that a run would leave out are
    counted, with the reason.
    """
    if output.suffix not in ENDINGS:
        raise UserError(f"{output}: rows are written as {', '.join(ENDINGS)}", action="name OUTPUT with such an ending")
    if output.exists():
        raise UserError(f"{output} exists", action="name another file; nothing was changed")
    section = section_of(data, format_)
    examples, report = context.rows({"model": "none", "data": section}).read("train")
    rows: list[dict[str, Any]] = []
    lost: Counter[str] = Counter()
    first = ""
    for id_, example in examples:
        try:
            rows += SHAPES[shape](example)
        except Unwritable as reason:
            first = first or id_
            lost[str(reason)] += 1
    if lost:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in lost.most_common(3))
        problem = f"{lost.total()} of {report.rows} rows hold what shape {shape} cannot express: {reasons}"
        raise DataError(first, problem, action="choose another --to; nothing was written")
    if not rows:
        raise UserError(f"{data} gives no rows", action="name other data; nothing was written")
    write_rows(output, rows)
    click.echo(f"{report.rows} row{'s' * (report.rows != 1)} read, {len(rows)} written to {output}")
    for why, count in report.dropped.items():
        setting = f" ({report.settings[why]})" if why in report.settings else ""
        click.echo(f"left out: {count}, {why}{setting}; the first is {report.dropped_ids[why][0]}")


def section_of(data: str, format_: str | None) -> dict[str, Any]:
    """A recipe's `data` of what a command line says."""
    return {"train": value_of(data, "DATA"), **({"format": value_of(format_, "--format")} if format_ else {})}


def value_of(text: str, name: str) -> Any:
    """What an argument says: a name, or JSON.

    Raises:
        UserError: it begins like JSON and is none.
    """
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}", action="correct it, or give a name") from None


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to a temporary file and rename it, so that `path` never holds half a file.

    Raises:
        UserError: a column holds what a table has no cell for, or the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                names = list(dict.fromkeys(name for row in rows for name in row))
                for name in names:
                    if any(isinstance(row.get(name), list | dict) for row in rows):
                        problem = f"{path}: column {name} holds lists, and a table cannot hold them"
                        raise UserError(problem, action="write .jsonl")
                table = csv.DictWriter(file, names)
                table.writeheader()
                table.writerows(rows)
            elif path.suffix == ".json":
                json.dump(list(rows), file, ensure_ascii=False, indent=1)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}", action="name another place") from None
    finally:
        beside.unlink(missing_ok=True)
