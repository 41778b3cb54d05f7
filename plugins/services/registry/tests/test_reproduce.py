"""A run is trained again, and what differs is named: conditions, numbers by step, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from finetooth_hooks import UserError
from finetooth_registry import locking
from finetooth_registry.command import registry
from finetooth_registry.commands.reproduce import reproduce
from finetooth_registry.locking import Locked
from finetooth_saving.artifact import write_folder

STEPS = [{"event": "step", "step": step, "loss": 3.0 - step / 3, "grad_norm": 1.0 / step} for step in (1, 2, 3)]


def write_run(folder: Path, *, steps: list[dict[str, Any]] | None = None, weights: str = "w", torch: str = "2") -> Path:
    """A run folder as a run leaves it."""
    data = {"data.train.sha256": "d" * 64}
    about = {"base_digest": "b" * 64, "data": data, "plugins": {"acme": "1"}, "environment": {"torch": torch}}
    write_folder(folder / "artifact", lambda place: (place / "weights").write_text(weights) and None, about)
    (folder / "recipe.yaml").write_text("model: tiny\ndata: {train: rows.jsonl}\n")
    plan = {"recipe": {}, "picks": {"adapter": "acme:lora"}, "options": {"adapter": {"rank": 3}}, "train": {}}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "run.json").write_text(json.dumps({"id": "1", "started_in": str(folder.parent)}))
    (folder / "result.json").write_text(json.dumps({"status": "done", "exit_code": 0, "metrics": {"eval/loss": 1.0}}))
    recorded = STEPS if steps is None else steps
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in recorded))
    return folder


class Commands(SimpleNamespace):
    """What `ft reproduce` calls; `train` writes the new run and `trained` are the recipes that it got."""

    def __init__(self, train: Callable[[Path], Any]) -> None:
        super().__init__(train=train, trained=[], base="b" * 64, data="d" * 64)

    def run_folder(self, text: str) -> Path | None:
        return Path(text) if Path(text).is_dir() else None

    def load(self, recipe: Path) -> Mapping[str, Any]:
        return {"model": "tiny", "data": {"train": "rows.jsonl"}, "export": [{"name": "gguf"}]}

    def run(self, recipe: Mapping[str, Any]) -> Any:
        self.trained.append((Path.cwd(), recipe))
        output = Path(recipe["output"])
        self.train(output)
        return SimpleNamespace(artifact=output if output.is_dir() else None, status="failed", reason="no rows")

    def plan(self, recipe: Mapping[str, Any]) -> Any:
        return SimpleNamespace(decisions=[SimpleNamespace(setting="data.train.sha256", value=self.data)])

    def context(self, recipe: Mapping[str, Any]) -> Any:
        return SimpleNamespace(model=SimpleNamespace(digest=self.base))

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(reproduce, arguments, obj=self)


def test_the_decided_recipe_trains_again_where_it_was_started(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    commands = Commands(write_run)
    made = commands(str(run), "--output", str(tmp_path / "again"))
    assert made.exit_code == 0 and made.output == f"{run} is reproduced bit for bit\n"
    ((place, recipe),) = commands.trained
    assert place == tmp_path and recipe["output"] == str(tmp_path / "again")
    assert recipe["adapter"] == {"name": "acme:lora", "rank": 3} and "export" not in recipe
    assert (tmp_path / "again/artifact/weights").is_file()


def test_a_condition_alone_does_not_count_and_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    made = Commands(lambda output: write_run(output, torch="3"))(str(run))
    assert made.exit_code == 0 and "environment.torch" in made.output


@pytest.mark.parametrize(("changed", "named"), [("base", "base_digest"), ("data", "data.train.sha256")])
def test_a_changed_base_or_changed_data_are_named_before_anything_trains(
    tmp_path: Path, changed: str, named: str
) -> None:
    run = write_run(tmp_path / "run")
    commands = Commands(lambda output: None)
    setattr(commands, changed, "e" * 64)
    said = commands(str(run))
    assert said.stderr.startswith(f"{named} is not that of the run: {changed[0] * 12}, now eeeeeeeeeeee")
    assert "saved no artifact" in str(said.exception)
    assert not Commands(write_run)(str(run)).stderr


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"steps": [STEPS[0], {**STEPS[1], "loss": STEPS[1]["loss"] * (1 + 1e-15)}, STEPS[2]]}, "step 2: loss"),
        ({"steps": STEPS[:2]}, "step 3: grad_norm"),
        ({"weights": "v"}, "weights"),
    ],
)
def test_what_differs_first_is_named(tmp_path: Path, change: dict[str, Any], first: str) -> None:
    run = write_run(tmp_path / "run")
    made = Commands(lambda output: write_run(output, **change))(str(run))
    assert made.exit_code == 1 and f"{first} differs first" in made.output


def test_a_tolerance_allows_numbers_and_weights_inside_it_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    near = [{**step, "loss": step["loss"] * 1.0009} for step in STEPS]
    commands = Commands(lambda output: write_run(output, steps=near, weights="v"))
    assert commands(str(run), "--tolerance", "0.001").exit_code == 0
    assert commands(str(run), "--tolerance", "0.0008").exit_code == 1


def test_a_changed_environment_is_named_before_anything_trains(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "requirements.lock").write_text(locking.text_of(locking.installed()))
    assert "installed." not in Commands(write_run)(str(run)).output
    changed = [each if each.name != "numpy" else Locked("numpy", "0.1") for each in locking.installed()]
    (run / "requirements.lock").write_text(locking.text_of(changed))
    made = Commands(write_run)(str(run))
    assert made.exit_code == 0 and made.stderr.startswith("installed.numpy is not that of the run: 0.1, now ")
    assert "installed.numpy" in made.stdout


def test_a_version_is_reproduced_from_the_registry_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    where = str(tmp_path / "registry")
    invoke = CliRunner().invoke
    invoke(registry, ["init", where])
    (tmp_path / "registry/policy.yaml").write_text("{}")
    commands = Commands(write_run)
    added = invoke(registry, ["add", str(run), "--name", "bot", "--registry", where], obj=commands)
    assert added.exit_code == 0, added.exception
    shutil.rmtree(run)
    assert commands("bot@v0", "--registry", where).output == "bot@v0 is reproduced bit for bit\n"
    changed = Commands(lambda output: write_run(output, weights="v"))
    assert changed("bot@v0", "--registry", where).exit_code == 1


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    commands = Commands(lambda output: None)
    for arguments, said in [
        (("nothing",), "holds no registry"),
        ((str(run), "--output", str(run)), "exists"),
        ((str(run),), "saved no artifact: it failed: no rows"),
    ]:
        made = commands(*arguments, "--registry", str(tmp_path / "none"))
        assert isinstance(made.exception, UserError) and said in str(made.exception)
    shutil.rmtree(run / "artifact")
    assert "no artifact" in str(commands(str(run)).exception)
