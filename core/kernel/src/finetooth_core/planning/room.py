"""Checks the disk space for a run's artifact with its tokenizer, and for its checkpoints."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from finetooth_hooks.errors import PlanError
from finetooth_hooks.protocols import TrainsPart
from finetooth_recipes import cadence
from finetooth_saving.keeper import Keeping
from finetooth_toolbox.text.measures import size

from finetooth_core.planning.context import RunContext

WEIGHT_BYTES = 4
"""Bytes per weight of an artifact or a state: trained weights are saved in fp32."""

DESCRIBED = ("tokenizer*", "vocab*", "merges*", "chat_template*", "*processor*")
"""Files that stand with a model's weights, and in an artifact."""

RECORDS = 2**19
"""Bytes for the plan, the metrics, the manifests and the log of a run."""


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
    needed[_existing(context.folder)] = WEIGHT_BYTES * exported + _described(context.model.files) + RECORDS
    if keeping is not None and keeping.disk is not None:
        size_of_one = state_size(trains.parameters, state_bytes, copies, extra)
        needed[_existing(keeping.folder)] += size_of_one * _states(context, total_steps)
    by_disk: dict[int, list[Path]] = defaultdict(list)
    for folder in needed:
        by_disk[folder.stat().st_dev].append(folder)
    for folders in by_disk.values():
        wanted, free = sum(needed[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if free < wanted:
            own, alone = _existing(context.folder) in folders, context.joined is None or context.joined.writes
            setting, place = ("output", context.folder) if own else ("checkpoint.stores", folders[0])
            setting = setting if alone else "TMPDIR"  # where other ranks work
            raise PlanError(
                f"{setting}: {place} has {size(free)} free, and the run may write {size(wanted)}",
                action=f"make room, or set {setting} to another disk",
            )


def state_size(trained: int, state_bytes: float, copies: int, extra: int = 0) -> int:
    """Bytes of a state between two steps: weights, what the optimizer keeps of them, and copies of the weights.
    Gradients are not among them, since a step drops them.

    Args:
        trained: how many parameters.
        extra: bytes of the adapter's own state.
    """
    return int((WEIGHT_BYTES * (1 + copies) + state_bytes) * trained) + extra


def _described(files: Sequence[Path]) -> int:
    """Bytes of the tokenizer and other files of a model in an artifact."""
    beside = {file for folder in {file.parent for file in files} for name in DESCRIBED for file in folder.glob(name)}
    return sum(file.stat().st_size for file in beside if file.is_file())


def _states(context: RunContext, total_steps: int | None) -> int:
    """How many states will be on the disk at once."""
    section = context.recipe.checkpoint
    states = cadence.parse(section.every).times(total_steps or context.train.max_steps, context.train.epochs)
    if section.keep_last:  # one more while the oldest is still there
        best = section.keep_best.n if section.keep_best is not None else int(section.select_on is not None)
        states = min(states, section.keep_last + best + 1)
    return states


def _existing(folder: Path) -> Path:
    """The folder itself, or its nearest existing parent."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
