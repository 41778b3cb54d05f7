"""Checks a query without a database: it must be a single query, and its rows must have an order."""

from __future__ import annotations

import re

_COMMENT_OR_QUOTED = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)|'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<tag>\$\w*\$).*?(?P=tag)""", re.DOTALL
)
_READS = ("select", "with", "values", "table")


def problem(query: str) -> tuple[str, str] | None:
    """The fault of a query and the next action; None if it is right.

    Args:
        query: SQL. Only words outside of quotes, comments and parentheses are looked at.
    """
    bare = _COMMENT_OR_QUOTED.sub(lambda match: " " if match["comment"] else " quoted ", query)
    text = _outside(bare).strip().removesuffix(";").strip()
    words = text.lower().split()
    if not words:
        return "it is empty", "write a SELECT"
    if ";" in text:
        return "it holds several statements", "write one SELECT"
    if words[0] not in _READS:
        return f"it begins with {words[0].upper()}, which does not read rows", "write a SELECT"
    if not re.search(r"\border\s+by\b", text, re.IGNORECASE):
        return (
            "it has no ORDER BY, so its rows could come in another order each time, and no run could be repeated",
            "add ORDER BY, with columns that no two rows share",
        )
    return None


def _outside(text: str) -> str:
    """The text outside of parentheses."""
    outside: list[str] = []
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth <= 0:
            outside.append(" " if character == ")" else character)
    return "".join(outside)
