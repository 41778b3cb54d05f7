"""Pauses Python's garbage collector of reference cycles while modules and models are loaded.

Importing torch, transformers and peft makes some 700,000 objects that stay. During the imports the collector traverses
all of them repeatedly (1,265 times, a quarter of the import time) and finds almost no garbage.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Pause the garbage collector inside the `with` block; also a decorator.

    For code that makes many permanent objects and hardly any garbage, not for work that grows with the data. Objects
    from the block count as old afterwards: only the rare full collections traverse them. A collector that is off stays
    off.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not _others_froze():  # the caller's own frozen objects stay frozen
            gc.freeze()
            gc.unfreeze()  # from the permanent generation into the oldest, not the youngest
        gc.enable()


_seen_frozen = False


def _others_froze() -> bool:
    """Whether other code has frozen objects of the process. Counting traverses all of them, so a positive result is
    remembered: a server freezes its imports, and builds hundreds of parts for every engine."""
    global _seen_frozen
    _seen_frozen = _seen_frozen or gc.get_freeze_count() > 0
    return _seen_frozen
