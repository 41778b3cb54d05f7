"""`ft` where a terminal, a machine or a network is not as one would wish: handled, and in one line where it is said."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
"""What NO_COLOR asks not to be sent; bold and dim are no colours."""


@dataclass(frozen=True)
class Place:
    """A place, a command there, and what must hold.

    Attributes:
        environment: what differs from the test's own.
        says: a pattern in what is printed.
        terminal: columns of the terminal that it prints to; 0: it prints to pipes.
        fits: no line is wider than the terminal.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    code: int = 0
    says: str = ""
    terminal: int = 0
    fits: bool = False


RUN = ("run", "recipe.yaml", "train.max_steps=1")
NOWHERE = "/proc/nobody"
PLACES = (
    Place("40 columns: help", ("--help",), {"COLUMNS": ""}, terminal=40),
    Place("40 columns: runs", ("runs", "list"), {"COLUMNS": "", "NO_COLOR": "1"}, says="done", terminal=40, fits=True),
    Place("40 columns: plan", ("check", "recipe.yaml"), {"COLUMNS": "", "NO_COLOR": "1"}, terminal=40),
    Place("no colour", ("data", "preview", "recipe.yaml", "--rows", "1"), {"NO_COLOR": "1"}, terminal=80),
    Place("a dumb terminal", ("data", "preview", "recipe.yaml", "--rows", "1"), {"TERM": "dumb"}, terminal=80),
    Place(
        "LANG=C", ("data", "preview", "recipe.yaml", "--rows", "1"),
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ),
    Place("a home that cannot be written", RUN, {"HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE, "FT_CACHE": NOWHERE}),
    Place("no home", ("check", "recipe.yaml"), {"HOME": ""}),
    Place(
        "a port that is taken", ("serve", "openai", "--model", "{model}", "--port", "{port}", "--folder", "served"),
        code=2, says=r"^error: .*{port}.*\(.*--port.*\)$",
    ),
    Place(
        "a tracker whose server is away", (*RUN, 'trackers=[jsonl, {name: mlflow, uri: "http://127.0.0.1:{port}"}]'),
        {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}, says="mlflow",
    ),
    Place(
        "a tracker that nobody is logged in to", (*RUN, "trackers=[jsonl, {name: wandb, mode: online}]"),
        {"WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:{port}", "HOME": NOWHERE}, says="wandb",
    ),
)  # fmt: skip
NEEDS = {"mlflow": "a tracker whose server is away", "wandb": "a tracker that nobody is logged in to"}


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is taken, by something that never answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A recipe, rows that are not ASCII, and a run that has ended."""
    row = {"prompt": "Où est le café?", "completion": "日本 à côté."}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row, ensure_ascii=False) + "\n") * 4, encoding="utf-8")
    recipe = {
        "model": str(tiny_model), "data": {"train": "rows.jsonl", "renderer": "chatml"},
        "train": {"batch_size": 2, "precision": "fp32"}, "output": "runs/new",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    old = tmp_path / "runs" / "old"
    old.mkdir(parents=True)
    (old / "run.json").write_text("{}")
    (old / "recipe.yaml").write_text("model: toy\n")
    (old / "result.json").write_text(json.dumps({"status": "done", "steps": 3}))
    return tmp_path


def piped(call: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        call, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")


def on_terminal(call: list[str], folder: Path, environment: dict[str, str], columns: int) -> tuple[int, str]:
    """What a command prints to a terminal so many columns wide."""
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        call, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing
    )
    os.close(writing)
    pieces = []
    while True:
        try:
            piece = os.read(reading, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(reading)
    return process.wait(), b"".join(pieces).decode("utf-8", "replace").replace("\r\n", "\n")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_it_is_handled(place: Place, folder: Path, tiny_model: Path, port: int) -> None:
    for package, name in NEEDS.items():
        if place.name == name:
            pytest.importorskip(package, reason=f"{package} is not installed")

    def filled(text: str) -> str:
        return text.replace("{model}", str(tiny_model)).replace("{port}", str(port))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment |= {key: filled(value) for key, value in place.environment.items()}
    call = [sys.executable, "-m", "finetooth", *map(filled, place.command)]
    if place.terminal:
        code, out = on_terminal(call, folder, environment, place.terminal)
    else:
        code, out = piped(call, folder, environment)
    assert code == place.code, out
    assert "Traceback" not in out
    assert not COLOUR.search(out) or not {"NO_COLOR", "TERM"} & set(place.environment), out
    if place.says:
        pattern = filled(place.says)
        told = [line for line in out.splitlines() if re.search(pattern, line)]
        assert told, (pattern, out)
        if place.code == 2:
            assert len([line for line in out.splitlines() if line.startswith("error:")]) == 1, out
    if place.fits:
        assert max(map(len, out.splitlines())) <= place.terminal, out
    if place.command[0] == "run":
        assert json.loads((folder / "runs/new/result.json").read_text())["status"] == "done"
