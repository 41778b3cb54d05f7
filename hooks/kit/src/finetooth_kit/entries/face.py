"""Checks of faces and pages: what a server relies on before any client has called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from finetooth_kit.checks import EntryCase, check_for, expect


@check_for("face")
def face_has_a_path_of_its_own(case: EntryCase) -> None:
    """`path` is absolute and not the root, which is the server's."""
    path = case.build().path
    expect(
        isinstance(path, str) and path.startswith("/") and path.strip("/"), f"{case.called}.path", repr(path), "/NAME"
    )


@check_for("face")
def face_answers_with_an_application(case: EntryCase) -> None:
    """`app` takes the service, and `stdio` is a coroutine function."""
    face = case.build()
    app = getattr(face, "app", None)
    expect(callable(app), f"{case.called}.app", repr(app), "a method that makes the ASGI application")
    parameters = list(inspect.signature(face.app).parameters)
    expect(len(parameters) == 1, f"{case.called}.app", f"parameters {parameters}", "one, the service")
    expect(inspect.iscoroutinefunction(face.stdio), f"{case.called}.stdio", "a plain function", "async def")


@check_for("page")
def page_answers_with_an_application(case: EntryCase) -> None:
    """`app` takes the board's service and returns an ASGI application."""
    app = case.build().app(_Service())
    expect(callable(app), f"{case.called}.app", repr(app)[:80], "an ASGI application")


class _Service:
    """A board that nobody looks at."""

    token = "token"

    def whole(self, title: str, body: str) -> str:
        return body

    def form(self, body: bytes) -> Mapping[str, str]:
        return {}
