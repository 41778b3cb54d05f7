"""Arguments of calls as Gemma 4 writes them: JSON with bare keys, and strings between tokens `<|"|>`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_toolbox.text.strict_json import received

QUOTE = '<|"|>'
_BRACE = re.compile(re.escape(QUOTE) + "|[{}]")

_KEY = re.compile(r"([{,])\s*([^\s:{}\[\],\"][^:{}\[\],\"]*):")

_NONE = re.compile(r"(?<=[:,\[])None(?=[,\]}])")
"""How the template before July 2026 writes null."""


def read_arguments(pieces: Sequence[str]) -> Mapping[str, Any] | None:
    """What `{...}` says; None if it is broken.

    Args:
        pieces: the text between the tokens that quote: outside, inside, outside, ...
    """
    parts = [
        json.dumps(piece) if i % 2 else _NONE.sub("null", _KEY.sub(r'\1"\2":', piece)) for i, piece in enumerate(pieces)
    ]
    try:
        decoded = received("".join(parts))
    except ValueError:
        return None
    return decoded if isinstance(decoded, dict) and len(pieces) % 2 else None


def end_of_arguments(text: str, at: int) -> int | None:
    """Where the `{...}` ends that begins at a character; None if it does not."""
    depth, inside = 0, False
    for match in _BRACE.finditer(text, at):
        if match[0] == QUOTE:
            inside = not inside
        elif not inside:
            depth += 1 if match[0] == "{" else -1
            if not depth:
                return match.end()
    return None
