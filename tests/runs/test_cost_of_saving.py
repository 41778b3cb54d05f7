"""How often a file of a checkpoint is read while it is saved."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import UserError


@pytest.fixture
def tiny_model(tiny_smollm2: Path) -> Path:
    """With a vocabulary of real size, which is what takes room here."""
    return tiny_smollm2


@pytest.mark.parametrize(("gates", "times"), [(["finite", "readback"], 2), (["finite"], 1)])
def test_a_file_is_hashed_for_the_manifest_and_once_more_where_it_is_read_back(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gates: list[str], times: int
) -> None:
    import finetooth
    from finetooth_saving.artifact import verify_folder

    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(file: Any, name: Any) -> Any:
        hashed[Path(file.name).name] += ".step-1." in str(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    finetooth.run(recipe(train={"batch_size": 8, "max_length": 256, "max_steps": 1},
                         checkpoint={"every": 1, "gates": gates}))  # fmt: skip
    saved = tmp_path / "run/checkpoints/step-1"
    files = {path.name for path in saved.rglob("*") if path.is_file()} - {"manifest.json", "state.json"}
    assert {name: hashed[name] for name in files} == dict.fromkeys(files, times)
    monkeypatch.setattr("finetooth_toolbox.files.manifests.sha256_of", lambda path: again.append(path) or "")
    again: list[Path] = []
    with pytest.raises(UserError, match="differs from its SHA-256"):
        verify_folder(saved)
    assert again  # whoever did not write it reads it
