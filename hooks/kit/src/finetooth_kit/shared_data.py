"""Public data, templates and tokenizers that tests read where they are at hand, and SmolLM2's own tokenizer.

They lie in `$FT_SHARED/data`, by default `../shared/data`; tests that need them are skipped where they are missing.
A conftest names the fixtures it wants:

    from finetooth_kit.shared_data import shared, smollm2
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from finetooth_toolbox.text.tokenizers import FastTokenizer


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Path:
    """The folder with shared data; skips without it."""
    folder = Path(os.environ.get("FT_SHARED", pytestconfig.rootpath.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def template(shared: Path) -> Callable[[str], str]:
    """Reads an official chat template; skips where it is not among the shared ones."""

    def read(name: str) -> str:
        file = shared / f"templates/{name}.jinja"
        if not file.is_file():
            pytest.skip(f"no {file.name} among the shared templates")
        return file.read_text(encoding="utf-8")

    return read


@pytest.fixture(scope="session")
def trl_template() -> Callable[[str], str]:
    """Reads an official chat template out of TRL, which carries those of new models unchanged; skips where TRL is not
    installed or has none of that name."""
    spec = find_spec("trl")
    folders = spec.submodule_search_locations if spec is not None and spec.submodule_search_locations else ()

    def read(name: str) -> str:
        files = [Path(folder) / f"chat_templates/{name}.jinja" for folder in folders]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            pytest.skip(f"no TRL here that has the template {name}")
        return file.read_text(encoding="utf-8")

    return read


@pytest.fixture(scope="session")
def smollm2() -> FastTokenizer:
    """SmolLM2's own tokenizer, out of the package that carries its weights; skips without it."""
    loader = pytest.importorskip("finetooth_gguf.loader")
    try:
        built: FastTokenizer = loader.GgufLoader(loader.GgufOptions()).tokenizer("smollm2-135m")
    except Exception as error:
        pytest.skip(f"SmolLM2 is not installed: {error}")
    return built


@pytest.fixture(scope="session")
def byte_level(smollm2: FastTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2's tokenizer.json, to be extended."""
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2.save(folder)
    return folder


__all__ = ["byte_level", "shared", "smollm2", "template", "trl_template"]
