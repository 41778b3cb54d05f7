"""The index of the workspace's entries: how it is made, and the hint that reads it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from finetooth_core.plugins.catalog import INDEX, Catalog
from finetooth_hooks import PluginError, install_command

ROOT = Path(__file__).resolve().parents[4]
TOOL = ROOT / "tools/make_index.py"

needs_workspace = pytest.mark.skipif(not TOOL.is_file(), reason="outside the workspace")


@needs_workspace
def test_the_tool_asks_the_plugins_of_the_workspace(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import make_index, json\n"
        "print(json.dumps(make_index.make_index(Path(sys.argv[2]))))\n"
    )
    package = tmp_path / "plugins/losses/acme"
    (package / "src/acme_indexed").mkdir(parents=True)
    (package / "pyproject.toml").write_text(
        '[project]\nname = "acme-indexed"\n[project.entry-points.finetooth]\nx = "acme_indexed.plugin"\n'
    )
    (package / "src/acme_indexed/__init__.py").write_text("")
    (package / "src/acme_indexed/plugin.py").write_text(
        "from finetooth_hooks import Loss, hookimpl\n@hookimpl\ndef ft_losses():\n"
        "    yield Loss(name='b', build='m:f')\n    yield Loss(name='a', build='m:f')\n"
    )
    command = [sys.executable, "-c", program, str(TOOL.parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"loss": {"a": ["acme-indexed"], "b": ["acme-indexed"]}}


def test_every_indexed_entry_that_is_not_installed_is_hinted() -> None:
    index = json.loads(INDEX.read_text(encoding="utf-8"))
    assert index
    empty = Catalog([])
    for kind, names in index.items():
        for name, packages in names.items():
            with pytest.raises(
                PluginError, match=re.escape(f"{packages[0]} brings it: {install_command(packages[0])}")
            ):
                empty.get(kind, name)
