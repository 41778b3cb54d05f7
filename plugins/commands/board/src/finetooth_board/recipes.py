"""Recipes of a new run by other ways than the questions of `ft init`: a form of all settings, another tool's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from finetooth_saving.runs.recorded import plain_name
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from finetooth_board import forms, pages
from finetooth_board.settings import PICKS, Schema, fields_of, picks_of, recipe_of

if TYPE_CHECKING:
    from finetooth_board.app import Board


async def settings(board: Board, request: Request) -> Response:
    """The form of all settings, with the options of what the address picks."""
    return HTMLResponse(_page(board, await board.schema(), request.query_params, ""))


async def write(board: Board, request: Request) -> Response:
    """The recipe of a form, with the plan that `ft check` makes of it; or the form again, with what is wrong."""
    form = await board.form(request)
    schema = await board.schema()
    name, recipe = plain_name(form.get("name", ""), "name"), recipe_of(form, _picked(schema, form))
    file = board.scratch / f"{name}.yaml"
    file.write_text(recipe, encoding="utf-8")
    code, output = await board.ft("check", str(file))
    if code:
        return HTMLResponse(_page(board, schema, form, output), 400)
    return HTMLResponse(pages.recipe_page(board.tokens.token, name, recipe, output))


async def import_form(board: Board, request: Request) -> Response:
    """The form that names another tool's configuration."""
    return HTMLResponse(forms.import_page(board.tokens.token, {}))


async def import_(board: Board, request: Request) -> Response:
    """The recipe that `ft import` makes of a configuration."""
    form = await board.form(request)
    name = plain_name(form.get("name", ""), "name")
    file = board.scratch / f"{name}.yaml"
    file.unlink(missing_ok=True)
    code, output = await board.ft("import", f"--output={file}", "--", form.get("data", ""))
    if code or not file.exists():
        return HTMLResponse(forms.import_page(board.tokens.token, form, output), 400)
    output = output.partition("\nNext: ")[0].replace(str(file), file.name)  # the file is there from Train on
    return HTMLResponse(pages.recipe_page(board.tokens.token, name, file.read_text(encoding="utf-8"), output))


def _page(board: Board, schema: Schema, form: Mapping[str, str], wrong: str) -> str:
    picked = _picked(schema, form)
    return forms.settings_page(board.tokens.token, picks_of(schema), picked, fields_of(schema, picked), form, wrong)


def _picked(schema: Schema, form: Mapping[str, str]) -> dict[str, str]:
    """What a form picks of what there is."""
    picks = picks_of(schema)
    return {section: form[section] for section in PICKS if form.get(section) in picks[section]}
