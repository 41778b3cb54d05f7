"""SmolLM2's own tokenizer, out of the package that carries its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks.testing import FakeContext
from finetooth_toolbox.text.tokenizers import FastTokenizer

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("FT_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> FastTokenizer:
    loader = pytest.importorskip("finetooth_gguf.loader")
    options: Any = pytest.importorskip("finetooth_hooks.options").NoOptions()
    try:
        built: FastTokenizer = loader.build(options, FakeContext(tmp_path_factory.mktemp("context"))).tokenizer(
            "smollm2-135m"
        )
    except Exception as error:
        pytest.skip(f"SmolLM2 is not installed: {error}")
    return built
