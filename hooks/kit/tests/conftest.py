"""Plugins on disk for the tests of the kit: `plugin("...source...")` writes a module and makes it importable."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()

HEADER = """
from __future__ import annotations
from finetooth_hooks import *
from finetooth_hooks import arrays as xp
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write `NAME.py` with the plugin's hooks, and `NAME_parts.py` with its builders; NAME replaces `{me}`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def write(hooks: str, parts: str = "") -> str:
        name = f"under_test_{next(_numbers)}"
        made.append(name)
        light = "from __future__ import annotations\nfrom finetooth_hooks import hookimpl, Loss, Reward, Schedule\n"
        light += "from finetooth_hooks import Tracker, Source, Claim, Method, Renderer, Format, Evaluator\n"
        light += "from finetooth_hooks import Adapter, Optimizer, Hardware\n"
        (tmp_path / f"{name}.py").write_text(light + textwrap.dedent(hooks).replace("{me}", name), encoding="utf-8")
        (tmp_path / f"{name}_parts.py").write_text(HEADER + textwrap.dedent(parts), encoding="utf-8")
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)
        sys.modules.pop(f"{name}_parts", None)
