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
    code, said = await board.ft("runs", "compare", "--json", *map(str, folders))
    if code:
        raise UserError(said, action="the page of each run says what is wrong with it")
    told, _ = json.JSONDecoder().raw_decode(said)
    runs = await asyncio.to_thread(lambda: [board.recorded(folder) for folder in folders])
    return HTMLResponse(pages.page("Runs side by side", compare_view(names, runs, told)))


def compare_view(names: Sequence[str], runs: Sequence[Recorded], told: Mapping[str, Any]) -> str:
    """What the page shows.

    Args:
        told: what `ft runs compare --json` printed.
    """
    settings = [_row(name, map(_setting, values)) for name, values in told["settings"].items()]
    results = [_row(name, map(pages.number, values)) for name, values in told["results"].items()]
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
        metric for one in series for metric in one if metric == "loss" or metric.startswith("eval/")
    )
    made = []
    for metric in list(metrics)[: pages.MOST_CHARTS]:
        curves = {name: one[metric] for name, one in zip(names, series, strict=True) if metric in one}
        if len(curves) > 1 and (drawn := chart(metric, curves)) is not None:
            made.append(svg(drawn))
    return made


def _answers(names: Sequence[str], runs: Sequence[Recorded]) -> str:
    """Questions that any of them was asked, with the answer of each one's last evaluation."""
    last = [
        next((pages.answers_of(one) for one in reversed(run.evaluations) if one.get("samples")), {}) for run in runs
    ]
    asked = {id_: sample for answers in last for id_, sample in answers.items()}
    if not asked:
        return ""
    rows = (
        (sample.get("prompt", ""), sample.get("expected") or "",
         *(answers.get(id_, {}).get("answer", "(not asked)") for answers in last))
        for id_, sample in list(asked.items())[: pages.MOST_ANSWERS]
    )  # fmt: skip
    return pages.table(("asked", "expected", *names), map(pages.text_row, rows))
