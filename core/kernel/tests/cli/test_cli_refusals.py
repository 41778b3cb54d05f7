"""What `ft run` and `ft check` refuse, or end at: one line that says what is wrong, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_wrong_options_of_all_parts_are_said_at_once(ft: Any) -> None:
    wrong = ("method.strenght=1", "adapter={name: toy, strenght: 2}", "evaluate.evaluators=[{name: toy_score, x: 1}]")
    answer = ft("check", "recipe.yaml", "data.train=bad.toy", *wrong)
    assert answer.code == 2
    said = [line.partition(": unknown option of ")[::2] for line in answer.err.strip().splitlines()]
    assert [(setting, what.partition(" (")[0]) for setting, what in said] == [
        ("error: adapter.strenght", "adapter toy"),
        ("error: method.strenght", "method toy_sft"),
        ("error: evaluate.evaluators.0.x", "evaluator toy_score"),
    ]


BAD = [
    (["recipe.yml"], "no such file: recipe.yml (did you mean recipe.yaml?)"),
    (["recipe.yaml", "train.seeed=1"], "train.seeed: unknown setting (did you mean train.seed?)"),
    (
        ["recipe.yaml", "method.strenght=1"],
        "method.strenght: unknown option of method toy_sft (did you mean method.strength?",
    ),
    (["recipe.yaml", "method.strength=.nan"], "method.strength: must be a finite number, got nan"),
    (["recipe.yaml", "method.strength=big"], "method.strength: expected a number, got the text 'big'"),
    (["recipe.yaml", "method=toy_stf"], "toy_sft"),
    (["recipe.yaml", "strength=2"], "strength: unknown setting (did you mean adapter.strength?)"),
    (["recipe.yaml", "data.train=trian.toy"], "data.train: no such file: trian.toy (did you mean train.toy?)"),
    (["recipe.yaml", "data.train=./gone"], "data.train: no such file or folder: ./gone in {folder} (check the path)"),
    (["recipe.yaml", "model={name: toi}"], "did you mean toy?"),
    (["recipe.yaml", "model={name: ./gone}"], "model: no such file or folder: ./gone in {folder} (check the path)"),
    (["recipe.yaml", "data.train=gone.toy"], "data.train: no such file: gone.toy in {folder} (check the path)"),
    (["recipe.yaml", "data.train=empty.toy"], "the source has no rows"),
    (["recipe.yaml", "data.train=bad.toy"], "bad.toy:2: no tab between question and answer"),
    (
        ["recipe.yaml", "data.train=untrainable.toy"],
        "nothing to train on: its flags exclude every answer (untrainable.toy:1)",
    ),
    (
        ["recipe.yaml", "model=folder"],
        "no installed loader reads the folder 'folder', which holds a, b, c, d, e and 1 more",
    ),
    (["recipe.yaml", "model=nothing"], "no installed loader reads the folder 'nothing', which is empty"),
    (["recipe.yaml", "data.train=what is this?"], "knows what 'what is this?' is"),
    (
        ["recipe.yaml", "data.train=train.toy[abc]"],
        "data.train: [abc] behind train.toy is not a slice of rows (write",
    ),
    (["recipe.yaml", "data.train=train.toy[5]"], "data.train: [5] behind train.toy is not a slice of rows"),
    (
        ["recipe.yaml", "data.train=ftp://host/rows"],
        "data.train: no installed source reads ftp:// addresses",
    ),
    (
        ["recipe.yaml", "data.train=file:///rows"],
        "data.train: no installed source reads file:// addresses (write",
    ),
    (["recipe.yaml", "model.loader=tyo"], "tyo"),
    (["recipe.yaml", "plugins.0.options.stop_att=2"], "stop_att"),
    (["recipe.yaml", "plugins.0=./gone.py"], "gone.py"),
    (["recipe.yaml", "plugins.1=nothing-of-this-name>=2"], "nothing-of-this-name"),
    (["recipe.yaml", "train.max_length=100000"], "train.max_length: 100000 is more than the 512 positions of toy"),
    (["recipe.yaml", "output=full"], "output: full exists and is not an empty folder"),
    (["recipe.yaml", "output=train.toy"], "output: train.toy exists"),
    (["recipe.yaml", "seed"], "'seed' is not an override"),
    (["duplicate.yaml"], "model: given twice, at duplicate.yaml:1 and duplicate.yaml:2"),
    (["tagged.yaml"], "tagged.yaml:1: the tag '!!python/object/apply:os.system' is not allowed"),
    ([], "Missing argument 'RECIPE' (name one, or give --model and --data; see ft run --help)"),
    (["recipe.yaml", "--bogus"], "No such option"),
    (
        ["recipe.yaml", "--train.batch_size", "3"],
        "No such option '--train.batch_size' (settings are written train.batch_size=VALUE)",
    ),
    (
        ["recipe.yaml", "--batch-size", "3"],
        "No such option '--batch-size' (settings are written train.batch_size=VALUE)",
    ),
    (["recipe.yaml", "train.batch_size", "3"], "is not an override (write train.batch_size=3, without a space)"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(bad[0])[:50] or "nothing" for bad in BAD])
@pytest.mark.parametrize("command", ["run", "check"])
def test_bad_input_gets_one_line_and_exit_code_2(
    ft: Any, folder: Path, command: str, arguments: list[str], said: str
) -> None:
    (folder / "empty.toy").touch()
    (folder / "nothing").mkdir()
    (folder / "folder").mkdir()
    for name in "fedcba":
        (folder / "folder" / name).touch()
    (folder / "bad.toy").write_text("a\tb\nc\n")
    (folder / "untrainable.toy").write_text("a\tb\n")
    (folder / "duplicate.yaml").write_text("model: a\nmodel: b\n")
    (folder / "tagged.yaml").write_text("model: !!python/object/apply:os.system [touch owned]\n")
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    if "untrainable" in said:
        source = (folder / "toy_plugin.py").read_text()
        silenced = 'row.values["answer"], train=False)'
        (folder / "toy_plugin.py").write_text(source.replace('row.values["answer"])', silenced))
    answer = ft(command, *arguments)
    assert answer.code == 2
    assert said.replace("ft run", f"ft {command}").replace("{folder}", str(folder)) in answer.err
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert not (folder / "runs").exists()
    assert not (folder / "owned").exists()


def test_several_mistakes_get_a_line_each(ft: Any) -> None:
    answer = ft("check", "recipe.yaml", "train.batch_size=0", "train.seeed=1")
    assert answer.code == 2
    assert [line.split(":")[1].strip() for line in answer.err.splitlines()] == ["train.batch_size", "train.seeed"]


def test_debug_shows_the_traceback(ft: Any) -> None:
    answer = ft("check", "recipe.yaml", "train.seeed=1", "--debug")
    assert answer.code == 2
    assert "Traceback" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: train.seeed")


def test_an_output_that_holds_a_run(ft: Any, folder: Path) -> None:
    assert ft("run", "recipe.yaml").code == 0
    before = (folder / "runs/mine/result.json").read_bytes()
    answer = ft("run", "recipe.yaml")
    assert (answer.code, answer.out) == (2, "")
    assert "output: runs/mine already holds a run" in answer.err
    assert (folder / "runs/mine/result.json").read_bytes() == before


def test_an_output_that_cannot_be_written(ft: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    answer = ft("run", "recipe.yaml")
    assert answer.code == 2
    assert "cannot be written: Permission denied" in answer.err


def test_a_full_disk(ft: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Path.write_text

    def full(self: Path, *arguments: Any, **more: Any) -> Any:
        if self.name.startswith(".recipe.yaml."):
            raise OSError(28, "No space left on device", str(self))
        return written(self, *arguments, **more)

    monkeypatch.setattr(Path, "write_text", full)
    answer = ft("run", "recipe.yaml")
    assert answer.code == 2
    assert "runs/mine/recipe.yaml: No space left on device" in answer.err
    assert "Traceback" not in answer.err


BROKEN = """
from finetooth_hooks import Evaluator, EvaluatorBase, NoOptions, Tracker, TrackerBase, hookimpl

