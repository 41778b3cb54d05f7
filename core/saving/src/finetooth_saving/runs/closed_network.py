"""Runs whose network is closed: `data.classification.egress: never`.

The run's process gets a separate network namespace with only the loopback device. No process or library of the run can
leave it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from finetooth_hooks.errors import EngineError, PlanError, UserError
from finetooth_hooks.reports import Evaluation, Outcome, StepReport

_INSIDE = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    fcntl.ioctl(line, 0x8914, struct.pack("16sh14x", b"lo", 1 | 0x40))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Starts the loopback device, over which the ranks of a run communicate, and executes the command."""


def is_closed() -> bool:
    """Whether this process has no network device but loopback."""
    return {name for _, name in socket.if_nameindex()} <= {"lo"}


def must_close(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe forbids a network and this process has one."""
    classification = (recipe.get("data") or {}).get("classification") or {}
    return classification.get("egress") == "never" and not is_closed()


def run_closed(
    command: Sequence[str], *, output: IO[Any] | int | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Run a command in a separate network namespace, and wait for it.

    Args:
        command: a program, as an absolute path, and its arguments.
        output: receives its output; None: the output of this process.
        environment: variables to set for it.

    Returns:
        Its exit code.

    Raises:
        PlanError: this machine cannot close the network.
    """
    unshare = shutil.which("unshare")
    closing = [unshare or "unshare", "--user", "--map-root-user", "--net"]
    tried = subprocess.run([*closing, "true"], capture_output=True, text=True, check=False) if unshare else None
    if tried is None or tried.returncode:
        why = tried.stderr.strip().splitlines()[-1] if tried and tried.stderr.strip() else "unshare is not installed"
        raise PlanError(
            f"data.classification.egress is never, and this machine cannot close the network: {why}",
            action="allow user namespaces, or start it in a container without a network",
        )
    started = [*closing, sys.executable, "-c", _INSIDE, *command]
    variables = {**os.environ, **(environment or {})}
    with subprocess.Popen(started, stdout=output, stderr=output, env=variables) as process:
        if threading.current_thread() is not threading.main_thread():
            return process.wait()  # signals interrupt the main thread
        # a terminal sends the interrupt key to both, and the run handles it; the end of this process ends the run
        before = signal.signal(signal.SIGINT, lambda number, frame: None)
        ending = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGTERM, ending)


def train(recipe: str, folder: Path, plugins: Sequence[str], resuming: object = None) -> Outcome:
    """Train a recipe, or resume its run, in a process with a closed network, with the exports of the recipe.

    Args:
        recipe: as YAML.
        folder: of the run.
        plugins: plugins that the user named in addition to the recipe.
        resuming: how the run resumes, an object with what `ft resume` takes: `overrides`, `at`, `accept_changes`,
            `strict`; None: it begins.

    Returns:
        The outcome, with the history from metrics.jsonl.

    Raises:
        FinetoothError: this machine cannot close the network, or the run failed before it had begun; with its error
            line.
    """
    from finetooth_saving.history import report_of
    from finetooth_saving.run_folder import RECIPE, outcome_of
    from finetooth_saving.runs.recorded import read_run

    with tempfile.TemporaryDirectory(prefix="finetooth-") as place, tempfile.TemporaryFile("w+") as output:
        file = Path(place) / RECIPE
        file.write_text(recipe, encoding="utf-8")
        words = ["run", str(file), "--output", str(folder)] if resuming is None else _resume(folder, vars(resuming))
        command = [sys.executable, "-m", "finetooth", *words]
        code = run_closed(command, output=output, environment={"FT_PLUGINS": ",".join(plugins)})
        output.seek(0)
        said = output.read().strip().rpartition("\n")[2].removeprefix("error: ")
    outcome = outcome_of(folder)
    if outcome is None or code not in (0, outcome.exit_code):
        problem, _, action = said.partition(" (")
        raise (UserError if code == 2 else EngineError)(problem, action=action.removesuffix(")"))
    run = read_run(folder)
    made = [report_of(kind, {name: value for name, value in line.items() if name != "event"})
            for kind, lines in (("step", run.steps), ("evaluation", run.evaluations)) for line in lines]  # fmt: skip
    return replace(
        outcome,
        history=tuple(report for report in made if isinstance(report, StepReport)),
        evaluations=tuple(report for report in made if isinstance(report, Evaluation)),
    )


def _resume(folder: Path, resuming: Mapping[str, Any]) -> list[str]:
    """
    Raises:
        PlanError: the arguments have another recipe for the run, which `ft resume` cannot express.
    """
    check_closed(wanted=resuming["overrides"] is None)
    step = [] if resuming["at"] is None else ["--at", str(resuming["at"])]
    flags = [f"--{name.replace('_', '-')}" for name in ("accept_changes", "strict") if resuming[name]]
    return ["resume", str(folder.absolute()), *resuming["overrides"], *step, *flags]


def facts() -> dict[str, str]:
    """Facts for a record about the closed network of this process; empty if it is open."""
    return {"network": "closed"} if is_closed() else {}


def check_closed(*, wanted: bool) -> None:
    """Check that the network is closed if the recipe demands it.

    Raises:
        PlanError: the network must be closed, and this process has one.
    """
    if wanted and not is_closed():
        raise PlanError(
            "data.classification.egress is never, and this process can reach a network",
            action="start it with ft run or ft resume, which close the network",
        )
