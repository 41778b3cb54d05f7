"""Saving where a disk is full: tried again until somebody has made room."""

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
    """What saving gives, tried again and again while a disk is full, until the time for that is over or the user wants
    no more of it. Ranks that can only save together all try again where the disk of one is full.

    Args:
        save: may be called again after it has returned, since another rank failed.
        seconds: of the wait.
        asked: whether the user wants no more of it.
        say: tells the user one line.

    Raises:
        Exception: what was raised last.
    """
    end, reported = time.monotonic() + seconds, False
    while True:
        try:
            with alike.fails():
                return save()
        except Exception as error:  # whatever it is, no rank may leave the others waiting
            if not alike.all(blame.is_full(error) and time.monotonic() < end and not asked()):
                raise
            if not reported:
                say(f"{error}; the run waits for room, up to checkpoint.wait_for_room, and then saves it")
            reported = True
            time.sleep(PAUSE)
