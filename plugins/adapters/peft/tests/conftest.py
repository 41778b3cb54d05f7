"""A tiny random Llama and its facts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from finetooth_kit.adapter_fixtures import tiny, tokens
from finetooth_peftfiles.compilers import compilers_restored

__all__ = ["tiny", "tokens"]


@pytest.fixture(autouse=True)
def compilers() -> Iterator[None]:
    """What peft alone does to the environment stays in its test."""
    with compilers_restored():
        yield
