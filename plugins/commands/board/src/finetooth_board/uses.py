"""What a run is used for: merged, exported, pushed; and what other commands say of it."""

from __future__ import annotations

import shlex
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING

from finetooth_hooks import UserError
from finetooth_saving.run_folder import ARTIFACT
from finetooth_saving.runs import processes
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from finetooth_board import forms, pages
from finetooth_board.settings import entries_of

if TYPE_CHECKING:
    from finetooth_board.app import Board

SAYS = {
    "checkpoints": ("Checkpoints", ("checkpoint", "list")),
    "rollouts": ("Rollouts", ("rollouts",)),
    "wrong": ("What is wrong", ("doctor", "run")),
}
"""Commands that say something of a run, by the end of their page's address."""
LOGS = "board-{}.log"
"""Where the use of a run prints, in its folder."""


def links(name: str, folder: Path) -> str:
    """Where else to go from the page of a run."""
    more = {"/use": "Merge, export, push"} if (folder / ARTIFACT).is_dir() else {}
    if more:
        more["/chat"] = "Chat"
    for path, (title, _) in SAYS.items():
        if path == "wrong" or (folder / path).is_dir():
            more[f"/says/{path}"] = title
    parts = (f'<a href="{pages.text(pages.url_of(name, path))}">{title}</a>' for path, title in more.items())
    return f'<nav aria-label="of this run">{" · ".join(parts)}</nav>'


async def says(board: Board, request: Request) -> Response:
    """What a command says of a run."""
    name, what = request.path_params["name"], request.path_params["what"]
    folder = board.folder(name)
    if what not in SAYS:
        raise UserError(f"no page {what!r}", action="the page of the run names them")
    title, command = SAYS[what]
    _, output = await board.ft(*command, str(folder))
    return HTMLResponse(pages.page(f"{title} of {name}", f"{_back(name)}{pages.output(output)}"))


class Uses:
    """Merging, exporting and pushing: each a process of its own, whose output is kept in the run's folder.

    Args:
        board: whose runs they are.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._begun: dict[Path, Popen[bytes]] = {}

    async def page(self, request: Request) -> Response:
        """The forms, and what was done."""
        name = request.path_params["name"]
        folder = self._board.folder(name)
        exporters = entries_of(await self._board.schema(), "exporter")
        offered = forms.use_forms(name, self._board.tokens.token, exporters)
        live = f'<div data-live="{pages.text(pages.url_of(name, "/used"))}">{self._done(folder)}</div>'
        return HTMLResponse(pages.page(f"Merge, export, push {name}", f"{_back(name)}{offered}{live}"))

    async def used(self, request: Request) -> Response:
        """What was done, alone."""
        return HTMLResponse(self._done(self._board.folder(request.path_params["name"])))

    async def use(self, request: Request) -> Response:
        """Begin one of them; a push that was not looked at yet lists what would go, and sends nothing."""
        form = await self._board.form(request)
        name, what = request.path_params["name"], form.get("what", "")
        folder = self._board.folder(name)
        command = _command(what, form)
        if what == "push" and form.get("seen") != "yes":
            code, output = await self._board.ft(*command, "--dry-run", "--", str(folder))
            again = forms.push_form(name, self._board.tokens.token, form, output, sends=not code)
            return HTMLResponse(pages.page(f"Push {name}", f"{_back(name)}{again}"), 400 if code else 200)
        log = folder / LOGS.format(what)
        if (before := self._begun.get(log)) is not None and before.poll() is None:
            raise UserError(f"{what} of {name!r} is under way", action="its output is on the page before")
        options = shlex.split(form.get("options", "")) if what == "export" else ()
        log.unlink(missing_ok=True)
        self._begun[log] = processes.begin([*command, "--", str(folder), *options], log.with_suffix(""))
        return RedirectResponse(pages.url_of(name, "/use"), 303)

    def _done(self, folder: Path) -> str:
        """Outputs of what was done, with how it ended where this board began it."""
        parts = []
        for log in sorted(folder.glob(LOGS.format("*"))):
            process = self._begun.get(log)
            code = None if process is None else process.poll()
            state = "" if process is None else " is under way" if code is None else " failed" if code else " is done"
            output = processes.output_of(log.with_suffix(""))
            what = log.stem.partition("-")[2]
            parts.append(pages.section(pages.text(what + state), pages.output(output or "loading ...")))
        return "".join(parts)


def _command(what: str, form: dict[str, str]) -> list[str]:
    """The command of a form, without the run.

    Raises:
        UserError: the form misses something.
    """
    if what == "merge":
        return ["merge"]
    if what == "export" and form.get("to"):
        return ["export", f"--to={form['to']}", *(["--unmeasured"] if form.get("unmeasured") else [])]
    if what == "push" and form.get("to"):
        chosen = [f"--as={form['as']}"] if form.get("as") else []
        return ["push", f"--to={form['to']}", *chosen, *(["--public"] if form.get("public") else [])]
    raise UserError(f"{what or 'the form'}: it does not say where to", action="fill in the form")


def _back(name: str) -> str:
    return f'<p><a href="{pages.text(pages.url_of(name))}">{pages.text(name)}</a></p>'
