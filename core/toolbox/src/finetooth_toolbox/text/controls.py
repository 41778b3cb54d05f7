"""Escapes control characters in foreign text, which a terminal would otherwise obey.

Texts of models, rows, file names and errors that quote them may contain escape sequences that clear the screen, set its
title or hide earlier text. `ft` and plugins print such text only through `escape_controls`.
"""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""C0 without the tab and the line feed, DEL, and C1: terminals obey `\\x9b` as they do `\\x1b[`."""


def escape_controls(text: str) -> str:
    """The text with escapes (`\\x1b`, `\\r`) instead of control characters; tabs and line feeds stay."""
    return _CONTROL.sub(lambda match: escaped(match.group()), text)


def escaped(character: str) -> str:
    """A character as it is written in Python: `\\t`, `\\x1b`, `\\u200b`."""
    code = ord(character)
    named = {"\t": "\\t", "\r": "\\r"}
    if character in named:
        return named[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
