"""The launcher `slurm`."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from finetooth_hooks import Options, PlanError
from finetooth_launching.ranks import RankStarter
from pydantic import Field, StringConstraints

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.,:@%+=/&|!*\[\]()-]*$")]
"""A value of sbatch."""


class SlurmOptions(Options):
    """A job for sbatch, written by submitit."""

    partition: Word | None = None
    """Partition of the job. Default: the cluster's."""

    account: Word | None = None
    """Account that pays for the job."""

    qos: Word | None = None
    """Quality of service."""

    constraint: Word | None = None
    """Features that the machines must have."""

    time: int = Field(default=1440, gt=0)
    """Minutes until SLURM ends the job."""

    stop_before: int = Field(default=120, gt=0)
    """The run is interrupted this many seconds before that time, so that it writes a checkpoint."""

    memory: Word | None = None
    """Memory of each machine, such as `64G`."""

    cpus_per_rank: int = Field(default=1, gt=0)
    """CPUs of each rank."""

    gpus_per_rank: int = Field(default=0, ge=0)
    """GPUs of each rank."""

    folder: str = "slurm"
    """Folder for the job file and its output."""

    submit: bool = True
    """Whether to submit the job; otherwise only the file is written."""

    wait: bool = False
    """Whether to wait until the job has ended."""


class SlurmLauncher(RankStarter):
    """Implements `finetooth_hooks.protocols.MachinesLauncher`."""

    name = "slurm"
    mark = "SLURM_STEP_ID"

    def __init__(self, options: SlurmOptions, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self._options = options

    def start(self, world: int, command: Sequence[str], *, nodes: int = 1) -> int:
        """Write the job, submit it, and return without waiting unless `wait` says so.

        Returns:
            0; with `wait`, the exit code of the job.

        Raises:
            PlanError: this machine has no sbatch, or sbatch refuses the job.
        """
        folder = Path(self._options.folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "job.sh"
        file.write_text(self._job(world, nodes, command, folder), encoding="utf-8")
        if not self._options.submit:
            print(f"wrote {file}; submit it with sbatch {file}", file=sys.stderr)
            return 0
        if shutil.which("sbatch") is None:
            raise PlanError(
                f"scale.launcher: slurm wrote {file}, and this machine has no sbatch",
                action="submit the file where sbatch is, or set submit: false to write it alone",
            )
        wait = ["--wait"] if self._options.wait else []
        submitted = ["sbatch", "--parsable", *wait, str(file)]
        with subprocess.Popen(submitted, stdout=subprocess.PIPE, text=True) as process:  # its errors reach the user
            assert process.stdout is not None
            job = process.stdout.readline().strip().partition(";")[0]
            if job:
                print(f"submitted job {job}; its output will be in {folder}/{job}_0_log.out", file=sys.stderr)
        if process.returncode and not job:
            raise PlanError(
                f"scale.launcher: sbatch refused {file}, exit code {process.returncode}",
                action="change the launcher's options as sbatch says above",
            )
        return process.returncode

    def _job(self, world: int, nodes: int, command: Sequence[str], folder: Path) -> str:
        """The text of the job's file."""
        # submitit's executor would keep the command as a pickle; the text alone does without
        from submitit.slurm.slurm import _make_sbatch_string

        options, local = self._options, world // nodes
        more: dict[str, Any] = {"wckey": None}  # submitit would name a key that a cluster may not know
        if options.gpus_per_rank:
            more["gpus_per_node"] = options.gpus_per_rank * local
        return str(
            _make_sbatch_string(
                shlex.join(command), folder, job_name="finetooth", partition=options.partition, time=options.time,
                nodes=nodes, ntasks_per_node=local, cpus_per_task=options.cpus_per_rank, qos=options.qos,
                mem=options.memory, constraint=options.constraint, account=options.account,
                additional_parameters={"signal": f"INT@{options.stop_before}"}, **more,
            )
        )  # fmt: skip


def build(options: SlurmOptions) -> SlurmLauncher:
    """Ranks as tasks of a SLURM job."""
    return SlurmLauncher(options, os.environ)
