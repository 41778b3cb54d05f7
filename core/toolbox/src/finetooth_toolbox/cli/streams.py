"""Makes standard streams write ASCII instead of a character that their encoding lacks, without an error."""

from __future__ import annotations

import codecs
import io
import json
import sys
from contextlib import suppress
from typing import Any

from finetooth_toolbox.text.controls import escape_controls

HANDLER = "finetooth"
"""Name of the error handler of standard streams for characters that they cannot encode."""

LOOK_ALIKES = {
    "\u27e8": "<",  # around a control token
    "\u27e9": ">",
    "\u2502": "|",
    "\u23ce": "\\n",
    "\u2588": "#",  # of a bar
    "\u258f": ".",
    "\u00b7": "-",
    "\u2013": "-",
    "\u2026": "...",
}
"""Characters that `ft` draws, and their replacements."""


def warn(line: str) -> None:
    """Write a line for the user to stderr, with control characters escaped."""
    print(f"note: {escape_controls(line)}", file=sys.stderr, flush=True)


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: characters of `LOOK_ALIKES` become similar ones, others their escapes.

    Raises:
        UnicodeError: the error is from reading, not writing.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(LOOK_ALIKES.get(sign) or _escape(sign) for sign in lacking), error.end


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(HANDLER, in_ascii)


def accept_all() -> None:
    """Make standard output and error accept every text, and standard input return undecodable bytes as lone surrogates,
    which `is_text` finds."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
    if isinstance(sys.stdin, io.TextIOWrapper):
        with suppress(io.UnsupportedOperation):  # other code has already read from it, in its own way
            sys.stdin.reconfigure(errors="surrogateescape")


def is_text(text: str) -> bool:
    """Whether the whole text could be decoded."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def json_text(content: Any) -> str:
    """JSON to print: in readable form, but in ASCII if the output cannot encode a character, since another kind of
    escape would be invalid JSON."""
    whole = (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf")
    return json.dumps(content, indent=2, ensure_ascii=not whole)
