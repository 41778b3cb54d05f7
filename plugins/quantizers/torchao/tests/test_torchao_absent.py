"""Without the library, which is an extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import UserError
from finetooth_torchao.exporter import TorchaoExporter, TorchaoExportOptions


def test_an_export_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    nothing: Any = object()  # no weights are asked for
    with pytest.raises(UserError, match="torchao is not installed") as caught:
        TorchaoExporter("int8", TorchaoExportOptions()).export(nothing, tmp_path)
    assert "install" in caught.value.action and not list(tmp_path.iterdir())
