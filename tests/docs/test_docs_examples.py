"""The files in examples/ run as their comments say, on a tiny random model."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
SMALL = (
    *("data.renderer=chatml", "train.precision=fp32", "train.max_length=512", "train.max_steps=2"),
    "trackers=[jsonl]",
)
RUNS = {
    "sft": ("sft.yaml", ()),
    "dpo": ("dpo.yaml", ()),
    "grpo": ("grpo.yaml", ("method.num_generations=2", "method.max_completion_length=4", "train.batch_size=2")),
    "qlora": ("qlora.yaml", ()),
    "loss": ("sft.yaml", ("method.loss=poly",)),
    "method": ("sft.yaml", ("method=easy_first",)),
}
PLUGINS = {"loss": ["examples/my_loss.py"], "method": ["examples/my_method.py"]}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of examples/ in it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_trains(name: str, clone: Path, tiny_model: Path) -> None:
    recipe, overrides = RUNS[name]
    if name == "qlora":
        pytest.importorskip("bitsandbytes")
    settings = (f"model.name={tiny_model}", "output=run", *SMALL, *overrides)
    result = finetooth.run(f"examples/{recipe}", *settings, plugins=PLUGINS.get(name, []))
    assert (result.status, result.steps) == ("done", 2)
    if name == "grpo":
        lines = map(json.loads, (clone / "run/metrics.jsonl").read_text().splitlines())
        steps = [line["metrics"] for line in lines if line["event"] == "step"]
        assert all(0 < step["rewards/brief/mean"] <= 1 and 0 <= step["rewards/correct/mean"] <= 1 for step in steps)


def run_loop(tiny_model: Path, *overrides: str) -> None:
    program = runpy.run_path("examples/loop.py")
    program["main"]("examples/sft.yaml", f"model.name={tiny_model}", *SMALL, *overrides)


def losses(printed: str) -> list[str]:
    return [line.partition("  gradient")[0] for line in printed.splitlines() if line.startswith("step ")]


def test_the_loop_trains_saves_and_continues_with_the_same_numbers(
    clone: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without dropout, so that the same batches give the same numbers.
    run_loop(tiny_model, "train.max_steps=6", "output=whole")
    whole = losses(capsys.readouterr().out)
    assert [line.split()[1] for line in whole] == [f"{step}/6" for step in range(1, 7)]
    trained = load_file(clone / "whole/adapter/adapter_model.safetensors")
    shutil.rmtree(clone / "whole/adapter")
    run_loop(tiny_model, "train.max_steps=6", "output=whole")  # as after Ctrl-C: the last state was saved after step 4
    assert losses(capsys.readouterr().out) == whole[4:]
    again = load_file(clone / "whole/adapter/adapter_model.safetensors")
    assert all(np.array_equal(again[name], values) for name, values in trained.items())


def test_the_loop_of_another_recipe_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It continues from the state in its folder, which would be the weights of another recipe."""
    asked = []

    def session(*arguments: str) -> None:
        asked.append(arguments[1])
        raise InterruptedError

    monkeypatch.setattr(finetooth, "session", session)
    main = runpy.run_path(str(ROOT / "examples/loop.py"))["main"]
    for recipe in ("examples/sft.yaml", "my.yaml"):
        with pytest.raises(InterruptedError):
            main(recipe)
    assert asked == ["output=runs/loop-sft", "output=runs/loop-my"]


@pytest.mark.parametrize(
    ("arguments", "raised", "code", "said"),
    [
        (["none.yaml"], None, 2, "error: no such file: none.yaml"),
        (["examples/sft.yaml", "train.batchsize=4"], None, 2, "error: train.batchsize: unknown setting"),
        ([], KeyboardInterrupt, 130, "interrupted: "),
    ],
)
def test_the_loop_ends_in_one_line(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], raised: type[BaseException] | None, code: int, said: str,
) -> None:  # fmt: skip
    def session(*_: str) -> None:
        assert raised is not None
        raise raised

    monkeypatch.setattr(sys, "argv", ["loop.py", *arguments])
    if raised is not None:
        monkeypatch.setattr(finetooth, "session", session)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("examples/loop.py", run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == code and line.startswith(said)


def test_the_loop_fits_on_two_screens() -> None:
    assert (ROOT / "examples/loop.py").read_text().count("\n") <= 2 * 50


@pytest.mark.parametrize(("answer", "score"), [("It is 5.", 1.0), ("2 + 3 = 5", 1.0), ("5 or 6", 0.0), ("five", 0.0)])
def test_the_reward_reads_the_last_number(answer: str, score: float) -> None:
    correct: Callable[..., list[float]] = runpy.run_path(str(ROOT / "examples/my_reward.py"))["correct"]
    assert correct(completions=[answer], answer=["5"]) == [score]


def test_the_loss_is_that_of_the_paper(clone: Path, tiny_model: Path) -> None:
    """Equation 6 in float64, from the engine's own log-probabilities."""
    settings = (f"model.name={tiny_model}", *SMALL)
    session = finetooth.session("examples/sft.yaml", *settings, plugins=["examples/my_loss.py"], data=False)
    loss = session.context.loss({"name": "poly", "epsilon": 0.5})
    row = Datum.from_tokens([5, 9, 4, 7, 30], [0.0, 1.0, 0.0, 2.0, 1.0])
    p = np.exp(session.engine.logprobs([row])[0].astype(np.float64))
    weights = np.array([1.0, 0.0, 2.0, 1.0])
    each = np.where(weights > 0, -np.log(p) + 0.5 * (1 - p), 0.0)
    expected = (weights * each).sum() / weights.sum()
    assert session.engine.forward([row], loss).loss == pytest.approx(expected, rel=1e-5)


def test_every_file_is_tried(clone: Path) -> None:
    tried = {recipe for recipe, _ in RUNS.values()} | {"my_loss.py", "my_method.py", "my_reward.py", "loop.py", "data"}
    assert {path.name for path in Path("examples").iterdir() if path.suffix != ".ipynb"} == tried
