"""A worker process: builds one function and calls it with what it is sent, one line of JSON after the other.

The function runs in the main thread, so `signal.alarm` works in it. What it prints goes to standard error. The process
ends when nobody can send it anything any more, also while the function runs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any


def main() -> None:
    """The program: `python -m finetooth_workers.worker`."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)

    def say(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    how = json.loads(requests.readline() or b"null")
    if how is None:
        return
    try:
        function = built(how["build"], how["options"])
    except Exception as error:
        say({"raised": error_line(error)})
        return
    say({"ready": True})
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, lines), daemon=True).start()
    while True:
        request = json.loads(lines.get())
        try:
            reply = {"value": function(request)}
            json.dumps(reply)
        except Exception as error:
            reply = {"raised": error_line(error)}
        say(reply)


def _listen(requests: Any, lines: SimpleQueue[bytes]) -> None:
    for line in requests:
        lines.put(line)
    os._exit(0)


def built(reference: str, options: dict[str, Any]) -> Callable[[Any], Any]:
    """The result of `module:function` for the options."""
    module, _, name = reference.partition(":")
    function: Callable[[Any], Any] = vars(import_module(module))[name](**options)
    return function


def error_line(error: BaseException) -> str:
    """Type, text and place of an error, in one line."""
    text = " ".join(str(error).split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
