"""What environment variables say about a process's place among ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Rank

from finetooth_environmentlauncher.variables import PLAIN, SLURM, is_task

FIRST_PORT, PORTS = 15000, 10000
"""Under SLURM ranks meet at a port that the job's number decides, between these."""


def place(env: Mapping[str, str]) -> Rank | None:
    """The place of a process; None if nobody started it as one of several.

    Args:
        env: environment variables.

    Raises:
        PlanError: a variable is missing, or is not what it must be.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        missing = [name for name in PLAIN if name not in env]
        if missing:
            there = next(name for name in PLAIN if name in env)
            raise PlanError(
                f"scale.launcher: {there} is set and {', '.join(missing)} not, so this process has no place "
                "among the ranks",
                action=f"set {', '.join(PLAIN)}, or none of them",
            )
        return _rank(env, "RANK", "WORLD_SIZE", "LOCAL_RANK", env["MASTER_ADDR"], _number(env, "MASTER_PORT"))
    if is_task(env):
        return _rank(env, *SLURM, "SLURM_LOCALID", _first_host(env), _slurm_port(env))
    return None


def _rank(env: Mapping[str, str], rank: str, world: str, local: str, address: str, port: int) -> Rank:
    number, count = _number(env, rank), _number(env, world)
    if not 0 <= number < count:
        raise PlanError(
            f"scale.launcher: {rank} is {number}, and {world} is {count}", action=f"count {rank} from 0 to {world} - 1"
        )
    if not 0 < port < 65536:
        raise PlanError(f"scale.launcher: MASTER_PORT is {port}", action="give a port from 1 to 65535")
    return Rank(number, count, _number(env, local) if local in env else number, address, port)


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise PlanError(
            f"scale.launcher: {name} is {env[name]!r}, not a number", action=f"give {name} as a number"
        ) from None


def _first_host(env: Mapping[str, str]) -> str:
    """`MASTER_ADDR`, or the machine of the first task: of `gpu[03-05,9],login` it is `gpu03`."""
    if env.get("MASTER_ADDR"):
        return env["MASTER_ADDR"]
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or ""
    first = re.match(r"(?P<before>[^\[,]+)(?:\[(?P<number>\d+)[^\]]*\](?P<after>[^,]*))?", hosts)
    if first is None:
        raise PlanError(
            "scale.launcher: SLURM_STEP_NODELIST and MASTER_ADDR are not set",
            action="set MASTER_ADDR to the host of rank 0",
        )
    return "".join(part or "" for part in first.group("before", "number", "after"))


def _slurm_port(env: Mapping[str, str]) -> int:
    """`MASTER_PORT`, or one that the job and its step decide, the same at every task."""
    if "MASTER_PORT" in env:
        return _number(env, "MASTER_PORT")
    job, step = (_number(env, name) if name in env else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return FIRST_PORT + (job + step) % PORTS
