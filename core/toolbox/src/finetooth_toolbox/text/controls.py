"""Control characters in text that somebody else wrote: shown, and never sent to a terminal, which would obey them.

What a model writes, what rows and names of files hold, and errors that quote them may spell escape sequences that
clear the screen, set its title or hide what stands before. Everything that `ft` and plugins print of such text goes
through `escape_controls`.
"""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""C0 without the tab and the line feed, DEL, and C1: terminals obey `\\x9b` as they do `\\x1b[`."""


def escape_controls(text: str) -> str:
    """The text with escapes (`\\x1b`, `\\r`) in place of control characters; tabs and line feeds stay."""
    return _CONTROL.sub(lambda match: escaped(match.group()), text)


def escaped(character: str) -> str:
    """A character as it is written in Python: `\\t`, `\\x1b`, `\\u200b`."""
    code = ord(character)
    named = {"\t": "\\t", "\r": "\\r"}
    if character in named:
        return named[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
