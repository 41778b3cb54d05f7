"""Repeats a save on a full disk until the disk has space."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from finetooth_toolbox import blame

from finetooth_saving.alike import Alike

T = TypeVar("T")
PAUSE = 1.0
"""Seconds between two attempts."""


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
