"""Python's collector of reference cycles, out of the way while modules and models are loaded.

Importing torch, transformers and peft makes some 700,000 objects that stay. The collector walks over all of them again
and again meanwhile (1,265 times, a quarter of the time the imports take) and finds next to nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Inside the `with` block, reference cycles are not looked for; also a decorator.

    For what makes many objects that stay and no garbage to speak of, not for work that grows with the data. What was
    made meanwhile counts as old afterwards: only the rare full collections look at it. A collector that is off stays
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
            gc.unfreeze()  # back from the permanent generation, not into the youngest but into the oldest
        gc.enable()


_seen_frozen = False


def _others_froze() -> bool:
    """Whether the process has objects that somebody else froze. To count them walks over all of them, so once they are
    seen it is not asked again: a server freezes what it imported, and builds hundreds of parts for every engine."""
    global _seen_frozen
    _seen_frozen = _seen_frozen or gc.get_freeze_count() > 0
    return _seen_frozen
