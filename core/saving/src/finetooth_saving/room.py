"""How much space a run needs on its disks; and repeats a save on a full disk until the disk has space."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from finetooth_toolbox import blame

from finetooth_saving.alike import Alike

T = TypeVar("T")
PAUSE = 1.0
"""Seconds between two attempts."""

WEIGHT_BYTES = 4
"""Bytes per weight of an artifact or a state: trained weights are saved in fp32."""

DESCRIBED = ("tokenizer*", "vocab*", "merges*", "chat_template*", "*processor*")
"""Files that stand with a model's weights, and in an artifact."""

RECORDS = 2**19
"""Bytes for the plan, the metrics, the manifests and the log of a run."""


def once_there_is_room(
    save: Callable[[], T], alike: Alike, seconds: float, asked: Callable[[], bool], say: Callable[[str], None]
) -> T:
    """The result of saving, repeated while a disk is full, until the time is over or the user stops it. Ranks that can
    only save together all try again if one disk is full.

    Args:
        save: may be called again after success, if another rank failed.
        seconds: longest wait.
        asked: returns whether the user has asked to stop.
        say: tells the user one line.

    Raises:
        Exception: the last error.
    """
    end, reported = time.monotonic() + seconds, False
    while True:
        try:
            with alike.fails():
                return save()
        except Exception as error:  # any error: no rank may leave the others waiting
            if not alike.all(blame.is_full(error) and time.monotonic() < end and not asked()):
                raise
            if not reported:
                say(f"{error}; the run waits for room, up to checkpoint.wait_for_room, and then saves it")
            reported = True
            time.sleep(PAUSE)


def state_size(trained: int, state_bytes: float, copies: int, extra: int = 0) -> int:
    """Bytes of a state between two steps: weights, what the optimizer keeps of them, and copies of the weights.
    Gradients are not among them, since a step drops them.

    Args:
        trained: how many parameters.
        extra: bytes of the adapter's own state.
    """
    return int((WEIGHT_BYTES * (1 + copies) + state_bytes) * trained) + extra


def described(files: Sequence[Path]) -> int:
    """Bytes of the tokenizer and other files of a model in an artifact."""
    beside = {file for folder in {file.parent for file in files} for name in DESCRIBED for file in folder.glob(name)}
    return sum(file.stat().st_size for file in beside if file.is_file())


def existing(folder: Path) -> Path:
    """The folder itself, or its nearest existing parent."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
