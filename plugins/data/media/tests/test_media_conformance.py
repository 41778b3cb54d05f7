"""The conformance kit over the plugin, and what a model of text is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_hooks import RecipeError
from finetooth_kit import FakeContext, entries_of, parametrize_with_checks


@parametrize_with_checks("finetooth_media.plugin")
def test_images_plugin(check: Callable[[], None]) -> None:
    check()


def test_a_model_of_text_takes_neither_images_nor_sound(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, entries=tuple(entries_of("finetooth_media.plugin")))
    with pytest.raises(RecipeError, match="takes neither images nor sound"):
        context.build("processor", "transformers").placeholder("image")
