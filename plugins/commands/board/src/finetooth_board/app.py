"""The board as an ASGI application: pages over the folder of runs, and what their buttons do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from finetooth_hooks import CommandContext, UserError
from finetooth_saving.run_folder import RECIPE, RUNS
from finetooth_saving.runs import processes
from finetooth_saving.runs.recorded import (
    PLAIN_NAME,
    Recorded,
    groups_below,
    is_run,
    is_running,
    plain_name,
    read_run,
    runs_below,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from finetooth_board import compare, fitting, pages, recipes, static, uses
from finetooth_board.guard import ROWS_POLICY, App, Guard, Scope, Tokens
from finetooth_board.plugged import Plugged
from finetooth_board.talk import Talk

MOST = 100
"""Runs of the list."""
PATIENCE = 600
"""Seconds that a look at rows may take: a model's tokenizer may have to come first."""
STARTING = "starting"
"""The state of a run that has no folder yet."""
FORM_BYTES, FORM_FIELDS = 1 << 20, 1_000
OPTIONS = ("data", "model", "prompt", "completion", "system", "passes")
"""Of `ft init`, that the form has."""
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="M2 3h12v3H2zM3 6h1v7H3zM6 6h1v7H6zM9 6h1v7H9z'
    'M12 6h1v7h-1z" fill="#2a7ab8"/></svg>'
)


def make_app(context: CommandContext, admits: Callable[[str], bool] | None = None, runs: Path = RUNS) -> Guard:
    """The application, guarded.

    Args:
        context: begins and stops runs, and builds the pages of other plugins.
        admits: see `Guard`.
        runs: the folder of runs.
    """
    return Guard(Board(runs, context).app(), admits)


