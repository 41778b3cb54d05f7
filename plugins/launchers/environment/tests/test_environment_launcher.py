"""The place of a process by the variables that torchrun, srun and scripts set."""

from __future__ import annotations

import re
from typing import Any

import pytest
from finetooth_environmentlauncher.launcher import EnvironmentLauncher
from finetooth_environmentlauncher.places import place
from finetooth_environmentlauncher.variables import is_rank
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Rank
from finetooth_kit import parametrize_with_checks

PLAIN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host-0", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}
SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-05,9]", "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0",
}  # fmt: skip
"""As `srun` of SLURM sets them for a task (srun(1), "OUTPUT ENVIRONMENT VARIABLES")."""


@parametrize_with_checks("finetooth_environmentlauncher.plugin")
def test_checks(check: Any) -> None:
    check()


def changed(given: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PLAIN, Rank(1, 4, 0, "host-0", 29500)),
        (changed(PLAIN, {"LOCAL_RANK": None}), Rank(1, 4, 1, "host-0", 29500)),
        (SRUN, Rank(5, 8, 1, "gpu03", 19567)),
        (changed(SRUN, {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"}), Rank(5, 8, 1, "10.0.0.1", 29400)),
        ({**SRUN, **PLAIN}, Rank(1, 4, 0, "host-0", 29500)),  # torchrun below srun
    ],
)
def test_a_process_finds_its_place(given: dict[str, str], expected: Rank) -> None:
    assert is_rank(given)
    assert EnvironmentLauncher(given).rank() == expected


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"MASTER_ADDR": "host-0", "MASTER_PORT": "29500"},
        changed(SRUN, {"SLURM_STEP_NUM_TASKS": None}),  # a batch script, which may start ranks of its own
        changed(SRUN, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}),  # srun --pty bash
    ],
)
def test_a_process_alone_has_no_place(given: dict[str, str]) -> None:
    assert not is_rank(given)
    assert place(given) is None


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("gpu[03-05,9]", "gpu03"),
        ("rack1-n[12,14]-ib,login", "rack1-n12-ib"),
        ("a-1,b[2-3]", "a-1"),
    ],
)
def test_the_first_host_of_a_list_of_slurm(hosts: str, first: str) -> None:
    found = place({**SRUN, "SLURM_STEP_NODELIST": hosts})
    assert found is not None
    assert found.address == first


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "0"}, "RANK is set and WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "WORLD_SIZE is set and RANK, MASTER_PORT not"),
        (changed(PLAIN, {"MASTER_PORT": None}), "RANK is set and MASTER_PORT not"),
        ({**PLAIN, "RANK": "4"}, "RANK is 4, and WORLD_SIZE is 4"),
        ({**PLAIN, "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many', not a number"),
        ({**PLAIN, "MASTER_PORT": "0"}, "MASTER_PORT is 0"),
        ({**SRUN, "SLURM_PROCID": "8"}, "SLURM_PROCID is 8, and SLURM_STEP_NUM_TASKS is 8"),
        (changed(SRUN, {"SLURM_STEP_NODELIST": None}), "SLURM_STEP_NODELIST and MASTER_ADDR are not set"),
    ],
)
def test_a_place_that_cannot_be_is_refused(given: dict[str, str], message: str) -> None:
    assert is_rank(given)
    with pytest.raises(PlanError, match=f"scale.launcher: {re.escape(message)}"):
        EnvironmentLauncher(given).rank()


def test_it_starts_nothing() -> None:
    with pytest.raises(PlanError, match="environment starts no ranks"):
        EnvironmentLauncher({}).start(2, ["ft", "run"])
