"""What became of keys, in short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer.account import Account

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]


@pytest.fixture
def outcomes() -> Outcomes:
    """Each key with what became of it, and the setting that it became."""
    return lambda account: {line.key: (line.outcome, line.setting) for line in account}


@pytest.fixture
def read_as(tmp_path: Path) -> Callable[[Any, dict[str, Any]], Any]:
    """The example that the pick of a format makes of a row."""
    pytest.importorskip("finetooth_formats")
    from finetooth_hooks import Row
    from finetooth_kit import FakeContext, entries_of

    context = FakeContext(tmp_path, entries=tuple(entries_of("finetooth_formats.plugin")))
    return lambda pick, row: context.build("format", pick).read(Row("rows:1", row))
