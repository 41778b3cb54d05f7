"""The model hub when it does not answer: found out once and within seconds, where its libraries would try for a minute.

Imports huggingface_hub, which every plugin that asks the hub has.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any

WAIT = 5.0
"""Seconds within which the hub must answer something."""
LASTS = 60.0
"""Seconds for which an answer, or that there was none, is believed."""

_lock = Lock()
_known: dict[str, tuple[float, str]] = {}
"""When each address was last asked, and what was wrong with it."""


def why_unreachable() -> str:
    """Why the hub cannot be asked, for a message: the user wants to stay offline, or nothing answers. Empty if it can.

    Whatever proxies, certificates and address (`HF_ENDPOINT`) the hub's own client has been told are used.
    """
    constants = _constants()
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    with _lock:
        checked, why = _known.get(constants.ENDPOINT, (-LASTS, ""))
        if time.monotonic() - checked >= LASTS:
            why = _ask(constants.ENDPOINT)
            _known[constants.ENDPOINT] = (time.monotonic(), why)
        return why


@contextmanager
def without_retries() -> Iterator[str]:
    """Inside the `with` block, libraries that ask the hub go by what is on this machine if the hub cannot be reached;
    they alone would try every file again and again. Yields why, empty if it can be reached or the user wants to stay
    offline."""
    offline = _constants().HF_HUB_OFFLINE
    why = "" if offline else why_unreachable()
    # what HF_HUB_OFFLINE=1 sets as they are imported
    switches: list[Any] = [
        module for module in (_constants(), sys.modules.get("datasets.config")) if module is not None
    ]
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        for module in switches if why else ():
            module.HF_HUB_OFFLINE = True
        yield why
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _ask(address: str) -> str:
    """What keeps an address from being reached; any answer will do."""
    from huggingface_hub import get_session

    answers: list[str] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=WAIT)
            answers.append("")
        except Exception as error:  # the client's own, which differ between its versions
            text = re.sub(r"^\[Errno -?\d+\] ", "", " ".join(str(error).split()))
            answers.append(text[:100] or type(error).__name__)

    # a timeout does not bound how long the address of a name is looked for
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT)
    return answers[0] if answers else f"no answer within {WAIT:.0f} s"


def _constants() -> Any:
    from huggingface_hub import constants

    return constants
