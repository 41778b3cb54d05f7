"""Checks the disk space for a run's artifact with its tokenizer, and for its checkpoints."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

from finetooth_hooks.errors import PlanError
from finetooth_hooks.protocols import TrainsPart
from finetooth_saving.keeper import Keeping
from finetooth_saving.room import RECORDS, WEIGHT_BYTES, described, existing, state_size
from finetooth_toolbox.text.measures import size

from finetooth_core.planning.context import RunContext


def check_room(
    context: RunContext,
    keeping: Keeping | None,
    trains: TrainsPart,
    *,
    parameters: int,
    state_bytes: float,
    copies: int,
    extra: int,
    total_steps: int | None,
) -> None:
    """Check that the disks have room: for the artifact in the run folder, and for all states that exist at once in the
    checkpoints' place.

    Args:
        keeping: places of checkpoints; None: there are none.
        parameters: of the base; an adapter that trains it writes the whole model.
        state_bytes: of the optimizer, per trained parameter.
        copies: roles that are copies of trained weights, also part of a state.
        extra: bytes that the adapter adds to a state.

    Raises:
        PlanError: a disk has less room.
    """
    exported = trains.parameters if trains.base_frozen else parameters
    needed: dict[Path, int] = defaultdict(int)
    needed[existing(context.folder)] = WEIGHT_BYTES * exported + described(context.model.files) + RECORDS
    if keeping is not None and keeping.disk is not None:
        size_of_one = state_size(trains.parameters, state_bytes, copies, extra)
        states = keeping.states(total_steps or context.train.max_steps, context.train.epochs)
        needed[existing(keeping.folder)] += size_of_one * states
    by_disk: dict[int, list[Path]] = defaultdict(list)
    for folder in needed:
        by_disk[folder.stat().st_dev].append(folder)
    for folders in by_disk.values():
        wanted, free = sum(needed[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if free < wanted:
            own, alone = existing(context.folder) in folders, context.joined is None or context.joined.writes
            setting, place = ("output", context.folder) if own else ("checkpoint.stores", folders[0])
            setting = setting if alone else "TMPDIR"  # where other ranks work
            raise PlanError(
                f"{setting}: {place} has {size(free)} free, and the run may write {size(wanted)}",
                action=f"make room, or set {setting} to another disk",
            )
