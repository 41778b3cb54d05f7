"""A context with rows of our own, and SmolLM2-like bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_hooks import Example
from finetooth_hooks.protocols import Examples
from finetooth_kit import FakeContext


@pytest.fixture
def context_of(tmp_path: Path) -> Callable[..., FakeContext]:
    def make(*examples: Example) -> FakeContext:
        rows = tuple((f"rows.jsonl:{i}", example) for i, example in enumerate(examples, start=1))
        return FakeContext(tmp_path, given={"train": Examples("train", rows)} if rows else {})

    return make
