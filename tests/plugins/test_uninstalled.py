"""A run whose plugin was uninstalled says which package to install."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import PluginError
from finetooth_kit.tiny_runs import recipe_for, tiny_model_folder

__all__ = ["tiny_model_folder"]

PLUGIN = """
    from finetooth_hooks import Schedule, hookimpl

    @hookimpl
    def ft_schedules():
        yield Schedule(name="acme_flat", build="acme_gone.schedule:build")
"""
SCHEDULE = """
    from finetooth_hooks import NoOptions

    class Flat:
        def factor(self, step, total):
            return 1.0

        def observe(self, metrics): ...

        def state(self):
            return {}

        def restore(self, state): ...

    def build(options: NoOptions, context):
        return Flat()
"""


def test_what_is_missing_is_named_with_its_version() -> None:
    from finetooth_core.plugins.catalog import Catalog

    catalog = Catalog((), index={})
    catalog.missing = {"acme-mars": "0.1.0"}
    with pytest.raises(PluginError) as refused:
        catalog.get("optimizer", "acme_mars")
    assert refused.value.problem.endswith("the run was made with acme-mars 0.1.0, which is not installed")
    assert refused.value.action.endswith("pip install 'acme-mars==0.1.0'")


@pytest.mark.slow
def test_resume_names_the_package(
    new_prefix: Callable[[str], Any], distribution_files: Callable[..., dict[str, str]], tiny_model_folder: Path
) -> None:
    prefix = new_prefix("gone")
    prefix.install({"acme-gone": distribution_files("acme-gone", PLUGIN, modules={"schedule.py": SCHEDULE})})
    recipe = recipe_for(prefix.work, tiny_model_folder, {"schedule": "acme_flat", "checkpoint": {"every": 1}})
    (prefix.work / "recipe.yaml").write_text(json.dumps(recipe))
    ended = prefix.ft("run", "recipe.yaml", "train.max_steps=1")
    assert ended.code == 0, ended.err
    for left in prefix.folder.glob("acme_gone*"):
        shutil.rmtree(left)
    result = prefix.ft("resume", "run", "train.max_steps=2")
    assert result.code == 2
    (line,) = (line for line in result.err.splitlines() if "acme_flat" in line)
    assert "the run was made with acme-gone 1.2.3, which is not installed" in line
    assert "pip install 'acme-gone==1.2.3'" in line
