"""Standard streams whose encoding lacks a character: it is written in ASCII in its place, and never an error."""

from __future__ import annotations

import codecs
import io
import json
import sys
from contextlib import suppress
from typing import Any

from finetooth_toolbox.text.controls import escape_controls

HANDLER = "finetooth"
"""Name of the way in which standard streams write what they have no code for."""

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
"""Signs that `ft` itself draws, and what stands for them where they are lacking."""


def warn(line: str) -> None:
    """Tell the user one thing in addition to the output proper; control characters in it are escaped."""
    print(f"note: {escape_controls(line)}", file=sys.stderr, flush=True)


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: signs of ours become what looks like them, other characters their escapes.

    Raises:
        UnicodeError: it was read, not written.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(LOOK_ALIKES.get(sign) or _escape(sign) for sign in lacking), error.end


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(HANDLER, in_ascii)


def accept_all() -> None:
    """From now on standard output and error take every text, and standard input gives what it cannot read as lone
    surrogates, which `is_text` finds."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
    if isinstance(sys.stdin, io.TextIOWrapper):
        with suppress(io.UnsupportedOperation):  # somebody has read from it already, and reads it in their own way
            sys.stdin.reconfigure(errors="surrogateescape")


def is_text(text: str) -> bool:
    """Whether all of what was given could be read in its encoding."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def json_text(content: Any) -> str:
    """JSON to print: as it is read best, and in ASCII where the output has no code for the rest, since an escape of
    another kind would be no JSON."""
    whole = (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf")
    return json.dumps(content, indent=2, ensure_ascii=not whole)
