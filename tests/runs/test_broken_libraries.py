"""Libraries that are installed and break when imported, as bitsandbytes and torchao do without their driver."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

LIBRARIES = {"bitsandbytes": ("nf4", "finetooth_bitsandbytes"), "torchao": ("torchao_int4", "finetooth_torchao")}
RAISED = ["RuntimeError('CUDA driver is too old')", "OSError('libcudart.so.13: no such file')"]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Lets a library raise when it is imported."""

    def breaks(library: str, raised: str) -> None:
        package = tmp_path / "broken" / library
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise {raised}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(package.parent)
        for name in list(sys.modules):
            if name.partition(".")[0] == library or name == f"{LIBRARIES[library][1]}.modules":
                monkeypatch.delitem(sys.modules, name)

    return breaks


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_broken_library_is_one_line_and_auto_does_without(
    broken: Callable[[str, str], None], recipe: Callable[..., Any], ft: Any, tmp_path: Path, library: str, raised: str
) -> None:
    """The portable quantizers work, so `auto` takes one, and says what it passed over."""
    broken(library, raised)
    name, _ = LIBRARIES[library]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(quantization=name)), encoding="utf-8")
    code, _, err = ft("check", file)
    says = f"quantizer '{name}' cannot be imported: {raised.partition('(')[0]}: "
    assert code == 2 and err.count("\n") == 1, err
    assert says in err and "(repair the library that raised it; --debug" in err
    code, out, err = ft("check", file, "quantization=auto", "--json")
    plan = json.loads(out)
    assert code == 0, err
    assert any(note.startswith("passed over: ") and says in note for note in plan["notes"]), plan["notes"]
