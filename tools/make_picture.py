"""Draw a real run: docs/images/quickstart.svg from what `ft run` prints, docs/images/loss.svg from its metrics.

    python tools/make_picture.py [--recipe RECIPE] [--log LOG]

Runs the recipe on a terminal of its own and keeps every byte it prints in LOG; with a LOG that exists, nothing is run
and the picture is drawn from it. The pictures are committed; nothing checks that they are new.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
COLUMNS, ROWS = 110, 50
_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """As much of a terminal as a live line needs: a colour code stays in the line, a cursor move is carried out."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = 0
        self.fresh = False

    def feed(self, text: str) -> None:
        """Take what a program printed."""
        position = 0
        while position < len(text):
            found = _CONTROL.match(text, position)
            if found:
                self.control(found)
                position = found.end()
                continue
            self.character(text[position])
            position += 1

    def control(self, code: re.Match[str]) -> None:
        """Colour is kept, up and erase are done, anything else means nothing in a picture."""
        number, letter = code[1], code[2]
        if letter == "m":
            self.write(code[0])
        elif letter == "A":
            self.row = max(0, self.row - int(number or 1))
        elif letter == "K":
            self.lines[self.row] = ""

    def character(self, character: str) -> None:
        """One character; a line that is written from its beginning again is replaced."""
        if character == "\r":
            self.fresh = True
        elif character == "\n":
            self.row += 1
            self.fresh = False
            if self.row == len(self.lines):
                self.lines.append("")
        elif character >= " ":
            self.write(character)

    def write(self, text: str) -> None:
        """Append to the line."""
        if self.fresh:
            self.lines[self.row], self.fresh = "", False
        self.lines[self.row] += text


def record(command: Sequence[str], log: Path) -> int:
    """Run a command on a terminal of its own, keep and show what it prints; its exit code."""
    with log.open("wb") as file:

        def read(descriptor: int) -> bytes:
            data = os.read(descriptor, 4096)
            file.write(data)
            return data

        child, descriptor = pty.fork()
        if child == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS), LINES=str(ROWS))
            os.execvp(command[0], list(command))
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        try:
            while data := read(descriptor):
                os.write(sys.stdout.fileno(), data)
        except OSError:  # the other end is closed: the program has ended
            pass
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def draw(command: str, output: str) -> str:
    """The picture of a terminal, as SVG."""
    screen = Screen()
    screen.feed(output)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", style="bold"))
    for line in screen.lines:
        console.print(Text.from_ansi(line), soft_wrap=False, crop=True)
    return console.export_svg(title="finetooth", clear=True)


def curve(losses: Sequence[float]) -> str:
    """The loss of every step as a line, as SVG."""
    width, height, margin = 720, 260, 44
    low, high = 0.0, max(losses)
    across = (width - 2 * margin) / max(1, len(losses) - 1)
    points = [
        (margin + across * index, height - margin - (loss - low) / (high - low) * (height - 2 * margin))
        for index, loss in enumerate(losses)
    ]
    path = " ".join(f"{'M' if index == 0 else 'L'}{x:.1f},{y:.1f}" for index, (x, y) in enumerate(points))
    text = 'font-family="sans-serif" font-size="12" fill="#555"'
    floor, ceiling = height - margin, margin
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>training loss by step</title>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            f'<path d="M{margin},{ceiling} V{floor} H{width - margin}" fill="none" stroke="#999"/>',
            f'<path d="{path}" fill="none" stroke="#2563eb" stroke-width="2"/>',
            f'<text x="{margin}" y="{ceiling - 12}" {text}>training loss, nats per token</text>',
            f'<text x="{margin - 6}" y="{ceiling + 4}" text-anchor="end" {text}>{high:.1f}</text>',
            f'<text x="{margin - 6}" y="{floor + 4}" text-anchor="end" {text}>0</text>',
            f'<text x="{margin}" y="{floor + 18}" {text}>step 1</text>',
            f'<text x="{width - margin}" y="{floor + 18}" text-anchor="end" {text}>step {len(losses)}</text>',
            "</svg>",
            "",
        ]
    )


def main() -> int:
    """Run, if there is no log yet, and draw; the exit code of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="docs/recipes/quickstart.yaml")
    parser.add_argument("--log", type=Path, default=Path("quickstart.log"))
    parser.add_argument("--output", default="runs/quickstart", help="run folder")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    shown = f"ft run {arguments.recipe}"
    if not arguments.log.exists():
        code = record(
            [str(Path(sys.executable).with_name("ft")), *shown.split()[1:], "--output", arguments.output], arguments.log
        )
        if code:
            return code
    IMAGES.mkdir(parents=True, exist_ok=True)
    output = arguments.log.read_bytes().decode()  # read_text would turn every carriage return into a new line
    (IMAGES / "quickstart.svg").write_text(draw(shown, output), encoding="utf-8")
    lines = (Path(arguments.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row and "learning_rate" in row]
    (IMAGES / "loss.svg").write_text(curve(losses), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
