"""`ft doctor weights`: a weight that is a multiple of its peers is found, and comes back to their median."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from finetooth_doctor.command import command
from finetooth_hooks import UserError
from safetensors.numpy import load_file, save_file

SPOILT = "model.layers.3.linear_attn.conv1d.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two files, six layers of two kinds of weights, one of which is twice what it should be."""
    folder, drawn = tmp_path / "model", np.random.default_rng(0)
    folder.mkdir()
    for part, layers in (("1", range(3)), ("2", range(3, 6))):
        weights = {
            f"model.layers.{layer}.{name}.weight": drawn.normal(0, scale, (64, 32)).astype(np.float32)
            for layer in layers
            for name, scale in (("linear_attn.conv1d", 0.1), ("mlp.up_proj", 3.0))
        }
        if part == "2":
            weights[SPOILT] *= 2
            weights["model.norm.weight"] = np.full(32, 50.0, np.float32)  # it has no peers
        save_file(weights, folder / f"model-{part}.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def said(folder: Path, *arguments: Any) -> tuple[int, str]:
    files = tuple(sorted(folder.glob("*.safetensors")))
    obj = SimpleNamespace(
        load=lambda recipe: recipe, context=lambda recipe: SimpleNamespace(model=SimpleNamespace(files=files))
    )
    done = CliRunner().invoke(
        command, ["weights", str(folder), *map(str, arguments)], obj=obj, standalone_mode=False, catch_exceptions=False
    )
    return done.return_value, done.output


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def whole(folder: Path) -> dict[str, np.ndarray]:
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def test_one_weight_returns_to_the_median_of_its_peers(model: Path, tmp_path: Path) -> None:
    before = digests(model)
    code, told = said(model)
    assert code == 1 and told.count("times the median") == 1 and SPOILT in told
    assert digests(model) == before  # a look changes nothing
    code, told = said(model, "--output", tmp_path / "mended")
    assert code == 0 and "1 weight rescaled" in told and digests(model) == before
    old, new = whole(model), whole(tmp_path / "mended")
    rms = {n: float(np.sqrt((x.astype(np.float64) ** 2).mean())) for n, x in old.items() if "conv1d" in n}
    wanted = old[SPOILT].astype(np.float64) * np.median(list(rms.values())) / rms[SPOILT]
    np.testing.assert_allclose(new.pop(SPOILT), wanted, rtol=1e-6)
    del old[SPOILT]
    assert all(np.array_equal(old[name], new[name]) for name in old) and old.keys() == new.keys()
    assert digests(tmp_path / "mended")["model-1.safetensors"] == before["model-1.safetensors"]
    assert said(tmp_path / "mended")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--threshold", 2.5), 0),
        (("--pattern", r"layers\.[345]\.linear_attn"), 0),  # too few to be peers
        (("--pattern", r"linear_attn\.conv1d"), 1),
        (("--pattern", r"up_proj"), 0),
    ],
)
def test_what_is_compared(model: Path, arguments: tuple[Any, ...], code: int) -> None:
    assert said(model, *arguments)[0] == code


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--pattern", "nothing"), "--pattern nothing: no weight has such a name"),
        (("--pattern", "("), r"--pattern \(: "),
        (("--output", "model"), "exists"),
    ],
)
def test_bad_input(model: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], problem: str) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(UserError, match=problem):
        said(model, *arguments)


def test_a_model_in_another_layout_is_refused(model: Path) -> None:
    shutil.move(model / "model-1.safetensors", model / "kept")
    shutil.move(model / "model-2.safetensors", model / "kept2")
    with pytest.raises(UserError, match="not a folder with safetensors files"):
        said(model)
    assert json.loads((model / "config.json").read_text()) == {}
