"""A process that has everything imported and forks a child for each command of `ft`: a start takes no time, and kills
come while a run trains and saves.

    python zygote.py    reads one JSON object a line: {"arguments", "log", "environment", "folder", "ranks"}
                        answers {"pid"} when the child runs, {"status"} when it has ended

A child kills itself at a point that the variable FT_KILL_AT names: `rename:3:before` is just before the third rename
of the process, `send:2:after` just after the second request to object storage. Those of runs that learn from rollouts
are `sample`, `token`, `score`, `put` and `post`, of those over ranks `sum` and `gather`, see INSIDE. With `ranks`, the
launcher's ranks are forks too, and the one that FT_KILL_RANK names kills itself.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODULES = (
    "finetooth_core.running.loop",
    "finetooth_core.planning.driven",
    "finetooth_core.planning.plan",
    "finetooth_lora.layers",
    "finetooth_torch.engine",
    "scipy.optimize",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)
"""What a child would import, beside the plugins that its recipe picks."""
OF_RANKS = (
    "finetooth_launching.ranks", "finetooth_ddp.strategy", "finetooth_fsdp.strategy", "finetooth_pipeline.strategy",
    "finetooth_diloco.strategy", "finetooth_context.strategy",
)  # fmt: skip
"""The same over ranks."""
OF_MLX = ("finetooth_mlx.backend", "finetooth_mlx.engine", "mlx_lm.models.llama")
"""The same where MLX is installed."""
INSIDE = {
    "sample": ("finetooth_rollouts.checked_sampler", "CheckedSampler", "sample"),
    "token": ("finetooth_torch.generation.rows_in_progress", "Writing", "step"),
    "mlx_token": ("finetooth_mlx.generation", "Writing", "step"),
    "score": ("finetooth_rollouts.drawing", "Drawing", "_score"),
    "put": ("finetooth_serversamplers.vllm", "VllmSampler", "_put"),
    "post": ("finetooth_serversamplers.asking", "Server", "post"),
    "sum": ("finetooth_torchshared.collective", "TorchCollective", "sum"),
    "gather": ("finetooth_torchshared.collective", "TorchCollective", "gather"),
}
"""Calls of the product at which a child can kill itself: answers to a batch of prompts, the next token of all of them,
their rewards, the weights on their way into a server, and a request to it; sums over ranks, and what they say to each
other."""
KINDS = ("adapter", "family", "format", "loss", "method", "optimizer", "renderer", "schedule")


def main() -> None:
    """Serve until the input ends."""
    for module in (*MODULES, *OF_RANKS, *(OF_MLX if find_spec("mlx_lm") else ())):
        import_module(module)
    catalog = import_module("finetooth_core.plugins.manager").start().catalog
    load_builder = import_module("finetooth_core.plugins.builders").load_builder
    for registered in (one for kind in KINDS for one in catalog.all(kind)):
        load_builder(registered.entry)
    import_module("finetooth_native.build").library()  # compiled once
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("something that was imported has begun a thread, which no child would have")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(order)
        answer(pid=pid)
        _, status = os.waitpid(pid, 0)
        answer(status=os.waitstatus_to_exitcode(status))


def answer(**content: int) -> None:
    """One line to whoever gave the order."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def child(order: dict[str, Any]) -> None:
    """Run one command and end the process."""
    from finetooth_core.cli import main as ft

    with Path(order["log"]).open("ab", buffering=0) as log, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    sys.argv = ["ft", *order["arguments"]]  # which a launcher repeats to its ranks
    if order["ranks"]:
        import_module("finetooth_launching.ranks").subprocess.Popen = Fork
    else:
        arm(os.environ.get("FT_KILL_AT", ""))
    run(ft, order["arguments"])


def run(ft: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Run a command and end the process."""
    code = 70
    try:
        code = ft(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Fork:
    """A rank as a fork of the launcher, which computes nothing: in place of `subprocess.Popen`.

    Args:
        command: `python -m finetooth` and its arguments.
        env: its variables.
        stderr: where it writes; None: where the launcher does.
    """

    def __init__(self, command: list[str], env: dict[str, str], stderr: Any = None, **of_files: Any) -> None:
        del of_files
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if stderr is not None:
            os.setsid()
            for file in (1, 2):
                os.dup2(stderr.fileno(), file)
        os.environ.clear()
        os.environ.update(env)
        if env["RANK"] == env.get("FT_KILL_RANK"):
            arm(env.get("FT_KILL_AT", ""))
        run(import_module("finetooth_core.cli").main, command[3:])

    def poll(self) -> int | None:
        return self._waited(os.WNOHANG)

    def wait(self) -> int | None:
        return self._waited(0)

    def _waited(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def arm(point: str) -> None:
    """Have the process killed at a point."""
    if not point:
        return
    what, number, when = point.split(":")
    if what == "send":
        from botocore import httpsession

        httpsession.URLLib3Session.send = at(httpsession.URLLib3Session.send, int(number), when)
        return
    if what in INSIDE:
        module, of, name = INSIDE[what]
        owner = getattr(import_module(module), of)
        setattr(owner, name, at(getattr(owner, name), int(number), when))
        return
    setattr(os, what, at(getattr(os, what), int(number), when))


def at(function: Callable[..., Any], number: int, when: str) -> Callable[..., Any]:
    """The function, or what is awaited of it, at whose call of that number the process is killed."""
    calls = 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != number:
            return function(*arguments, **options)
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if inspect.isawaitable(result):
            return killed_after(result)
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


async def killed_after(awaited: Any) -> None:
    """Wait for it, and be killed."""
    await awaited
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
