"""A server that a run starts by words of its recipe: its own process, ended with the run."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from finetooth_hooks import RecipeError

SHOWN = 500
"""Characters of the end of a server's output that a message shows."""


class ServerProcess:
    """Starts a server without a shell, and ends it with its child processes.

    Args:
        command: program and arguments.
        setting: that gave them, for messages.
        folder: where it runs; None: where the run was started.
        log: file that gets its output, at its end; None: it shares the terminal.
        variables: of its environment, where they are not set.
    """

    def __init__(
        self, command: Sequence[str], setting: str, *, folder: Path | None = None, log: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._command, self._setting, self._folder, self._log = list(command), setting, folder, log
        self._variables = dict(variables or {})
        self._running: subprocess.Popen[bytes] | None = None
        atexit.register(self.end)

    @property
    def runs(self) -> bool:
        """It was started here and has not ended."""
        return self._running is not None and self._running.poll() is None

    def begin(self) -> bool:
        """Have it running.

        Returns:
            Whether it was started now.

        Raises:
            RecipeError: the command cannot be run.
        """
        if self.runs:
            return False
        self.end()
        try:
            output = None if self._log is None else self._log.open("ab")
            try:
                self._running = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._folder,
                    env={**self._variables, **os.environ}, start_new_session=True,
                )  # fmt: skip
            finally:
                if output is not None:
                    output.close()
        except OSError as error:
            where = error.filename or self._command[0]
            raise RecipeError(self._setting, f"{where}: {error.strerror}", action="fix it") from error
        return True

    def ended(self) -> str:
        """How it ended: its exit code, and the end of its output where that is in a file; empty while it runs."""
        if self._running is None or (code := self._running.poll()) is None:
            return ""
        return f"{self._command[0]} ended with {code}{self.said()}"

    def said(self) -> str:
        """`; LOG ends: ...` in one line; empty without a log, or where it wrote nothing."""
        if self._log is None or not self._log.exists():
            return ""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - 4 * SHOWN))
            text = " ".join(file.read().decode("utf-8", "replace").split())[-SHOWN:]
        return f"; {self._log} ends: {text}" if text else ""

    def end(self) -> None:
        """End the server and its child processes: workers of a killed server continue to run, and keep the device's
        memory."""
        running, self._running = self._running, None
        if running is None:
            return
        if running.poll() is None:
            running.terminate()
            with suppress(subprocess.TimeoutExpired):
                running.wait(10)
        with suppress(ProcessLookupError, AttributeError):  # Windows has no groups
            os.killpg(running.pid, signal.SIGKILL)
        running.kill()
        running.wait()
