"""Which models fit this machine, or a memory that is named, as `ft advise` says; each leads to a new run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from finetooth_toolbox.cli.tables import duration
from finetooth_toolbox.text.measures import size
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from finetooth_board import forms, pages

if TYPE_CHECKING:
    from finetooth_board.app import Board

HEADS = ("model", "way", "memory at the peak", "time for 1,000 rows", "fits", "next")


async def asked(board: Board, request: Request) -> Response:
    """The form that names models."""
    return HTMLResponse(_page(board, {}, ""))


async def answered(board: Board, request: Request) -> Response:
    """What of each model fits, as a table; or the form again, with what is wrong."""
    form = await board.form(request)
    memory = form.get("memory", "").strip()
    names = form.get("models", "").split() or [pages.MODEL]
    code, output = await board.ft("advise", "--json", *([f"--memory={memory}"] if memory else []), "--", *names)
    if code:
        return HTMLResponse(_page(board, form, output), 400)
    advice, _ = json.JSONDecoder().raw_decode(output)
    models = advice if isinstance(advice, list) else [advice]
    rows = [row for model in models for row in _rows(model)]
    said = f"<p>On {pages.text(models[0]['device'])}. Memory is the plan's estimate.</p>{pages.table(HEADS, rows)}"
    return HTMLResponse(_page(board, form, "", said))


def _rows(model: Mapping[str, Any]) -> Iterator[str]:
    """A row of the table for each way to train a model: what the plan takes leads to a new run."""
    for way in model["ways"]:
        taken = way["way"] == model["taken"]
        known = way["memory"] is not None
        peak = size(sum(way["memory"]["parts"].values())) if known else "-"
        address = f"/new?{urlencode({'model': model['model']})}"
        begin = f'<a href="{pages.text(address)}">Train {pages.text(model["model"])}</a>' if taken else ""
        cells = (way["way"], peak, duration(way["seconds"]) if known else "-", _fits(way, taken))
        shown = "".join(f"<td>{pages.text(cell)}</td>" for cell in cells)
        yield f'<tr><th scope="row">{pages.text(model["model"])}</th>{shown}<td>{begin}</td></tr>'


def _fits(way: Mapping[str, Any], taken: bool) -> str:
    return "yes, taken" if taken else "yes" if way["fits"] else f"no: {way['lacks']}"


def _page(board: Board, form: Mapping[str, str], wrong: str, answer: str = "") -> str:
    fields = (
        forms.field("Models: names, folders or ids of the hub, with blanks between", "models",
                    form.get("models", pages.MODEL), "required"),
        forms.field("Memory, such as 24GB (empty: this machine's)", "memory", form.get("memory", "")),
    )  # fmt: skip
    ask = forms.form("/models", board.tokens.token, "".join(fields), "Show what fits", "Reading their sizes ...")
    return pages.page("Models that fit", f"{pages.problem(wrong)}{ask}{answer}")