@hookimpl
def ft_trackers():
    yield Tracker(name="far", build=f"{__name__}:build_tracker")

@hookimpl
def ft_evaluators():
    yield Evaluator(name="lost", build=f"{__name__}:build_evaluator")

class Far(TrackerBase):
    def start(self, run): ...
    def step(self, run, report):
        raise ConnectionRefusedError(111, "Connection refused")
    def evaluated(self, run, evaluation): ...
    def end(self, run, outcome): ...

class Lost(EvaluatorBase):
    def prepare(self): ...
    def evaluate(self, engine, step):
        return {}["loss"]

def build_tracker(options: NoOptions, context):
    return Far()

def build_evaluator(options: NoOptions, context):
    return Lost()
"""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "trackers=[far]",
            "error: tracker broken.py:far failed in step: ConnectionRefusedError: [Errno 111] Connection",
        ),
        ("evaluate.evaluators=[lost]", "error: plugin broken.py: KeyError: 'loss' [{folder}/broken.py:22] (fix it"),
    ],
    ids=["tracker", "evaluator"],
)
def test_a_plugin_that_raises_is_named_wherever_it_does(ft: Any, folder: Path, override: str, said: str) -> None:
    (folder / "broken.py").write_text(BROKEN)
    answer = ft("run", "recipe.yaml", override, "--plugins", "broken.py")
    assert answer.code == 1 and said.format(folder=folder) in answer.err, answer.err
    told = json.loads((folder / "runs/mine/result.json").read_text())
    assert (told["status"], told["exit_code"]) == ("failed", 1)
    assert told["reason"] in answer.err
