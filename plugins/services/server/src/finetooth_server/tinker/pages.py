"""Numbers, times and pages of lists in the Tinker protocol."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from finetooth_hooks import UserError

from finetooth_server.keeping.history import Page
from finetooth_server.keys import Caller

OWNED, ACCESSIBLE = "owned", "accessible"


def page(request: Mapping[str, Any], limit: int) -> Page:
    """The requested part of a list.

    Args:
        limit: default of the request's.

    Raises:
        UserError: it is none.
    """
    return Page(_whole(request, "offset", 0), _whole(request, "limit", limit))


def cursor(of: Page, count: int) -> dict[str, int]:
    """The place of a page in its list."""
    return {"offset": of.offset, "limit": of.limit, "total_count": count}


def instant(seconds: float | None) -> str | None:
    """Seconds since 1970 in the protocol's format."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def seconds(text: object) -> float:
    """The inverse of `instant`.

    Raises:
        UserError: it is none.
    """
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError) as error:
        raise UserError(f"{str(text)[:80]!r} is not a time", action="send one as 2026-01-31T12:00:00Z") from error


def check_scope(request: Mapping[str, Any]) -> None:
    """Check the scope of a list: a tenant sees only its own things.

    Raises:
        UserError: another scope.
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
    """A client's notes in the protocol's format: texts only."""
    return {str(name): value if isinstance(value, str) else str(value) for name, value in about.items()} or None


def _whole(request: Mapping[str, Any], name: str, default: int) -> int:
    value = request.get(name)
    if value is None:
        return default
    text = str(value)
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UserError(f"{name} is {text[:40]!r}", action="give a whole number")
    return int(text)
