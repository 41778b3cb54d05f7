"""Chat with a run, its base and another run, side by side: a server of its own that ends with the board."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from finetooth_hooks import UserError
from finetooth_saving.run_folder import ARTIFACT
from finetooth_saving.runs import processes
from finetooth_wire.asked import next_message
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from finetooth_board import forms

if TYPE_CHECKING:
    from finetooth_board.app import Board

PATIENCE = 600
"""Seconds that loading may take."""
ENDS_WITH_US = """
import os, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
waits = threading.Thread(target=lambda: os._exit(child.wait() & 255))
waits.start()
sys.stdin.buffer.read()
child.terminate()
waits.join()
"""
"""Runs a command until it ends or nobody holds our input any more: a board that is killed leaves no model in memory."""

History = dict[str, list[dict[str, str]]]
"""Messages by model."""


class Talk:
    """Pages to chat, and the server behind them. It holds the models of one conversation at a time.

    Args:
        board: whose runs they are.
        scratch: a folder for the server.
    """

    def __init__(self, board: Board, scratch: Path) -> None:
        self._board, self._scratch = board, scratch
        self._server: subprocess.Popen[bytes] | None = None
        self._serves: tuple[str, ...] = ()
        self._address = ""
        self._turn = asyncio.Lock()

    async def page(self, request: Request) -> Response:
        """An empty conversation."""
        name, other = request.path_params["name"], request.query_params.get("with", "")
        return HTMLResponse(self._page(name, other, {}))

    async def ask(self, request: Request) -> Response:
        """Ask each of the models, and show their answers below what was said before."""
        form = await self._board.form(request)
        name, other = request.path_params["name"], form.get("with", "")
        models = self._models(name, other)
        history, question = _history(form.get("said", "{}"), models), form.get("text", "").replace("\r\n", "\n").strip()
        tokens = form.get("tokens", "")
        if not question or not tokens.isdecimal():
            raise UserError("the message is empty, or the number of tokens is none", action="go back and fill it in")
        try:
            async with self._turn:
                address = await asyncio.to_thread(self._serve, tuple(models.items()))
                for model in models:
                    messages = [*history[model], {"role": "user", "content": question}]
                    answer = await asyncio.to_thread(next_message, address, model, messages, tokens=int(tokens))
                    history[model] = [*messages, {"role": "assistant", "content": answer or "(nothing)"}]
        except UserError as error:
            whole_turns = {model: messages[: 2 * (len(history[model]) // 2)] for model, messages in history.items()}
            return HTMLResponse(self._page(name, other, whole_turns, str(error)), 400)
        return HTMLResponse(self._page(name, other, history))

    def _page(self, name: str, other: str, history: History, wrong: str = "") -> str:
        models = list(self._models(name, other))
        others = [run for run in self._board.names() if run != name and (self._board.runs / run / ARTIFACT).is_dir()]
        return forms.chat_page(name, self._board.tokens.token, models, history, others, other, wrong)

    def _models(self, name: str, other: str) -> dict[str, str]:
        """The models of a conversation by the names they are served by, each with the option that serves it: adapters
        of the same base share it.

        Raises:
            UserError: a run is not there, or does not say what its base was.
        """
        run = self._board.recorded(self._board.folder(name))
        if not run.model:
            raise UserError(f"run {name!r} does not say what its base model was", action="chat with another run")
        models = {run.model: "--model"}
        for run_name in filter(None, (name, other)):
            folder = self._board.folder(run_name)
            adapter = (folder / ARTIFACT / "adapter_config.json").is_file()
            shared = adapter and self._board.recorded(folder).model == run.model
            models[folder.as_posix()] = "--adapter" if shared else "--model"
        return models

    def _serve(self, models: tuple[tuple[str, str], ...]) -> str:
        """The address of a server that has these models; it is begun, and another one ended, if need be.

        Raises:
            UserError: it does not begin.
        """
        names = tuple(name for name, _ in models)
        if self._serves == names and self._server is not None and self._server.poll() is None:
            return self._address
        self.close()
        renderer = self._board.recorded(Path(names[1])).plan.get("recipe", {}).get("data", {}).get("renderer", "auto")
        settings = [f"--set=data.renderer={renderer}"] if isinstance(renderer, str) and renderer != "auto" else []
        printed = ""
        for options in (models, tuple((name, "--model") for name in names)):  # an adapter may need a base for itself
            model_options = [f"{option}={name}" for name, option in options]
            printed = self._begin(
                ["serve", "openai", "--port=0", f"--folder={self._scratch / 'served'}", *model_options, *settings]
            )
            match = re.search(r"^openai: (\S+)$", printed, re.MULTILINE)
            if match is not None:
                self._serves, self._address = names, match[1]
                return self._address
            self.close()
        raise UserError(printed.strip() or "the models could not be served", action="ft chat says more")

    def _begin(self, arguments: list[str]) -> str:
        """Begin a server and wait until it serves or has ended; returns what it printed."""
        log = self._scratch / "served.log"
        output: IO[bytes]
        with log.open("wb") as output:
            self._server = subprocess.Popen(
                [sys.executable, "-c", ENDS_WITH_US, *processes.ft(*arguments)],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=processes.environment(),
            )  # fmt: skip
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            ended = self._server.poll() is not None
            printed = log.read_text(encoding="utf-8", errors="replace")
            if ended or re.search(r"^openai: \S+$", printed, re.MULTILINE):
                return printed
            time.sleep(0.1)
        return f"it took more than {PATIENCE} seconds to load the models"

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait()
        self._server, self._serves = None, ()


def _history(text: str, models: Mapping[str, str]) -> History:
    """What was said before, as the form keeps it.

    Raises:
        UserError: it is not what this board wrote.
    """
    try:
        saved = json.loads(text)
        history = {model: [{"role": str(m["role"]), "content": str(m["content"])} for m in saved.get(model, ())]
                   for model in models}  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError("what was said before cannot be read", action="begin the conversation again") from error
    if len({len(messages) for messages in history.values()}) > 1:
        raise UserError("the models have not been asked the same", action="begin the conversation again")
    return history
