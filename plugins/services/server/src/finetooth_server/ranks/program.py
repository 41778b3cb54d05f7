"""One rank of a model that a server spreads over several processes: it has the engine, and executes what the server
sends to all ranks. Requests and replies are lines of JSON on a socket that the process inherits."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, FinetoothError
from finetooth_wire import json_parts

from finetooth_server.live import LiveModel, made_model
from finetooth_server.operations import OPERATIONS
from finetooth_server.settings import LINE

WRITES, READS = ("save", "export"), ("load", "restore")
"""Methods of an engine with a folder. Every rank makes the calls, since weights may have to be gathered."""


def serve_rank(context: CommandContext) -> None:
    """Execute what comes over the line until the server closes it."""
    line = socket.socket(fileno=int(os.environ[LINE]))
    os.set_inheritable(line.fileno(), False)
    model: LiveModel | None = None
    with line, line.makefile("rb") as requests:
        for text in requests:
            request = json_parts.loads(text)
            try:
                if model is None:
                    engine = context.engine(request["recipe"])
                    model = made_model(context, "", request["recipe"], engine)
                    value: Any = {"info": asdict(engine.info), "capabilities": sorted(engine.capabilities)}
                else:
                    value = _executed(model, request)
                reply: dict[str, Any] = {"value": value if os.environ["RANK"] == "0" else None}
            except FinetoothError as error:
                reply = {"raised": str(error)}
            except Exception as error:
                reply = {"failed": f"{type(error).__name__}: {error}"}
            line.sendall(json.dumps(reply).encode() + b"\n")


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
    """Rank 0 writes the folder; what the others write goes at once."""
    if os.environ["RANK"] == "0":
        write(folder)
        return
    with tempfile.TemporaryDirectory() as own:
        write(Path(own) / "copy")
