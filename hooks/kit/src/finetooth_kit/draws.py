"""How many examples a property test draws."""

from __future__ import annotations

import os


def draws(count: int) -> int:
    """So many examples at every change, and `FT_EXAMPLES` times as many before a release (`make thorough`).

        @settings(max_examples=draws(40), deadline=None)

    Args:
        count: how many prove the property well enough that a change which breaks it is found.
    """
    return count * int(os.environ.get("FT_EXAMPLES", "1"))
