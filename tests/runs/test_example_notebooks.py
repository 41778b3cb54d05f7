"""The notebooks in examples/ run from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_first_run_runs(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL", str(tiny_model))
    monkeypatch.setenv("OUTPUT", str(tmp_path / "run"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(EXAMPLES / "first_run.ipynb", as_version=4)
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = ["".join(str(output) for output in cell.outputs) for cell in book.cells if cell.cell_type == "code"]
    assert "('done', 4)" in outputs[1] and "image/svg+xml" in outputs[1], "no curve while it trains"
    assert "loss, done after 4 steps" in outputs[1]
    assert "eval/loss" in outputs[2] and "image/svg+xml" in outputs[3] and "report.html" in outputs[4]


def test_notebooks_are_kept_without_outputs():
    for file in EXAMPLES.glob("*.ipynb"):
        cells = nbformat.read(file, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), f"{file.name} holds outputs"
