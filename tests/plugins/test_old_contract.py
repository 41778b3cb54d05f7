"""Plugins that were written for contract 1.0: each is refused in one line that says what changed for it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

OLD = Path(__file__).with_name("contract_1")
CHANGED = {
    "acme-evaluator": ("derives from finetooth_hooks.EvaluatorBase", "import it from finetooth_rows.splits"),
    "acme-loss": (),
    "acme-method": (
        "derives from finetooth_hooks.MethodBase",
        "Batches, BatchedMethod, train_step: import from finetooth_methods.batched",
        "import it from finetooth_rows.splits",
    ),
    "acme-muon": ("derives from finetooth_hooks.OptimizerBase",),
    "acme-near": (),
    "acme-renderer": ("derives from finetooth_hooks.RendererBase",),
    "acme-source": ("derives from finetooth_hooks.SourceBase",),
    "acme-tpl": ("derives from finetooth_hooks.TrackerBase",),
}
"""What the line names; nothing for those that fit contract 2 as they are."""


def install(prefix: Any, requires: str) -> Any:
    """Lay the old packages into a prefix as pip would."""
    for name in CHANGED:
        package = name.replace("-", "_")
        shutil.copytree(OLD / package, prefix.folder / package)
        (prefix.folder / package / "__init__.py").touch()
        info = prefix.folder / f"{package}-0.1.0.dist-info"
        info.mkdir()
        head = ("Metadata-Version: 2.4", f"Name: {name}", "Version: 0.1.0", f"Requires-Dist: {requires}")
        (info / "METADATA").write_text("\n".join(head) + "\n")
        (info / "entry_points.txt").write_text(f"[finetooth]\n{package} = {package}.plugin\n")
    return prefix


@pytest.fixture(scope="module")
def refused(new_prefix: Callable[[str], Any]) -> dict[str, str]:
    """The line that each gets."""
    result = install(new_prefix("old"), "finetooth-hooks>=1,<2").ft("plugins", "list")
    assert result.code == 0
    lines = [line for line in result.out.splitlines() if "acme-" in line]
    assert len(lines) == len(CHANGED)
    return {line.split()[1]: line for line in lines}


@pytest.mark.parametrize("name", CHANGED)
def test_an_old_plugin_is_refused_in_one_line(refused: dict[str, str], name: str) -> None:
    line = refused[name]
    assert f"{name} 0.1.0: it needs finetooth-hooks>=1,<2, and finetooth-hooks 2.0.0 is installed; " in line
    assert "docs/hooks/changes.md" in line
    for part in CHANGED[name] or ("nothing that it uses has changed",):
        assert part in line
    others = {part for parts in CHANGED.values() for part in parts} - set(CHANGED[name])
    assert not any(part in line for part in others)


@pytest.mark.slow
def test_the_lines_are_true(new_prefix: Callable[[str], Any]) -> None:
    """With a bound that lets them in, those fit of which it was said, and no others."""
    result = install(new_prefix("let-in"), "finetooth-hooks>=1").ft("plugins", "doctor", *CHANGED)
    sound = set(re.findall(r"^ok +(acme-\w+)", result.out, re.MULTILINE))
    assert sound == {name for name, parts in CHANGED.items() if not parts}, result.out
