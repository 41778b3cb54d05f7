"""A page of the board: the recipes in its folder, and how long each is."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from finetooth_hooks import Asgi, Page, PageService, hookimpl


@hookimpl
def ft_pages() -> Iterator[Page]:
    yield Page(name="shelf", build=f"{__name__}:Shelf", title="Recipes", summary="recipes of the board's folder")


class Shelf:
    """Writes HTML; whatever a name says becomes text."""

    def app(self, service: PageService) -> Asgi:
        """A Starlette application would do as well; this one needs nothing."""

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            lines = {path.name: path.read_text(encoding="utf-8").count("\n") for path in sorted(Path().glob("*.yaml"))}
            listed = "".join(f"<li>{escape(name)}: {count} lines</li>" for name, count in lines.items())
            body = service.whole("Recipes", f"<ul>{listed}</ul>").encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": body})

        return answer
