"""`ft quantize`: a run and a model in fewer bits, measured before and after; what costs too much is not kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum
from safetensors import safe_open

Recipe = dict[str, Any]
ROWS = [{"prompt": f"{n} and 3?", "completion": str(n + 3)} for n in range(8)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


def losses(out: str) -> tuple[float, float]:
    (found,) = re.findall(r"checked: loss: ([\d.]+) before, ([\d.]+) after", " ".join(out.split()))
    return float(found[0]), float(found[1])


def scored(model: Path, recipe: Callable[..., Recipe], output: Path) -> Any:
    made = recipe(model=str(model), output=str(output), train={"precision": "fp32"})
    return finetooth.session(made, data=False).engine.logprobs([Datum.from_tokens(list(range(20, 60)))])[0]


PACKED = {"int8": "weight_packed", "mxfp4": "weight_packed", "hqq": "W_q", "quanto_int4": "weight._data._data",
          "quanto_int8": "weight._data"}  # fmt: skip
"""What of a module holds its codes, by format."""


@pytest.mark.parametrize(
    "form", [form if form in ("int8", "hqq") else pytest.param(form, marks=pytest.mark.slow) for form in PACKED]
)
def test_a_model_is_stored_in_fewer_bits(
    tiny_model: Path, rows: Path, ft: Callable[..., Any], recipe: Callable[..., Recipe], tmp_path: Path, form: str
) -> None:
    target = tmp_path / "small"
    exact = ["precision=fp32"] if form.startswith("quanto") else []  # optimum-quanto computes in it
    given = ("quantize", tiny_model, *exact, "--to", form, "--data", rows, "--output", target, "--bound", "5")
    code, out, err = ft(*given)
    assert code == 0, out + err
    before, after = losses(out)
    assert before != after and abs(before - after) < 0.5
    with safe_open(target / "model.safetensors", framework="pt") as held:
        assert any(name.endswith(f".{PACKED[form]}") for name in held.keys())  # noqa: SIM118
    apart = scored(target, recipe, tmp_path / "a") - scored(tiny_model, recipe, tmp_path / "b")
    assert 0 < np.abs(apart).max() < 1.0
    code, _, err = ft(*given)
    assert code == 2 and "small exists" in err
    if form.startswith("quanto"):
        quanto = pytest.importorskip("optimum.quanto")
        import torch

        theirs = quanto.QuantizedModelForCausalLM.from_pretrained(str(target))
        with torch.no_grad():
            logits = theirs(input_ids=torch.arange(20, 60)[None]).logits[0].log_softmax(-1)
        said = logits[:-1].gather(1, torch.arange(21, 60)[:, None])[:, 0]
        np.testing.assert_allclose(said.numpy(), scored(target, recipe, tmp_path / "c"), atol=2e-3)


def test_what_costs_too_much_is_not_kept(
    tiny_model: Path, rows: Path, ft: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a model says on which rows it is measured."""
    target = tmp_path / "small"
    code, _, err = ft("quantize", tiny_model, "--to", "int4", "--output", target)
    assert code == 2 and "so the command needs rows to measure its loss on (set --data FILE)" in err
    for data in ((), ("--data", rows)):
        code, _, err = ft("quantize", tiny_model, "--to", "int3", "--output", target, *data)
        assert code == 2 and re.match(r"error: --to: .*int3", err.splitlines()[-1]), err
    code, _, err = ft("quantize", tiny_model, "--to", "int4", "--data", rows, "--output", rows / "small")
    assert code == 2 and f"--output: {rows / 'small'} cannot be written: " in err, err
    measured = iter([1.0, 1.0625])
    monkeypatch.setattr("finetooth_export.quantize._loss", lambda *of: next(measured))
    code, _, err = ft("quantize", tiny_model, "--to", "int4", "--data", rows, "--output", target)
    assert code == 2 and "worse by 0.0625, and --bound is 0.05; nothing was kept" in " ".join(err.split())
    assert not target.exists() and not list(tmp_path.glob(".small*"))


@pytest.mark.slow
def test_gptq_is_calibrated_on_the_rows(
    tiny_model: Path, rows: Path, ft: Callable[..., Any], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    target = tmp_path / "small"
    code, out, err = ft(
        "quantize", tiny_model, "group=32", "--to", "gptq", "--data", rows, "--output", target, "--bound", "5"
    )
    assert code == 0, out + err
    losses(out)
    assert json.loads((target / "config.json").read_text(encoding="utf-8"))["quantization_config"]["bits"] == 4


def test_a_run_is_measured_as_it_measured_itself(
    recipe: Callable[..., Recipe], rows: Path, ft: Callable[..., Any], tmp_path: Path
) -> None:
    data = {"train": str(rows), "eval": str(rows), "renderer": "chatml"}
    train = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
    given = recipe(data=data, train=train, evaluate={"evaluators": ["loss"], "every": 1})
    finetooth.session(given).run()
    code, _, err = ft("quantize", given["output"], "--to", "int8", "--data", rows)
    assert code == 2 and "a run is measured on its own held-out rows (leave --data out)" in err
    code, out, err = ft("quantize", given["output"], "--to", "int8")
    assert code == 0, out + err
    assert "of the run" in out and "of the written model" in out and "linear modules packed as int8" in out
    assert (Path(given["output"]) / "exports/int8/config.json").is_file()
