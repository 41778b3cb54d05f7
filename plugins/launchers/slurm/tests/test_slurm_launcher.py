"""Jobs of SLURM: what is written, what sbatch is asked for, and that its tasks are ranks. Stand-ins take the places of
sbatch and srun; SLURM itself is not tried."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import PlanError, install_command
from finetooth_kit import parametrize_with_checks
from finetooth_slurmlauncher.launcher import SlurmLauncher, SlurmOptions
from pydantic import ValidationError

SBATCH = """#!/bin/sh
echo "$@" > asked
case "$(cat answer)" in refuse) echo "sbatch: error: invalid partition" >&2; exit 1;; esac
echo "77;cluster"
for last; do :; done
sh "$last"
"""
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = [word for word in sys.argv[1:] if word != "--unbuffered"]
while command[0].startswith("--"):
    command = command[2:]
given = {{"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[1-2]", "SLURM_STEP_ID": "0"}}
for task in range(4):
    subprocess.run(command, env={{**os.environ, **given, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % 2)}})
"""


@parametrize_with_checks("finetooth_slurmlauncher.plugin")
def test_checks(check: Any) -> None:
    check()


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN}.items():
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    (tmp_path / "answer").write_text("accept", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path


def start(options: SlurmOptions, script: str = "pass") -> int:
    return SlurmLauncher(options, {}).start(4, [sys.executable, "-c", script], nodes=2)


def test_the_job_asks_for_what_the_options_say(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = SlurmOptions(
        submit=False, partition="gpu", account="lab-7", memory="64G", time=90, gpus_per_rank=1, cpus_per_rank=8
    )
    assert start(options, "print('a b; $HOME')") == 0
    job = (there / "slurm" / "job.sh").read_text()
    asked = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in job.splitlines() if "#SBATCH" in line)
    assert asked == {
        "account": "lab-7", "cpus-per-task": "8", "error": str(there / "slurm/%j_0_log.err"), "gpus-per-node": "2",
        "job-name": "finetooth", "mem": "64G", "nodes": "2", "ntasks-per-node": "2", "open-mode": "append",
        "output": str(there / "slurm/%j_0_log.out"), "partition": "gpu", "signal": "INT@120", "time": "90",
    }  # fmt: skip
    assert "'print('\"'\"'a b; $HOME'\"'\"')'" in job
    assert subprocess.run(["bash", "-n", "slurm/job.sh"], check=False).returncode == 0
    assert "submit it with sbatch" in capfd.readouterr().err
    assert not (there / "asked").exists()


def test_tasks_of_the_job_are_the_ranks(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = (
        "from finetooth_environmentlauncher.places import place; import os; "
        "print(place(os.environ), file=open('ranks', 'a'))"
    )
    assert start(SlurmOptions(wait=True), script) == 0
    assert (there / "asked").read_text().split() == ["--parsable", "--wait", str(there / "slurm/job.sh")]
    places = (there / "ranks").read_text().splitlines()
    assert [line[: line.index(", address")] for line in places] == [
        f"Rank(rank={task}, world=4, local={task % 2}" for task in range(4)
    ]
    assert "submitted job 77; its output will be in" in capfd.readouterr().err


def test_a_job_that_sbatch_refuses_is_one_line(there: Path) -> None:
    (there / "answer").write_text("refuse", encoding="utf-8")
    with pytest.raises(PlanError, match=r"sbatch refused .*job.sh, exit code 1"):
        start(SlurmOptions(partition="nowhere"))


def test_without_sbatch_the_file_is_named(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(there))
    with pytest.raises(PlanError, match=r"wrote .*job.sh, and this machine has no sbatch"):
        start(SlurmOptions())


def test_a_task_without_a_place_submits_nothing() -> None:
    with pytest.raises(PlanError, match=re.escape(install_command("finetooth-environmentlauncher"))):
        SlurmLauncher(SlurmOptions(), {"SLURM_STEP_ID": "0"}).rank()
    assert SlurmLauncher(SlurmOptions(), {"SLURM_JOB_ID": "7"}).rank() is None


@pytest.mark.parametrize("word", ["a b", "gpu\n#SBATCH --uid=0", "$(touch hurt)", "'", "", "-x"])
def test_a_value_holds_no_second_setting(word: str) -> None:
    with pytest.raises(ValidationError):
        SlurmOptions(partition=word)
