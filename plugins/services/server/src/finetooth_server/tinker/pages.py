"""Numbers and times of the Tinker wire's answers, and which part of a list a request wants."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from finetooth_hooks import UserError

from finetooth_server.keeping.history import Page
from finetooth_server.keys import Caller

OWNED, ACCESSIBLE = "owned", "accessible"


def page(request: Mapping[str, Any], limit: int) -> Page:
    """The part of a list.

    Args:
        limit: where the request names none.

    Raises:
        UserError: it is none.
    """
    return Page(_whole(request, "offset", 0), _whole(request, "limit", limit))


def cursor(of: Page, count: int) -> dict[str, int]:
    """Where a page stands in its list."""
    return {"offset": of.offset, "limit": of.limit, "total_count": count}


def instant(seconds: float | None) -> str | None:
    """Seconds since 1970 as the wire writes them."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def seconds(text: object) -> float:
    """What `instant` wrote.

    Raises:
        UserError: it is none.
    """
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError) as error:
        raise UserError(f"{str(text)[:80]!r} is not a time", action="send one as 2026-01-31T12:00:00Z") from error


def check_scope(request: Mapping[str, Any]) -> None:
    """Whose things are listed: a tenant sees its own, which is all that is accessible to it.

    Raises:
        UserError: something else is asked for.
    """
    scope = request.get("access_scope") or OWNED
    if scope not in (OWNED, ACCESSIBLE):
        raise UserError(f"access_scope is {scope!r}", action=f"choose {OWNED} or {ACCESSIBLE}")


def check_project(caller: Caller, project: object) -> None:
    """A key's tenant is its one project.

    Raises:
        UserError: another one is named.
    """
    if project is not None and project != caller.tenant:
        raise UserError(
            f"project {str(project)[:80]!r} is not offered: the tenant of a key is its one project",
            action=f"name {caller.tenant!r}, or none, or use a key of another tenant",
        )


def texts(about: Mapping[str, Any]) -> dict[str, str] | None:
    """A client's notes as the wire gives them back: texts only."""
    return {str(name): value if isinstance(value, str) else str(value) for name, value in about.items()} or None


def _whole(request: Mapping[str, Any], name: str, default: int) -> int:
    value = request.get(name)
    if value is None:
        return default
    text = str(value)
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UserError(f"{name} is {text[:40]!r}", action="give a whole number")
    return int(text)
