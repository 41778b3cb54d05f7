"""Every command of `ft`, where terminal, home and folder are not as one would wish.

Each is called twice in this process. In a *bare* place the streams know Latin-1 alone, the terminal is dumb, 40 columns
wide and asked to show no colour, the home cannot be written, and folder and rows are named and filled in other scripts.
In a *closed* one there is no home at all, and the folder in which the command stands cannot be written by anybody.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from finetooth_core.cli import main
from finetooth_core.cli.group import make_group
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State

CLOSED = Path("/sys")
"""A folder of Linux that takes no new file from anybody, not from root either."""

CALLS = {
    "run": "{recipe} train.max_steps=1 --output {new}",
    "resume": "{run}",
    "check": "{recipe} --output {new}",
    "advise": "{model} --memory 12",
    "data cache list": "",
    "data cache prune": "--all",
    "data check": "{recipe}",
    "data convert": "{rows} {new} --to messages",
    "data draft": "{rows} {new}.jsonl --model {model} --unjudged",
    "data prepare": "{recipe}",
    "data preview": "{recipe} --rows 1",
    "checkpoint diff": "{artifact} {artifact}",
    "checkpoint list": "{run}",
    "checkpoint prune": "{run} --keep-last 1 --yes",
    "checkpoint show": "{artifact}",
    "checkpoint verify": "{artifact}",
    "chat": "{run} --prompt {word} --max-tokens 4",
    "eval": "{model} --data {rows} --evaluator loss",
    "export": "{run} --to safetensors --output {new}",
    "quantize": "{model} --to int8 --data {rows} --output {new}",
    "plugins doctor": "--fast finetooth-jsonl",
    "plugins explain": "lora {recipe}",
    "plugins list": "",
    "plugins new": "acme-thing --kind loss",
    "plugins try": "finetooth-crossentropy --limit 60",
    "plugins show": "finetooth-lora",
    "schema": "--field train.seed",
    "completion": "bash",
    "adapters diff": "{artifact} {artifact}",
    "adapters merge": "{artifact} {artifact} --output {new}",
    "agent-docs": "sft",
    "audit verify": "",
    "board": "--port {port}",
    "calls drop": "c1 --folder {new}",
    "calls list": "--folder {new}",
    "doctor loss": "{recipe}",
    "doctor model": "{model}",
    "doctor run": "{run}",
    "doctor weights": "{model}",
    "encryption key": "{new}",
    "encryption rotate": "--folder {new} --encryption-key {new}",
    "encryption seal": "--folder {new} --encryption-key {new}",
    "encryption status": "--folder {new}",
    "fetch": "recipes",
    "import": "{config}",
    "init": "--yes --data {rows} --model {model}",
    "keys create": "--tenant a",
    "keys list": "",
    "keys revoke": "k1",
    "keys rotate": "k1",
    "launch": "{recipe} --hosts a,a",
    "merge": "{run} --output {new}",
    "profile": "{run}",
    "push": "{run} --to {new} --dry-run",
    "verify": "m --registry {new}",
    "registry add": "{run} --name m --registry {new}",
    "registry bom": "m --registry {new}",
    "registry card": "m --registry {new}",
    "registry collect": "--registry {new}",
    "registry curves": "m --registry {new}",
    "registry decision": "m --of production --registry {new}",
    "registry get": "m {new} --registry {new}",
    "registry hold": "m --from production --why late --registry {new}",
    "registry init": "{new}",
    "registry key": "{new}",
    "registry list": "--registry {new}",
    "registry lock": "",
    "registry log": "--registry {new}",
    "registry measure": "m --evaluator loss --data {rows} --registry {new}",
    "registry promote": "m --to production --registry {new}",
    "registry revert": "m --why {word} --registry {new}",
    "registry revoke": "k1 --registry {new}",
    "registry rollback": "m --channel production --why {word} --registry {new}",
    "registry serve": "--registry {new}",
    "registry show": "m --registry {new}",
    "registry sign": "m --key {new} --registry {new}",
    "registry trust": "k1 {new} --registry {new}",
    "registry verify": "m --registry {new}",
    "registry watch": "m --registry {new}",
    "report": "{run}",
    "reproduce": "{run}",
    "rollouts": "{run}",
    "runs compare": "{run} {run}",
    "runs du": "{run}",
    "runs list": "--folder {runs}",
    "runs rm": "{other} --yes",
    "runs show": "{run}",
    "score": "{model} {rows}",
    "serve": "openai --model {model} --port {port}",
    "serve-vllm": "{model} --print",
    "simulate": "{recipe} --islands 2",
    "sweep": "{recipe}",
    "watch": "{run}",
}  # fmt: skip
"""What each is called with."""


LEAVE = {
    "fetch": "recipes", "import": "recipe.yaml", "init": "recipe.yaml", "keys create": "runs",
    "plugins new": "acme-thing", "registry key": "new-\u00e9.pub",
}  # fmt: skip
"""What some leave where they stand, all others nothing."""


def leaves() -> Iterator[str]:
    """All commands, those of groups too."""

    def below(command: click.Command, context: click.Context, name: str) -> Iterator[str]:
        if not isinstance(command, click.Group):
            yield name
            return
        for word in command.list_commands(context):
            found = command.get_command(context, word)
            assert found is not None
            yield from below(found, click.Context(found, parent=context, info_name=word), f"{name} {word}".strip())

    group = make_group()
    yield from below(group, click.Context(group, obj=State(StartOptions())), "")


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with rows, a recipe, another tool's configuration and a run, all named or filled beyond ASCII."""
    folder = tmp_path_factory.mktemp("places") / "caf\u00e9-\u65e5\u672c"
    folder.mkdir()
    row = {"prompt": "O\u00f9 est le caf\u00e9?", "completion": "\u65e5\u672c \u00e0 c\u00f4t\u00e9."}
    (folder / "rows-\u00e9.jsonl").write_text((json.dumps(row, ensure_ascii=False) + "\n") * 4, encoding="utf-8")
    recipe = {
        "model": str(tiny_model), "data": {"train": str(folder / "rows-\u00e9.jsonl"), "renderer": "chatml"},
        "adapter": {"name": "lora", "rank": 2}, "train": {"batch_size": 2, "precision": "fp32"},
        "trackers": ["console", "jsonl"],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    other = "base_model: m\ndatasets: [{path: caf\u00e9.jsonl, type: alpaca}]\nsequence_len: 64\nlora_alhpa: \u00e9\n"
    (folder / "axolotl.yml").write_text(other, encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "train.max_steps=2", "--output", str(folder / "runs/\u00e9")]) == 0
    return folder


