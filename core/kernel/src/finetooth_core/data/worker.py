"""A worker: a separate Python process, which builds its parts from the recipe and renders rows.

It is started as a new process and not forked, since a fork copies locks that threads of this process (tokenizers,
OpenMP, CUDA) may hold, and since some platforms cannot fork; and as a plain subprocess, since multiprocessing would
import the user's main script again. It ends when its input does, so it never outlives the process that started it.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from finetooth_rows import worker_wire as wire
from finetooth_toolbox import blame


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends it
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with messages
    try:
        serve(incoming, outgoing)
    except (BrokenPipeError, EOFError):
        os._exit(1)


def serve(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """The first message says what to build, all others are rows."""
    first = wire.receive(incoming)
    if first is None:
        return
    try:
        rendering, notes = _build(first[0])
    except Exception as error:
        wire.send(outgoing, wire.pack_failure(error, traceback.format_exc(), blame.problem))
        return
    wire.send(outgoing, {"notes": notes})
    while (message := wire.receive(incoming)) is not None:
        header, body = message
        try:
            done = rendering(wire.unpack_work(header, body), render=header["render"])
            answer, parts = wire.pack_rendered(done)
        except Exception as error:
            wire.send(outgoing, wire.pack_failure(error, traceback.format_exc(), blame.problem))
            continue
        wire.send(outgoing, answer, *parts)


def _build(job: Mapping[str, Any]) -> tuple[Any, list[tuple[str, str]]]:
    """The parts of a `RunContext` of the same recipe, and its notes."""
    from finetooth_hooks.data.preparation import Limit
    from finetooth_hooks.data.preparation import Rendering as HowToRender
    from finetooth_rows.preparing import load_rendering
    from finetooth_rows.rendering_work import Rendering

    from finetooth_core.planning.context import RunContext
    from finetooth_core.plugins import manager
    from finetooth_core.session import opener
    from finetooth_core.settings.recipe import load

    base = Path(job["base"])
    recipe = load(job["recipe"], base=base)
    plugins = manager.start(files=job["plugins"], blocked=job["blocked"], base=base)
    context = RunContext(recipe, plugins.catalog, Path(job["folder"]), plugins, open_model=opener(plugins))
    rows = context.data.rows(job["split"], formats=job["formats"])
    limit = None if job["limit"] is None else Limit(*job["limit"])
    render = load_rendering(HowToRender(*job["rendering"]), context)
    return Rendering(context.log, rows, render, limit), context.log.told


if __name__ == "__main__":
    main()
