"""Optimizers whose update of a weight depends on others: refused where ranks hold parts of a matrix, right where each
rank has whole ones."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from finetooth_core.api import build_entry
from finetooth_core.cli.check import command
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_torchshared.elementwise import obstacle_to_parts

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import RECIPE, check_alike, folder, trained  # noqa: F401 - folder is a fixture

OF_MATRICES: dict[str, dict[str, Any]] = {
    "muon": {"name": "muon", "learning_rate": 5e-3},
    "dion": {"name": "dion", "learning_rate": 5e-3},
    "galore": {"name": "galore", "learning_rate": 5e-3},
    "apollo": {"name": "apollo", "learning_rate": 5e-3},
}
OF_ALL = ("adafactor", "came", "prodigy")
"""These keep means of rows and columns, or find one step size for all weights."""


@pytest.mark.parametrize("name", [*OF_MATRICES, *OF_ALL])
def test_no_part_of_a_matrix_is_updated_alone(name: str) -> None:
    """What `fsdp`, `zero3` and `deepspeed` ask before they divide anything."""
    assert obstacle_to_parts(build_entry("optimizer", f"finetooth-{_home(name)}:{name}", "optimizer", "torch")[0])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_numbers_by_themselves_may_be_divided(name: str) -> None:
    assert not obstacle_to_parts(build_entry("optimizer", f"finetooth-standard:{name}", "optimizer", "torch")[0])


DIVIDED: dict[str, Any] = {
    "fsdp": "fsdp",
    "fsdp with tensor": {"name": "fsdp", "tensor": 2},
    "fsdp with context": {"name": "fsdp", "context": 2},
    "pipeline with shard": {"name": "pipeline", "stages": 1, "shard": True},
    "pipeline with tensor": {"name": "pipeline", "tensor": 2},
    "pipeline with context": {"name": "pipeline", "context": 2},
    "zero3": "zero3",
    "deepspeed": {"name": "deepspeed", "stage": 2},
}
WHOLE: dict[str, Any] = {"ddp": "ddp", "context": "context", "pipeline": "pipeline"}


def row_of(table: str) -> dict[str, bool]:
    """Of the guide's table, by strategy, whether optimizers of whole matrices work under it."""
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return {name.strip().replace("`", ""): says.strip().startswith("yes") for name, says in rows}


def test_the_guide_names_every_strategy() -> None:
    """Of a run over several ranks."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "optimizers.md").read_text(encoding="utf-8")
    section = page.split("## Whole matrices over several ranks")[1].split("\n## ")[0]
    assert row_of(section) == {**dict.fromkeys(WHOLE, True), **dict.fromkeys(DIVIDED, False)}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*WHOLE, *DIVIDED])
def test_a_check_says_what_the_guide_says(folder: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:  # noqa: F811
    """All optimizers, of matrices and of all weights; `make scale-test` with DeepSpeed."""
    if strategy in ("zero3", "deepspeed"):
        pytest.importorskip("deepspeed")
    monkeypatch.chdir(folder)
    scale = {"devices": 2, "strategy": {**WHOLE, **DIVIDED}[strategy]}
    plain = {"adapter": {"name": "lora", "rank": 4}}  # tensor parallelism refuses dropout
    for name in (*OF_MATRICES, *OF_ALL):
        optimizer = OF_MATRICES.get(name, {"name": name})
        recipe = {**RECIPE, **plain, "optimizer": optimizer, "output": "checked", "scale": scale}
        (folder / "checked.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        state = State(StartOptions())
        done = CliRunner().invoke(command, ["checked.yaml", "--json"], obj=state)
        if strategy in WHOLE and (name, strategy) != ("prodigy", "pipeline"):
            assert done.exit_code == 0, (name, done.exception)
        else:
            assert re.search(f"finetooth-[a-z]+:{name} cannot", str(done.exception)), (name, done.output)


def _home(name: str) -> str:
    of = {"muon": "muon", "dion": "muon", "adafactor": "standard", "prodigy": "adaptive", "came": "adaptive"}
    return of.get(name, "lowmemory")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", WHOLE)
@pytest.mark.parametrize("name", OF_MATRICES)
def test_they_take_the_steps_of_one_process(folder: Path, name: str, strategy: str) -> None:  # noqa: F811
    """A step along singular directions enlarges rounding where a gradient has almost none of a direction: one process
    that cuts its micro-batches otherwise moves Muon's weights by 0.5 %. So weights agree to 1 %, losses to 1e-5."""
    one = trained(folder, f"{name}-1", 1, optimizer=OF_MATRICES[name])
    two = trained(folder, f"{name}-{strategy}", 2, strategy, optimizer=OF_MATRICES[name])
    check_alike(one, two, weights_to=1e-2)