@pytest.fixture
def call(
    trained: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Answer]]:
    """Calls a command with streams of an encoding."""
    for name in ("FT_CACHE", "FT_PLUGINS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = trained / "runs/\u00e9"
        shutil.copytree(run, tmp_path / "other")
        names = {
            "recipe": trained / "recipe.yaml", "rows": trained / "rows-\u00e9.jsonl", "run": run, "runs": run.parent,
            "artifact": run / "artifact", "config": trained / "axolotl.yml", "model": tiny_model, "other":
            tmp_path / "other", "new": tmp_path / "new-\u00e9", "port": taken.getsockname()[1], "word": "O\u00f9?",
        }  # fmt: skip

        def calling(command: str, encoding: str) -> Answer:
            raw = io.BytesIO(), io.BytesIO()
            for stream, buffer in zip(("stdout", "stderr"), raw, strict=True):
                monkeypatch.setattr(sys, stream, io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
            words = [*command.split(), *(word.format(**names) for word in CALLS[command].split())]
            code = main(words)
            return Answer(code, *(buffer.getvalue().decode(encoding) for buffer in raw))

        yield calling


def held(answer: Answer) -> None:
    """It did what it should, or said in one line why not."""
    said = answer.out + answer.err
    errors = [line for line in answer.err.splitlines() if line.startswith("error:")]
    assert answer.code in (0, 2) or not errors, said
    assert len(errors) == (answer.code == 2), said
    assert not re.search(r"Traceback|a bug;|codec can't", said), said
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]", said), said


def test_every_command_is_called() -> None:
    assert sorted(leaves()) == sorted(CALLS)


@pytest.mark.slow
@pytest.mark.parametrize("command", CALLS)
def test_bare(command: str, call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "40", "HOME": "/proc/nobody", "LANG": "C", "LC_ALL": "C"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    held(call(command, "latin-1"))
    assert {file.name for file in tmp_path.iterdir()} - {"other", "new-\u00e9"} == {*filter(None, [LEAVE.get(command)])}


@pytest.mark.slow
@pytest.mark.skipif(not CLOSED.is_dir(), reason="no folder that nobody can write")
@pytest.mark.parametrize("command", CALLS)
def test_closed(command: str, call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.chdir(CLOSED)
    before = set(CLOSED.iterdir())
    held(call(command, "utf-8"))
    assert set(CLOSED.iterdir()) == before
