"""Draw a real run as a terminal that moves: docs/images/run.svg, animated by CSS alone.

    python tools/make_animation.py [--log LOG]

Types COMMANDS in a folder with the example rows, on a terminal of its own, and keeps what was printed, with its times,
in LOG; with a LOG that exists, nothing is run. Waits are shortened; nothing else is changed. The picture is committed;
nothing checks that it is new.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

from make_picture import IMAGES, ROOT, Screen
from rich.text import Text

COLUMNS, ROWS = 100, 26
COMMANDS = (
    "ft init --yes --data support.csv",
    "ft run recipe.yaml train.max_steps=20 --output runs/bot",
    "ft chat runs/bot --prompt 'Do you ship to Austria?' --max-tokens 24",
)
LONGEST, SHORTEST, LAST = 1.2, 0.04, 6.0
"""Seconds between two changes, at most and at least, and for which the end stays."""
SIZE, LINE = 13, 18
STYLE = (
    "text{{font:{size}px ui-monospace,Menlo,Consolas,monospace;fill:#d4d4d4;white-space:pre}}.p{{fill:#7ec699}}"
    "@media (prefers-reduced-motion:reduce){{*{{animation:none!important}}.gone{{display:none}}}}"
)


@dataclass(frozen=True)
class Shown:
    """A line of the terminal: where it stands, what it says, and from when until when; None: until the end."""

    row: int
    text: str
    begins: float
    ends: float | None


def record(folder: Path) -> list[tuple[float, str]]:
    """Type the commands; what was printed, and when.

    Raises:
        SystemExit: one of them fails.
    """
    import pexpect

    printed: list[tuple[float, str]] = []
    size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    own = {**os.environ, **size, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    for command in COMMANDS:
        printed.append((time.monotonic(), f"$ {command}\r\n"))
        program, *words = shlex.split(command)
        terminal = pexpect.spawn(program, words, cwd=str(folder), env=own, encoding="utf-8", dimensions=(ROWS, COLUMNS))
        while True:
            try:
                printed.append((time.monotonic(), terminal.read_nonblocking(4096, timeout=900)))
            except pexpect.EOF:
                break
        terminal.close()
        if terminal.exitstatus:
            raise SystemExit(f"{command} ended with {terminal.exitstatus}:\n{''.join(text for _, text in printed)}")
    return printed


def shown(printed: Sequence[tuple[float, str]]) -> tuple[list[Shown], list[tuple[float, int]], float]:
    """Every line with its times, how far the screen has scrolled and since when, and how long it all takes."""
    screen, now = Screen(), 0.0
    last: float | None = None
    open_lines: dict[int, tuple[str, float]] = {}
    lines: list[Shown] = []
    scrolled = [(0.0, 0)]
    for at, text in printed:
        now += 0.0 if last is None else min(max(at - last, SHORTEST), LONGEST)
        last = at
        screen.feed(text)
        for row, line in enumerate(screen.lines):
            plain = Text.from_ansi(line).plain.rstrip()[:COLUMNS]
            before = open_lines.get(row, ("", now))
            if plain != before[0]:
                if before[0]:
                    lines.append(Shown(row, *before, now))
                open_lines[row] = (plain, now)
        down = max(0, len(screen.lines) - ROWS)
        if down != scrolled[-1][1]:
            scrolled.append((now, down))
    lines += [Shown(row, text, begins, None) for row, (text, begins) in open_lines.items() if text]
    return [line for line in lines if line.ends is None or line.ends > line.begins], scrolled, now + LAST


def draw(printed: Sequence[tuple[float, str]]) -> str:
    """The moving picture, as SVG."""
    lines, scrolled, whole = shown(printed)
    frames: dict[str, str] = {}
    drawn = []
    for line in lines:
        begins, ends = 100 * line.begins / whole, 100 * (whole if line.ends is None else line.ends) / whole
        name = frames.setdefault(_visible(begins, ends), f"v{len(frames)}")
        kind = ("p " if line.text.startswith("$ ") else "") + ("gone" if line.ends is not None else "")
        look = f' class="{kind.strip()}"' if kind.strip() else ""
        style = f"animation:{name} {whole:.2f}s step-end infinite"
        drawn.append(f'<text x="12" y="{LINE * line.row + 16}"{look} style="{style}">{escape(line.text)}</text>')
    moves = "".join(f"{100 * at / whole:.2f}%{{transform:translateY({-LINE * down}px)}}" for at, down in scrolled)
    keys = "".join(f"@keyframes {name}{{{frame}}}" for frame, name in frames.items())
    width, height = 12 * 2 + round(0.605 * SIZE * COLUMNS), LINE * ROWS + 12
    end = f"transform:translateY({-LINE * scrolled[-1][1]}px);animation:s {whole:.2f}s step-end infinite"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="A run in a terminal"><style>{STYLE.format(size=SIZE)}{keys}@keyframes s{{{moves}}}</style>'
        f'<rect width="100%" height="100%" rx="8" fill="#1e1e1e"/><g style="{end}">{"".join(drawn)}</g></svg>\n'
    )


def _visible(begins: float, ends: float) -> str:
    """Keyframes of what is seen between two shares of the time, in percent."""
    hidden, seen = "{visibility:hidden}", "{visibility:visible}"
    frame = f"0%{seen if begins <= 0 else hidden}" + (f"{begins:.2f}%{seen}" if begins > 0 else "")
    return frame + (f"{ends:.2f}%{hidden}" if ends < 100 else "")


def main() -> None:
    """Record and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=Path("run.json"))
    log = parser.parse_args().log
    if not log.exists():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(ROOT / "examples/data/support.csv", folder)
            log.write_text(json.dumps(record(Path(folder))), encoding="utf-8")
    printed = [(float(at), str(text)) for at, text in json.loads(log.read_text(encoding="utf-8"))]
    assert all(before <= after for (before, _), (after, _) in pairwise(printed))
    (IMAGES / "run.svg").write_text(draw(printed), encoding="utf-8")


if __name__ == "__main__":
    main()
