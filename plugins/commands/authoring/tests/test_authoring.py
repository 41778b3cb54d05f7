"""What `ft plugins explain` and `ft plugins new` write, as a user calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from finetooth_authoring.explanation import type_text
from finetooth_core.cli import main


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (float, "float"),
        (Literal["drop", "raise"], "'drop' | 'raise'"),
        (list[str] | None, "list[str] | null"),
        (tuple[int, ...], "tuple[int, ...]"),
    ],
)
def test_types_are_written_as_a_user_reads_them(annotation: object, text: str) -> None:
    assert type_text(annotation) == text


def test_an_entry_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "explain", "command:plugins-new"]) == 0
    assert "full name  finetooth-authoring:plugins-new" in capsys.readouterr().out


def test_a_kind_that_is_none_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "acme-thing", "--kind", "los", "--folder", str(tmp_path / "new")]) == 2
    assert "did you mean loss?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_one_plugin_is_tried_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "try", "finetooth-jsonl", "finetooth-console"]) == 2
    said = capsys.readouterr()
    assert "finetooth-console: ft plugins try takes one plugin, then KEY=VALUE (try each by itself)" in said.err
    assert not said.out and len(said.err.splitlines()) == 1
