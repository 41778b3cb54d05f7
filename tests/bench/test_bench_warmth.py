"""What is read before a contender's turn: what it loads, wherever it lies, and nothing that cannot be read."""

from __future__ import annotations

from pathlib import Path

from harness.warmth import PIECE, files, read_in


def test_libraries_and_models_are_read(tmp_path: Path) -> None:
    sizes = {"site/a.pyc": 5, "site/deep/b.so": PIECE + 3, "site/deep/libc.so.1.2": 7, "model/w.safetensors": 11}
    for name, size in {**sizes, "site/a.py": 100, "site/readme.md": 100}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "site" / "gone.so").symlink_to(tmp_path / "nowhere")
    (tmp_path / "site" / "folder.so").mkdir()
    folders = tmp_path / "site", tmp_path / "model", tmp_path / "absent"
    assert {file.relative_to(tmp_path).as_posix() for file in files(*folders)} == set(sizes)
    assert read_in(*folders) == sum(sizes.values())
