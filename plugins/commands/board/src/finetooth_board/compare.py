"""Runs side by side: the settings in which they differ, their curves, results and answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetooth_hooks import UserError
from finetooth_saving.runs.chart import chart, svg
from finetooth_saving.runs.recorded import Recorded
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from finetooth_board import pages

if TYPE_CHECKING:
    from finetooth_board.app import Board

MOST = 8
"""Runs side by side: more columns can be read by nobody."""


async def compared(board: Board, request: Request) -> Response:
    """The page of the runs that the address names, `?run=A&run=B`.

    Raises:
        UserError: fewer than two are named, or more than can be read.
    """
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if not 2 <= len(names) <= MOST:
        raise UserError(f"compare: {len(names)} of the runs are ticked", action=f"tick 2 to {MOST} in the list")
    folders = [board.folder(name) for name in names]
    code, output = await board.ft("runs", "compare", "--json", *map(str, folders))
    if code:
        raise UserError(output, action="the page of each run says what is wrong with it")
    comparison, _ = json.JSONDecoder().raw_decode(output)
    runs = await asyncio.to_thread(lambda: [board.recorded(folder) for folder in folders])
    return HTMLResponse(pages.page("Runs side by side", compare_view(names, runs, comparison)))


def compare_view(names: Sequence[str], runs: Sequence[Recorded], comparison: Mapping[str, Any]) -> str:
    """What the page shows.

    Args:
        comparison: what `ft runs compare --json` printed.
    """
    settings = [_row(name, map(_setting, values)) for name, values in comparison["settings"].items()]
    results = [_row(name, map(pages.number, values)) for name, values in comparison["results"].items()]
    heads = [f'<a href="{pages.text(pages.url_of(name))}">{pages.text(name)}</a>' for name in names]
    return "".join(
        (
            f"<p>{' · '.join(heads)}</p>",
            f'<div class="charts">{"".join(_charts(names, runs))}</div>',
            pages.section("Results", pages.table(("result", *names), results)),
            pages.section(
                "Settings that differ",
                pages.table(("setting", *names), settings) if settings else "<p>Their settings are the same.</p>",
            ),
            pages.section("Answers", _answers(names, runs)),
        )
    )


def _row(name: str, values: Any) -> str:
    cells = "".join(f"<td>{pages.text(value)}</td>" for value in values)
    return f'<tr><th scope="row">{pages.text(name)}</th>{cells}</tr>'


def _setting(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)


def _charts(names: Sequence[str], runs: Sequence[Recorded]) -> list[str]:
    """The metrics that two or more of the runs have, a curve for each run."""
    series = [run.series() for run in runs]
    metrics = dict.fromkeys(
        metric for by_metric in series for metric in by_metric if metric == "loss" or metric.startswith("eval/")
    )
    made = []
    for metric in list(metrics)[: pages.MOST_CHARTS]:
        curves = {name: by_metric[metric] for name, by_metric in zip(names, series, strict=True) if metric in by_metric}
        if len(curves) > 1 and (drawn := chart(metric, curves)) is not None:
            made.append(svg(drawn))
    return made


def _answers(names: Sequence[str], runs: Sequence[Recorded]) -> str:
    """Questions that any of them was asked, with the answer of each one's last evaluation."""
    last = [
        next((pages.answers_of(shown) for shown in reversed(run.evaluations) if shown.get("samples")), {})
        for run in runs
    ]
    samples = {id_: sample for answers in last for id_, sample in answers.items()}
    if not samples:
        return ""
    rows = (
        (sample.get("prompt", ""), sample.get("expected") or "",
         *(answers.get(id_, {}).get("answer", "(not asked)") for answers in last))
        for id_, sample in list(samples.items())[: pages.MOST_ANSWERS]
    )  # fmt: skip
    return pages.table(("asked", "expected", *names), map(pages.text_row, rows))