class Board:
    """Pages over a folder of runs. Runs and looks at rows are processes of their own, so this one stays small."""

    def __init__(self, runs: Path, context: CommandContext) -> None:
        self.runs, self.context, self.tokens = runs, context, Tokens()
        self._plugged = Plugged(context, self._fields, self.tokens.token)
        self._read: dict[Path, tuple[object, Recorded]] = {}
        self._kept = tempfile.TemporaryDirectory(prefix="finetooth-board-")
        self.scratch = Path(self._kept.name)
        self._schema: dict[str, Any] = {}
        self._looking = asyncio.Lock()

    def app(self) -> App:
        """The routes, below which every page has the links to those of other plugins."""
        used, talk = uses.Uses(self), Talk(self, self.scratch)
        routes = [
            Route("/", self.home),
            Route("/live", self.home_live),
            Route("/new", self.new),
            Route("/new", self.propose, methods=["POST"]),
            Route("/start", self.start, methods=["POST"]),
            Route("/files", self.upload, methods=["POST"]),
            Route("/compare", partial(compare.compared, self)),
            Route("/models", partial(fitting.asked, self)),
            Route("/models", partial(fitting.answered, self), methods=["POST"]),
            Route("/settings", partial(recipes.settings, self)),
            Route("/settings", partial(recipes.write, self), methods=["POST"]),
            Route("/import", partial(recipes.import_form, self)),
            Route("/import", partial(recipes.import_, self), methods=["POST"]),
            Route("/runs/{name:path}/use", used.page),
            Route("/runs/{name:path}/use", used.use, methods=["POST"]),
            Route("/runs/{name:path}/used", used.used),
            Route("/runs/{name:path}/says/{what}", partial(uses.says, self)),
            Route("/runs/{name:path}/chat", talk.page),
            Route("/runs/{name:path}/chat", talk.ask, methods=["POST"]),
            Route("/runs/{name:path}/live", self.run_live),
            Route("/runs/{name:path}/rows", self.rows),
            Route("/runs/{name:path}/stop", self.stop, methods=["POST"]),
            Route("/runs/{name:path}/resume", self.resume, methods=["POST"]),
            Route("/runs/{name:path}", self.run),
            Route("/board.js", _file(static.SCRIPT, "text/javascript")),
            Route("/board.css", _file(static.STYLE, "text/css")),
            Route("/icon.svg", _file(ICON, "image/svg+xml")),
        ]
        taken = frozenset(route.path.split("/")[1] for route in routes)
        app = Starlette(routes=[*routes, *self._plugged.routes(taken)], exception_handlers={UserError: _refused})

        async def linked(scope: Scope, receive: Any, send: Any) -> None:
            pages.LINKS.set(self._plugged.links())
            await app(scope, receive, send)

        return linked

    async def home(self, request: Request) -> Response:
        """All runs."""
        listed = await asyncio.to_thread(self._list)
        return HTMLResponse(pages.page("Runs", pages.compare_form(f'<div data-live="/live">{listed}</div>')))

    async def home_live(self, request: Request) -> Response:
        """The list alone."""
        return HTMLResponse(await asyncio.to_thread(self._list))

    async def run(self, request: Request) -> Response:
        """One run."""
        name = request.path_params["name"]
        folder = self.folder(name, begun=False)
        if not is_run(folder):
            live = pages.live(pages.url_of(name, "/live"), STARTING, pages.starting(folder))
            return HTMLResponse(pages.page(name, live))
        recorded = await asyncio.to_thread(self.recorded, folder)
        return HTMLResponse(pages.run_page(name, recorded, self.tokens.token, uses.links(name, folder)))

    async def run_live(self, request: Request) -> Response:
        """What is live of one run."""
        name = request.path_params["name"]
        folder = self.folder(name, begun=False)
        processes.reap()
        if not is_run(folder):
            return HTMLResponse(pages.starting(folder), headers={"x-state": STARTING})
        recorded = await asyncio.to_thread(self.recorded, folder)
        return HTMLResponse(pages.run_view(name, recorded), headers={"x-state": recorded.status})

    async def rows(self, request: Request) -> Response:
        """Rows of a run as the model sees them; made once for a recipe."""
        folder = self.folder(request.path_params["name"])
        recipe = folder / RECIPE
        digest = hashlib.sha256(recipe.read_bytes() + str(folder).encode()).hexdigest()[:24]
        made = self.scratch / f"{digest}.html"
        if not made.exists():
            code, output = await self.ft("data", "preview", str(recipe), "--html", str(made), "--rows", "10")
            if code or not made.exists():
                made.write_text(f"<!doctype html><title>Rows</title>{pages.output(output)}", encoding="utf-8")
        headers = {"content-security-policy": ROWS_POLICY}
        return HTMLResponse(made.read_text(encoding="utf-8"), headers=headers)

    async def new(self, request: Request) -> Response:
        """The form of a new run."""
        given = {name: value for name, value in request.query_params.items() if name in ("data", "model")}
        return HTMLResponse(pages.new_page(self.tokens.token, given))

    async def propose(self, request: Request) -> Response:
        """The recipe that `ft init` proposes for the form."""
        form = await self.form(request)
        name = plain_name(form.get("name", ""), "name")
        if not form.get("data", "").strip():
            raise UserError("rows: no file is named", action="upload a file, or name one")
        if self._taken(name):
            return HTMLResponse(
                pages.new_page(self.tokens.token, form, f"name: there is a run {name!r} (choose another name)"), 400
            )
        written = self.scratch / f"{name}.yaml"
        written.unlink(missing_ok=True)
        options = [f"--{option}={form[option]}" for option in OPTIONS if form.get(option)]
        code, output = await self.ft("init", "--yes", *options, f"--output={written}")
        if code or not written.exists():
            return HTMLResponse(pages.new_page(self.tokens.token, form, output), 400)
        output = output.partition("\nThe recipe is ")[0]
        return HTMLResponse(pages.recipe_page(self.tokens.token, name, written.read_text(encoding="utf-8"), output))

    async def start(self, request: Request) -> Response:
        """Begin the run of a recipe."""
        form = await self.form(request)
        name, recipe = plain_name(form.get("name", ""), "name"), form.get("recipe", "")
        if self._taken(name):
            raise UserError(f"name: there is a run {name!r}", action="choose another name")
        self.runs.mkdir(parents=True, exist_ok=True)
        file = Path(f"{name}.yaml")
        text = recipe.replace("\r\n", "\n")
        refused = processes.log_of(self.runs / name).exists()  # the board wrote the file then
        if not refused and file.exists() and file.read_text(encoding="utf-8") != text:
            raise UserError(f"{file} exists and holds another recipe", action="choose another name for the run")
        file.write_text(text, encoding="utf-8")
        self.context.start(file, name=str(self.runs / name))
        return RedirectResponse(pages.url_of(name), 303)

    async def stop(self, request: Request) -> Response:
        """Stop a run as Ctrl-C does."""
        await self.form(request)
        name = request.path_params["name"]
        self.context.stop(str(self.folder(name)))
        return RedirectResponse(pages.url_of(name), 303)

    async def resume(self, request: Request) -> Response:
        """Resume a run."""
        await self.form(request)
        name = request.path_params["name"]
        self.context.resume(str(self.folder(name)))
        return RedirectResponse(pages.url_of(name), 303)

    async def upload(self, request: Request) -> Response:
        """A file of rows, into the board's folder; one of the same name with other content stays as it is."""
        if not self.tokens.fits(request.headers.get("x-board-token", "")):
            return PlainTextResponse("load the page again", 403)
        name = plain_name(request.query_params.get("name", "").replace(" ", "_"), "name")
        content = await request.body()
        file = Path(name)
        if file.exists() and file.read_bytes() != content:
            return PlainTextResponse(f"{name} is here and holds something else: rename the file", 400)
        file.write_bytes(content)
        return PlainTextResponse(name)

    async def form(self, request: Request) -> dict[str, str]:
        """The fields of a form of ours.

        Raises:
            UserError: it is not ours, or too large.
        """
        return self._fields(await request.body())

    def _fields(self, body: bytes) -> dict[str, str]:
        """
        Raises:
            UserError: the form is not ours, or too large.
        """
        if len(body) > FORM_BYTES:
            raise UserError(f"the form has more than {FORM_BYTES:,} bytes", action="give the rows as a file")
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FORM_FIELDS)
        form = {name: values[0] for name, values in fields.items()}
        if not self.tokens.fits(form.pop("token", "")):
            raise UserError("the form belongs to another board, or to one that has ended", action="load the page again")
        return form

    async def ft(self, *arguments: str) -> tuple[int, str]:
        """Run `ft` and wait, one at a time: each loads what a plan needs.

        Returns:
            Its exit code, and what it printed; of an error with `--json` only the line for people.
        """

        def run() -> tuple[int, str]:
            try:
                ended = subprocess.run(
                    processes.ft(*arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                    timeout=PATIENCE, env={**processes.environment(), "NO_COLOR": "1"}, errors="replace",
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return (1, f"it took more than {PATIENCE} seconds; run it in a terminal: ft {' '.join(arguments)}")
            output = "" if ended.returncode and "--json" in arguments else ended.stdout
            return ended.returncode, f"{output}\n{ended.stderr}".strip()

        async with self._looking:
            return await asyncio.to_thread(run)

    async def schema(self) -> Mapping[str, Any]:
        """The schema of recipes, with the options of all that is installed; read once.

        Raises:
            UserError: a plugin is broken.
        """
        if not self._schema:
            code, output = await self.ft("schema")
            if code:
                raise UserError(output, action="ft plugins list says more")
            self._schema = json.JSONDecoder().raw_decode(output)[0]
        return self._schema

    def names(self) -> list[str]:
        """Of all runs, the one that began last at the end."""
        folders = runs_below(self.runs)
        for inside in groups_below(self.runs).values():
            folders += inside
        folders.sort(key=lambda folder: (folder / "run.json").stat().st_mtime if is_run(folder) else 0.0)
        return [folder.relative_to(self.runs).as_posix() for folder in folders]

    def _list(self) -> str:
        names = self.names()
        newest = names[: -MOST - 1 : -1]
        return pages.run_list([(name, self.recorded(self.runs / name)) for name in newest], len(names) - len(newest))

    def recorded(self, folder: Path) -> Recorded:
        """What a run's folder says; read again only when one of its files has changed."""
        stamp: list[object] = [is_running(folder)]
        for name in ("run.json", RECIPE, "plan.json", "result.json", "metrics.jsonl"):
            try:
                about = (folder / name).stat()
                stamp.append((about.st_mtime_ns, about.st_size))
            except OSError:
                stamp.append(None)
        known = self._read.get(folder)
        if known is None or known[0] != stamp:
            known = self._read[folder] = (stamp, read_run(folder))
        return known[1]

    def folder(self, name: str, *, begun: bool = True) -> Path:
        """Returns the folder of a run by its name.

        Args:
            begun: whether its folder must be there; else its log is enough.

        Raises:
            UserError: nothing under `runs` has this name, or the name is a path.
        """
        parts = name.split("/")
        if len(parts) <= 2 and all(PLAIN_NAME.fullmatch(part) for part in parts):
            folder = self.runs.joinpath(*parts)
            if is_run(folder) or (not begun and processes.log_of(folder).is_file()):
                return folder
        raise UserError(f"no run has the name {name!r}", action="the list names them")

    def _taken(self, name: str) -> bool:
        return not processes.is_free(self.runs / name)


def _file(content: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def sent(request: Request) -> Response:
        return Response(content, media_type=kind)

    return sent


async def _refused(request: Request, error: Exception) -> Response:
    return HTMLResponse(pages.error_page("This request failed", str(error)), 400)
