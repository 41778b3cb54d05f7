"""Pages that other plugins bring: entries of the catalog, each an application below `/NAME`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from finetooth_hooks import Asgi, CommandContext, FinetoothError, PluginError
from starlette.responses import HTMLResponse
from starlette.routing import Mount

from finetooth_board import pages


class Plugged:
    """Routes to the pages of other plugins. A page is built when somebody first asks for it: that imports its plugin.

    Args:
        context: builds the pages.
        form: the fields of a form of this board, from its body.
        token: of forms.
    """

    def __init__(self, context: CommandContext, form: Callable[[bytes], Mapping[str, str]], token: str) -> None:
        self._context, self.form, self.token = context, form, token
        self._made: dict[str, Asgi] = {}
        self._brought = {brought.entry.name: brought for brought in context.catalog.all("page")}

    def routes(self, taken: frozenset[str]) -> list[Mount]:
        """A route to each page.

        Args:
            taken: names of the board's own pages.

        Raises:
            PluginError: a page has one of those names.
        """
        for name in sorted(self._brought.keys() & taken):
            plugin = self._brought[name].distribution
            raise PluginError(plugin, f"its page {name!r} has the name of one of the board's", action="rename it")
        return [Mount(f"/{name}", app=self._answering(name)) for name in self._brought]

    def links(self) -> tuple[tuple[str, str], ...]:
        """Address and title of each page."""
        entries = [self._brought[name].entry for name in sorted(self._brought)]
        return tuple((f"/{entry.name}/", getattr(entry, "title", "") or entry.name) for entry in entries)

    def whole(self, title: str, body: str) -> str:
        """See `finetooth_hooks.PageService`."""
        return pages.page(title, body)

    def _answering(self, name: str) -> Asgi:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            sent: list[bool] = []

            async def noted(message: Any) -> None:
                sent.append(True)
                await send(message)

            try:
                if name not in self._made:
                    self._made[name] = await asyncio.to_thread(self._build, name)
                await self._made[name](scope, receive, noted)
            except FinetoothError as error:
                if sent:
                    raise
                await HTMLResponse(pages.error_page("This request failed", str(error)), 400)(scope, receive, send)

        return answer

    def _build(self, name: str) -> Asgi:
        made: Asgi = self._context.build("page", name, setting="ft board").app(self)
        return made
