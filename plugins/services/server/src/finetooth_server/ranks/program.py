"""One rank of a model that a server spreads over several processes: it has the engine, and executes the server's
requests to all ranks."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, FinetoothError, Interrupted

from finetooth_server.live import LiveModel, made_model
from finetooth_server.operations import OPERATIONS
from finetooth_server.ranks.lines import ServerLine
from finetooth_server.settings import LINE

WRITES, READS = ("save", "export"), ("load", "restore")
"""Methods of an engine that take a folder. Every rank calls them, since weights may have to be gathered."""


def serve_rank(context: CommandContext) -> None:
    """Execute requests until the server closes the line."""
    inherited = socket.socket(fileno=int(os.environ[LINE]))
    os.set_inheritable(inherited.fileno(), False)
    model: LiveModel | None = None
    with inherited:
        line = ServerLine(inherited)
        while (request := line.request()) is not None:
            try:
                if model is None:
                    engine = context.engine(request["recipe"])
                    model = made_model(context, "", request["recipe"], engine)
                    if os.environ["RANK"] == "0":
                        model.written = lambda *token: line.say(token)
                    value: Any = {"info": asdict(engine.info), "capabilities": sorted(engine.capabilities)}
                else:
                    _may_stop(model, request, line)
                    value = _executed(model, request)
                reply: dict[str, Any] = {"value": value if os.environ["RANK"] == "0" else None}
            except Interrupted as error:
                reply = {"interrupted": str(error)}
            except FinetoothError as error:
                reply = {"raised": str(error)}
            except Exception as error:
                reply = {"failed": f"{type(error).__name__}: {error}"}
            line.reply(reply)


def _may_stop(model: LiveModel, request: Mapping[str, Any], line: ServerLine) -> None:
    """Let the engine ask whether to stop. Each rank learns it at another time, so this is allowed only if the engine
    tells the others, or none waits: not between the two parts of a loss over the whole step."""
    if "interrupt" not in model.engine.capabilities:
        return
    loss = request["arguments"].get("loss")
    whole = loss is not None and model.loss(loss).together == "step"
    model.engine.interrupt_when((lambda: False) if whole else line.stopped)


def _executed(model: LiveModel, request: Mapping[str, Any]) -> Any:
    operation, arguments, seq = request["operation"], request["arguments"], int(request["seq"])
    if operation in READS:
        model.handles.clear()
        getattr(model.engine, operation)(Path(arguments["folder"]))
    elif operation in WRITES:
        _written(getattr(model.engine, operation), Path(arguments["folder"]))
    elif operation == "release":
        if (handle := model.handles.pop(seq, None)) is not None:
            model.engine.release(handle)
    else:
        return OPERATIONS[operation].run(model, arguments, seq)
    return None


def _written(write: Callable[[Path], None], folder: Path) -> None:
    """Rank 0 writes the folder; the others' files are removed at once."""
    if os.environ["RANK"] == "0":
        write(folder)
        return
    with tempfile.TemporaryDirectory() as own:
        write(Path(own) / "copy")
