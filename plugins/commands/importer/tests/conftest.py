"""What became of keys, in short."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetooth_importer.account import Account

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]


@pytest.fixture
def outcomes() -> Outcomes:
    """Each key with what became of it, and the setting that it became."""
    return lambda account: {line.key: (line.outcome, line.setting) for line in account}
