"""The plugins that the guides show, as a reader takes them: local files that pass the doctor and train together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_authoring.doctor import examine
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import specs

KINDS = {"attention", "format", "kernel", "loss", "method", "optimizer", "quantizer", "reward", "source", "tracker"}
"""Kinds of which a guide shows a whole plugin in one file."""
ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"prompt": f"What is {i} + {i}?", "completion": f"It is {2 * i}" + "." * i} for i in (3, 1, 4, 2)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, blocks: Callable[[Path], list[Any]]) -> dict[str, Path]:
    """Each plugin of one file, by its name, written as the guide says; those that lie beside the guides as they are."""
    folder = tmp_path_factory.mktemp("guides")
    found = {path.name: path for path in (ROOT / "docs/guides").rglob("*.py") if offers(path.read_text())}
    for page in sorted((ROOT / "docs/guides").glob("*.md")):
        for block in blocks(page):
            name = block.marker.removeprefix("file: ")
            if re.fullmatch(r"\w+\.py", name) and offers(block.text):
                found[name] = folder / name
                found[name].write_text(block.text, encoding="utf-8")
    return found


def offers(source: str) -> bool:
    """Whether a file yields entries; those that only watch runs have a guide with tests of its own."""
    return "@row_format" in source or any(f"def {hook}(" in source for hook in specs.REGISTRATION_HOOKS)


@pytest.mark.slow
def test_every_plugin_of_the_guides_passes_the_doctor(files: dict[str, Path]) -> None:
    state = State(StartOptions(plugins=tuple(map(str, files.values()))))
    offered = {entry.kind for plugin in state.plugins.loaded if plugin.sha256 for entry in plugin.entries}
    assert offered >= KINDS
    for examination in examine(state, [str(path) for path in files.values()]):
        assert examination.healthy, [finding.line() for finding in examination.findings]
        assert examination.passed


@pytest.mark.parametrize(
    ("name", "computes"),
    [("tidy", {"backend": {"name": "torch", "attention": "tidy"}}), ("acme_norm", {"kernels": {"rms_norm": "acme"}})],
    ids=["attention", "kernel"],
)
def test_they_train_together(
    files: dict[str, Path], tiny_model: Path, tmp_path: Path, name: str, computes: dict[str, Any]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    wanted = ("unsure", "shortest_first", "coverage", "table", "signum", name)
    session = finetooth.session(
        {
            "model": {"name": str(tiny_model)},
            "data": {"train": str(rows), "eval": str(rows), "renderer": "chatml"},
            "method": {"name": "shortest_first", "loss": {"name": "unsure", "beta": 0.05}},
            "optimizer": {"name": "signum", "learning_rate": 1e-3},
            **computes,
            "evaluate": {"evaluators": [{"name": "exact_match", "reward": "coverage", "max_tokens": 4}]},
            "trackers": ["table"],
            "train": {"batch_size": 2, "max_steps": 2, "precision": "fp32"},
            "output": str(tmp_path / "run"),
        },
        plugins=[str(files[f"{plugin}.py"]) for plugin in wanted],
    )
    chosen = " ".join(f"{decision.setting}={decision.value}" for decision in session.plan.decisions)
    assert f"{name}.py:" in chosen
    outcome = session.run()
    assert outcome.status == "done"
    assert outcome.metrics["entropy"] > 0
    lines = (tmp_path / "run/table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[1] for line in lines if "| loss |" in line] == ["loss", "loss"]
    assert lines[-1] == "| 2 | outcome | done |"


def test_numbers_of_entries_are_those_that_are_installed() -> None:
    catalog = State(StartOptions()).catalog
    changes, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "README.md"))

    def count(kind: str) -> int:
        return len({registered.entry.name for registered in catalog.all(kind)})

    assert f"**Optimizers.** {count('optimizer')} of them" in changes
    assert f"| Optimizers | {count('optimizer')}, " in readme
    assert f"{count('renderer')} chat templates" in changes
    assert f"Plugins of {len(catalog.kinds)} kinds" in changes
