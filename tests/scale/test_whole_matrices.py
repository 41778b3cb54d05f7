"""Optimizers whose update of a weight depends on others: refused where ranks hold parts of a matrix, right where each
rank has whole ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.api import build_entry
from finetooth_torchshared.elementwise import obstacle_to_parts

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import check_alike, folder, trained  # noqa: F401 - folder is a fixture

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


def _home(name: str) -> str:
    of = {"muon": "muon", "dion": "muon", "adafactor": "standard", "prodigy": "adaptive", "came": "adaptive"}
    return of.get(name, "lowmemory")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "context of fsdp"])
@pytest.mark.parametrize("name", OF_MATRICES)
def test_they_are_refused_where_ranks_hold_parts(folder: Path, name: str, strategy: str) -> None:  # noqa: F811
    with pytest.raises(AssertionError, match="cannot update a part of a matrix, and no rank has a whole one"):
        trained(folder, f"refused-{name}-{strategy.replace(' ', '-')}", 2, strategy, optimizer=OF_MATRICES[name])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "context", "pipeline"])
@pytest.mark.parametrize("name", OF_MATRICES)
def test_they_take_the_steps_of_one_process(folder: Path, name: str, strategy: str) -> None:  # noqa: F811
    """A step along singular directions enlarges rounding where a gradient has almost none of a direction: one process
    that cuts its micro-batches otherwise moves Muon's weights by 0.5 %. So weights agree to 1 %, losses to 1e-5."""
    one = trained(folder, f"{name}-1", 1, optimizer=OF_MATRICES[name])
    two = trained(folder, f"{name}-{strategy}", 2, strategy, optimizer=OF_MATRICES[name])
    check_alike(one, two, weights_to=1e-2)
