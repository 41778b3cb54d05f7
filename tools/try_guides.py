"""Run the first script of each guide to a server at a server of `ft serve`, all of it as installed.

python tools/try_guides.py [FT]          default: the ft beside this Python
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

GUIDES = Path(__file__).resolve().parents[1] / "docs/guides"
ADDRESS = "http://server:8420"
"""What stands in the guides for the server."""
TRIED = ("serve.md", "sdk.md", "assistant.md")
LEARNS = {"serve.md": 5, "assistant.md": 5}
"""Guides whose script prints so many losses first: the last is less than the first."""


def script(guide: str) -> str:
    """The first script of a guide.

    Raises:
        SystemExit: it has none, or one that asks no server.
    """
    found = re.search(r"^```python\n(.*?)^```$", (GUIDES / guide).read_text(encoding="utf-8"), re.S | re.M)
    if found is None or ADDRESS not in found[1]:
        sys.exit(f"{guide}: its first script names no {ADDRESS}: put one that does first")
    return found[1]


def try_guides(ft: Path, scratch: Path, model: str = "smollm2-135m", *options: str) -> Iterator[tuple[str, str]]:
    """Each guide, and what its script printed.

    Args:
        ft: the command; the Python beside it runs the scripts.
        scratch: a folder for the server's.
        options: of `ft serve`.

    Raises:
        SystemExit: the server does not start, a script fails, or a model does not learn what it is shown.
    """
    command = [str(ft), "serve", "api", "mcp", "--model", model, "--port", "0", "--folder", str(scratch / "server")]
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FT_PLUGINS", "VIRTUAL_ENV")}
    serving = subprocess.Popen(
        [*command, *options], cwd=scratch, env={**clean, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, text=True
    )
    assert serving.stdout is not None
    try:
        said = serving.stdout.readline()
        found = re.search(r" at (http://\S+) ", said)
        if found is None:
            sys.exit(f"ft serve does not say where it is: {said!r}")
        for guide in TRIED:
            yield guide, _printed(guide, ft.with_name("python"), found[1], model, scratch)
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(60)


def _printed(guide: str, python: Path, url: str, model: str, scratch: Path) -> str:
    """What a guide's script printed."""
    text = script(guide).replace(ADDRESS, url).replace("smollm2-135m", model)
    done = subprocess.run([str(python), "-c", text], cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{guide}: its first script failed: {done.stderr.strip()[-2000:]}")
    losses = [float(line) for line in done.stdout.splitlines()[: LEARNS.get(guide, 0)]]
    if losses and losses[-1] >= losses[0]:
        sys.exit(f"{guide}: its losses do not fall: {losses}")
    return done.stdout.strip()


def main() -> int:
    """Try the guides with the command that is installed; the exit code."""
    ft = Path(sys.argv[1]) if sys.argv[1:] else Path(sys.executable).with_name("ft")
    with tempfile.TemporaryDirectory() as scratch:
        for guide, printed in try_guides(ft.absolute(), Path(scratch)):
            print(f"{guide}:\n{printed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
