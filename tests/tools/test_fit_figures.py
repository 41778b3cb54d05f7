"""The page of what fits: each cell's recipe, what a line says, and whether a run that went on ended with its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

MEASURED = {"planned": 1100, "peak": 1000, "before": 5.5, "after": 1.25}


def test_a_line_says_what_was_measured_and_what_was_not() -> None:
    from fit_page import page

    figures = {
        "quantizer:int8": {**MEASURED, "forward": 0.04},
        "adapter:lora": {**MEASURED, "resumes": True},
        "adapter:dora": {**MEASURED, "resumes": False, "planned": 900},
        "optimizer:lion": {"failed": "no | such thing"},
    }
    lines = page(figures).splitlines()
    assert "| `int8` | 0.040 | 5.500 | 1.250 | 1153 | 1049 | +10% |  |  |  |" in lines
    assert "| `lora` | 5.500 | 1.250 | 1153 | 1049 | +10% | bit for bit |  |" in lines
    assert "| `dora` | 5.500 | 1.250 | 944 | 1049 | -10% | no |  |" in lines
    assert any(line.startswith("| `lion` | no / such thing |") for line in lines)
    assert any(line.startswith("| `sgd` | not measured |") for line in lines)


def test_what_a_failed_cell_said_holds_no_path_of_this_machine() -> None:
    from measure_fit import ROOT, last_line

    said = f"a trace\nImportError: no name in {ROOT}/core/x.py, of /tmp/fit-1/run\n"
    assert last_line(said, "/tmp/fit-1") == "ImportError: no name in /core/x.py, of /run"
    assert last_line("", "/tmp/fit-1") == "it said nothing"


def test_every_optimizer_of_a_cpu_and_every_quantizer_has_a_cell() -> None:
    from finetooth_core.plugins import manager
    from fit_recipes import CELLS

    catalog = manager.start(files=[]).catalog
    for kind in ("optimizer", "quantizer"):
        entries = [one.entry for one in catalog.speaking(kind, "torch")]
        names = {entry.name for entry in entries if kind == "quantizer" or not entry.devices}
        assert {f"{kind}:{name}" for name in names} <= CELLS.keys()


@pytest.mark.parametrize(("weights", "state", "same"), [(b"w", b"s", True), (b"v", b"s", False), (b"w", b"t", False)])
def test_a_run_that_goes_on_is_held_against_its_own_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bytes, state: bytes, same: bool
) -> None:
    """By its artifact and by the state after the last step; the checkpoint in the middle is what it goes on from."""
    import finetooth
    from fit_cell import _resumes

    def ended(weights: bytes, state: bytes) -> None:
        for name, content in (("artifact/a", weights), ("checkpoints/step-4/engine/a", state)):
            file = tmp_path / f"{name}.safetensors"
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
        (tmp_path / "result.json").touch()

    def resume(folder: Path) -> None:
        left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert left == {"checkpoints/step-2/engine/a.safetensors"}
        ended(weights, state)

    middle = tmp_path / "checkpoints/step-2/engine/a.safetensors"
    middle.parent.mkdir(parents=True)
    middle.touch()
    ended(b"w", b"s")
    monkeypatch.setattr(finetooth, "resume", resume)
    assert _resumes(tmp_path, 4) is same
