"""Times the tasks of docs/guides/tasks.md as somebody would do them, and writes the table at the top of the page.

    .venv/bin/python tools/time_tasks.py

Each task's files are written and its commands typed in one folder, in order, with the models that the page names.
Reading is its words at 200 a minute. What is not timed: programs of others, and a server after it began to serve.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guides" / "tasks.md"
WORDS_A_MINUTE = 200
HEAD = "| task | commands | reading | commands take | together |"

_FENCE = re.compile(r"^(?:<!-- *(?P<marker>[^>]*?) *-->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_TABLE = re.compile(r"^\| task \|.*?(?=\n\n)(?:\n\nTimed [^\n]*(?=\n\n))?", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comment above it: `test`, `file: NAME`, `output`, `not run: WHY; timed by ...`."""

    marker: str
    language: str
    text: str


@dataclass(frozen=True)
class Task:
    """A section of the page."""

    title: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        return [Block(m["marker"] or "", m["language"], m["text"]) for m in _FENCE.finditer(self.text)]

    @property
    def commands(self) -> list[str]:
        """Lines that are typed."""
        return [line for one in self.blocks if one.language == "sh" for line in one.text.strip().splitlines()]

    @property
    def words(self) -> int:
        return len(re.sub(r"<!--.*?-->", "", self.text).split())

    @property
    def reading(self) -> float:
        """Seconds."""
        return 60 * self.words / WORDS_A_MINUTE


def tasks_of(text: str) -> list[Task]:
    """Sections of a page."""
    parts = re.split(r"^## ", text, flags=re.M)[1:]
    return [Task(*part.split("\n", 1)) for part in parts]


def run(task: Task, folder: Path, environment: Mapping[str, str]) -> float:
    """Do what a task says; seconds that its commands took.

    Raises:
        SystemExit: one of them ends otherwise than the page says, or says something else.
    """
    taken, printed = 0.0, ""
    for block in task.blocks:
        kind, _, argument = block.marker.partition(":")
        if kind == "file":
            file = folder / argument.strip()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            continue
        if kind.startswith("output"):
            for line in block.text.strip().splitlines():
                if line not in printed:
                    raise SystemExit(f"{task.title}: {line!r} is not in\n{printed}")
        if block.language != "sh":
            continue
        begun = time.monotonic()
        if kind == "test":
            expected = int(argument.split()[-1]) if argument else 0
        elif "timed by" in block.marker:
            expected = 0
        elif "until Ctrl-C" in block.marker:
            _until_it_serves(block.text, folder, environment)
            taken += time.monotonic() - begun
            continue
        else:
            continue
        done = subprocess.run(["bash", "-ec", block.text], cwd=folder, env=environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, check=False)  # fmt: skip
        if done.returncode != expected:
            raise SystemExit(f"{task.title}: exit code {done.returncode}\n{block.text}\n{done.stdout}{done.stderr}")
        taken, printed = taken + time.monotonic() - begun, done.stdout + done.stderr
    return taken


def _until_it_serves(text: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Start a server, on this machine alone, and end it as soon as it says where it is."""
    words = [word.replace("0.0.0.0", "127.0.0.1") for word in shlex.split(text)]
    process = subprocess.Popen([*words, "--port", "0"], cwd=folder, env={**environment, "PYTHONUNBUFFERED": "1"},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("serving "):
            break
    else:
        raise SystemExit(f"{text}: it ended before it served\n{said}")
    process.terminate()  # Ctrl-C would not reach it where this was started without a terminal
    process.wait(60)


def table(tasks: Sequence[Task], seconds: Sequence[float], where: str) -> str:
    """The page's table, and the sentence below it."""
    rows = [HEAD, "|---|---|---|---|---|"]
    for task, taken in zip(tasks, seconds, strict=True):
        anchor = re.sub(r"[^\w -]", "", task.title).strip().lower().replace(" ", "-")
        both = f"{task.reading + taken:.0f} s"
        cells = (f"[{task.title}](#{anchor})", len(task.commands), f"{task.reading:.0f} s", f"{taken:.0f} s", both)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows) + f"\n\nTimed {where}."


def machine() -> str:
    """What these figures were taken on."""
    names = re.findall(r"^model name\s*: (.+)$", _read("/proc/cpuinfo"), re.M)
    name = re.sub(r"\((?:R|TM)\)|CPU|Processor|@.*|\d+-Core", "", names[0] if names else platform.processor())
    return f"{len(os.sched_getaffinity(0))} threads of {' '.join(name.split())}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def written(page: str, new: str) -> str:
    """The page with another table."""
    if _TABLE.search(page) is None:
        raise SystemExit("the page has no table of tasks")
    return _TABLE.sub(lambda _: new, page, count=1)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    page: Path = parser.parse_args(given).page
    tasks = tasks_of(page.read_text(encoding="utf-8"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "docs").mkdir()
        (folder / "docs" / "recipes").symlink_to(ROOT / "docs" / "recipes")
        seconds = []
        for task in tasks:
            seconds.append(run(task, folder, environment))
            print(f"{task.title}: {len(task.commands)} commands, {seconds[-1]:.1f} s", flush=True)
    today = date.today()
    where = f"on {today.day} {today:%B %Y} on {machine()}"
    longest = max(task.reading + taken for task, taken in zip(tasks, seconds, strict=True))
    print(f"the longest takes {math.ceil(longest)} s")
    page.write_text(written(page.read_text(encoding="utf-8"), table(tasks, seconds, where)), encoding="utf-8")


if __name__ == "__main__":
    main()
