"""Formats built as a recipe picks them, over a context that keeps its notes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Row
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.shared_data import shared


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    return FakeContext(tmp_path, entries=tuple(entries_of("finetooth_formats.plugin")))


@pytest.fixture
def format_of(context: FakeContext) -> Callable[..., Any]:
    def make(name: str, **options: Any) -> Any:
        return context.build("format", {"name": name, **options})

    return make


@pytest.fixture
def rows_of(shared: Path) -> Callable[[str], Iterator[Row]]:
    """Rows of a shared JSON-lines file, read leniently: only the format is under test."""

    def rows(name: str) -> Iterator[Row]:
        path = shared / name
        for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
            yield Row(f"{path.name}:{number}", json.loads(line))

    return rows


__all__ = ["context", "format_of", "rows_of", "shared"]
