"""DeepSpeed as this package imports it."""

from __future__ import annotations

import logging
from typing import Any


def without_builds() -> Any:
    """DeepSpeed, which says nothing but errors and compiles nothing.

    It would compile its sums on a CPU with g++ at the first start, and wait for ever for a build that was killed. gloo
    does the same.
    """
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
