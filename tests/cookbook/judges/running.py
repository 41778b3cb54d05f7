"""The server, and recipes as processes of an interpreter that has the public client and cookbook."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.recipes import Recipe

PATIENCE = 1200.0
"""Seconds for one recipe."""


class Server:
    """`ft serve tinker` in a process of its own.

    Args:
        place: its working directory, where models are found by relative names.
        models: names to serve.
    """

    def __init__(self, place: Path, *models: str) -> None:
        command = [sys.executable, "-m", "finetooth", "serve", "tinker", "--port", "0", "--folder", "server"]
        for model in models:
            command += ["--model", model]
        self.log = place / "serve.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=place, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
        found = None
        while found is None:
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.1)
            found = re.search(r"at (http://\S+) \(", self.log.read_text())
        self.url = found[1]

    def stop(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)


@dataclass(frozen=True)
class Judge:
    """Starts recipes.

    Attributes:
        python: interpreter with the client and the cookbook.
        folder: where recipes run.
        url: of the server.
    """

    python: str
    folder: Path
    url: str

    def start(self, recipe: Recipe, log: str, *more: str) -> subprocess.Popen[str]:
        """A recipe under way; it logs to a folder `log`, and what it prints goes to a file."""
        environment = {
            **os.environ, "TINKER_BASE_URL": self.url, "TINKER_API_KEY": "tml-local", "TINKER_TELEMETRY": "0",
            "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(self.folder / "cache"), "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        words = [*recipe.command.split()[1:], f"log_path={self.folder / 'logs' / log}", *more]
        with self.printed(log).open("a") as printed:
            return subprocess.Popen(
                [self.python, *words],
                env=environment, cwd=self.folder, stdout=printed, stderr=printed, stdin=subprocess.DEVNULL, text=True,
            )  # fmt: skip

    def run(self, recipe: Recipe, log: str = "", *more: str) -> list[dict[str, Any]]:
        """Lines of its metrics; the recipe must have run to its end."""
        log = log or recipe.name
        code = self.start(recipe, log, *more).wait(PATIENCE)
        assert code == 0, self.printed(log).read_text()[-4000:]
        return self.lines(log, "metrics")

    def lines(self, log: str, name: str) -> list[dict[str, Any]]:
        """Whole lines of a JSON Lines file in a log folder; none if it is not there yet."""
        file = self.folder / "logs" / log / f"{name}.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def printed(self, log: str) -> Path:
        """What a recipe printed."""
        return self.folder / f"{log}.printed"

    def versions(self) -> dict[str, str]:
        """Of what judges."""
        script = (
            "import json, platform, importlib.metadata as m; print(json.dumps({'python': platform.python_version(), "
            "**{n: m.version(n) for n in ('tinker', 'tinker-cookbook', 'transformers', 'torch')}}))"
        )
        done = subprocess.run([self.python, "-c", script], capture_output=True, text=True, check=True)
        found: dict[str, str] = json.loads(done.stdout)
        return {name: version.partition("+")[0] for name, version in found.items()}
