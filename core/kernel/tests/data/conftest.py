"""A context that prepares lines of text with the toy plugin, and a cache of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from finetooth_core import api
from finetooth_core.planning.context import RunContext
from finetooth_hooks.data.preparation import Limit, Preparation, Rendering
from finetooth_rows import lazy_examples, work

WIDE = Limit(100, "drop")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; a few rows count as many here."""
    shutil.copy(Path(__file__).with_name("preparation_plugin.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FT_TEST_MAIN", str(os.getpid()))
    monkeypatch.setattr(lazy_examples, "SMALL_ROWS", 4)
    monkeypatch.setattr(work, "PORTION_ROWS", 3)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    def write(lines: Sequence[str], name: str = "rows.txt") -> Path:
        path = folder / name
        path.write_text("".join(f"{line}\n" for line in lines))
        os.utime(path, ns=(10**18, 10**18))  # long ago
        return path

    return write


@pytest.fixture
def context_of(folder: Path) -> Callable[..., RunContext]:
    """A new context over `rows.txt`, as a new process would have it."""

    def make(source: str = "toy_portions", **recipe: Any) -> RunContext:
        data = {"train": {"name": source, "path": "rows.txt"}, **recipe.pop("data", {})}
        session = api.session(
            {
                "model": {"name": "toy", "family": "toy"},
                "data": data,
                "plugins": [str(folder / "preparation_plugin.py")],
                **recipe,
            }
        )
        return RunContext(session.recipe, session.plugins.catalog, folder / "run", session.plugins)

    return make


@pytest.fixture
def rendering_of(context_of: Callable[..., RunContext]) -> Callable[..., Rendering]:
    """How the toy renders; the plugin's module has a name of its own in every process."""

    def make(context: RunContext, **options: Any) -> Rendering:
        entry = next(r.entry for r in context.catalog.all("format") if r.entry.name == "toy_lines")
        return Rendering(f"{entry.build.partition(':')[0]}:rendering", options)

    return make


@pytest.fixture
def prepare(context_of: Callable[..., RunContext], rendering_of: Callable[..., Rendering]) -> Callable[..., Any]:
    """Prepare `rows.txt` as a new process would; returns the preparation and its context."""

    def run(
        *, limit: Limit | None = WIDE, options: dict[str, Any] | None = None, **given: Any
    ) -> tuple[Preparation, RunContext]:
        context = context_of(**given)
        return context.prepare("train", rendering_of(context, **(options or {})), limit), context

    return run


@pytest.fixture
def prepare_first(context_of: Callable[..., RunContext], rendering_of: Callable[..., Rendering]) -> Callable[..., Any]:
    """Prepare the first rows of `rows.txt` as a new process would; returns the preparation and its context."""

    def run(count: int | None, **given: Any) -> tuple[Preparation, RunContext]:
        context = context_of(**given)
        return context.prepare("train", rendering_of(context), WIDE, first=count), context

    return run
