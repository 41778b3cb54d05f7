"""`ft adapters diff` and `merge` against NumPy and peft's own `add_weighted_adapter` over the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from finetooth_hooks import UserError
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.adapters_command import command, parse_weights
from finetooth_lora.comparison import compare
from peft import PeftModel
from safetensors.numpy import load_file

torch.set_num_threads(1)
METHODS = {"linear": None, "ties": 0.5, "cat": None}


@pytest.fixture
def make(tiny: Any, tmp_path: Path) -> Any:
    """Writes an adapter with other numbers each time; returns its folder."""

    def write(name: str, seed: int, base: str = "tiny", **options: Any) -> Path:
        made = tiny()
        adapter = LoraAdapter(LoraOptions(**{"rank": 4, "alpha": 6, **options}))
        model = adapter.apply(made.model, made.facts, np.random.default_rng(seed))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)
        made.info = SimpleNamespace(published="", reference=base)
        adapter.export(model, tmp_path / name, made.info)
        return tmp_path / name

    return write


def run(*arguments: Any) -> Any:
    runs = SimpleNamespace(run_folder=lambda reference: None)
    return CliRunner().invoke(command, [str(argument) for argument in arguments], obj=runs)


def logits(model: Any, tokens: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens).logits


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_merged_is_what_peft_makes_of_them_over_the_model(
    make: Any, tiny: Any, tokens: Any, tmp_path: Path, method: str, rslora: bool
) -> None:
    a, b = make("a", 1, rslora=rslora), make("b", 2, rslora=rslora)
    density = METHODS[method]
    given = [] if density is None else ["--density", density]
    done = run("merge", a, b, "--weights", "0.7,0.3", "--method", method, *given, "--output", tmp_path / "one")
    assert done.exit_code == 0, done.output
    model = PeftModel.from_pretrained(tiny().model, a, adapter_name="a")
    model.load_adapter(b, adapter_name="b")
    model.base_model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type=method, density=density)
    model.set_adapter("both")
    for module in model.modules():
        if "both" in getattr(module, "lora_A", ()):  # peft scales what it made of rsLoRAs by the root of the rank again
            module.scaling["both"] = 1.0
    ours = PeftModel.from_pretrained(tiny().model, tmp_path / "one")
    torch.testing.assert_close(logits(ours, tokens), logits(model, tokens), atol=1e-5, rtol=1e-5)


def weights(folder: Path, path: str = "model.layers.1.mlp.up_proj") -> Any:
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    a, b = (tensors[f"base_model.model.{path}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return config["lora_alpha"] / config["r"] * b @ a


def test_cat_is_the_exact_sum_also_of_other_ranks_and_modules(make: Any, tmp_path: Path, tiny: Any) -> None:
    a, b = make("a", 1), make("b", 2, rank=2, targets=["up_proj", "down_proj"])
    assert run("merge", a, b, "--weights", "2 -1", "--output", tmp_path / "one").exit_code == 0
    np.testing.assert_allclose(weights(tmp_path / "one"), 2 * weights(a) - weights(b), rtol=1e-5, atol=1e-7)
    only = "model.layers.0.self_attn.q_proj"
    np.testing.assert_allclose(weights(tmp_path / "one", only), 2 * weights(a, only), rtol=1e-5, atol=1e-7)
    PeftModel.from_pretrained(tiny().model, tmp_path / "one")


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_keeps_a_share_of_each_and_makes_up_for_the_rest(make: Any, tmp_path: Path, method: str) -> None:
    """Each number is that of one adapter, of both, or 0; what stays of an adapter is divided by the share."""
    a, b = make("a", 1), make("b", 2)
    given = ("--weights", "0.7,0.3", "--method", method, "--density", 0.5, "--output", tmp_path / "one")
    assert run("merge", a, b, *given).exit_code == 0
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    one, other = (
        load_file(folder / "adapter_model.safetensors")[name] * np.sqrt(weight * 1.5) / 0.5
        for folder, weight in ((a, 0.7), (b, 0.3))
    )
    found = load_file(tmp_path / "one" / "adapter_model.safetensors")[name]
    both = (one + other) / (2 if method == "dare_ties" else 1)
    possible = np.stack([np.zeros_like(one), one, other, both])
    assert np.abs(found - possible).min(0).max() < 1e-6
    assert 0.4 < (found != 0).mean() < 0.9


def test_the_same_seed_drops_the_same(make: Any, tmp_path: Path) -> None:
    a, b = make("a", 1), make("b", 2)
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        done = run(
            "merge", a, b, "--method", "dare_linear", "--density", 0.5, "--seed", seed, "--output", tmp_path / name
        )
        assert done.exit_code == 0
    content = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two", "three")]
    assert content[0] == content[1] != content[2]


def test_what_lies_between_two_is_that_of_their_products(make: Any) -> None:
    a, b = make("a", 1), make("b", 2, rank=2, alpha=3)
    found = compare(a, b)
    module = next(one for one in found.modules if one.path == "model.layers.1.mlp.up_proj")
    one, other = weights(a), weights(b)
    assert module.first == pytest.approx(np.linalg.norm(one))
    assert module.second == pytest.approx(np.linalg.norm(other))
    assert module.difference == pytest.approx(np.linalg.norm(one - other))
    cosine = (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
    assert module.cosine == pytest.approx(cosine)
    assert found.settings == {"r": (4, 2), "lora_alpha": (6, 3)}
    done = run("diff", a, b, "--rows", 2)
    assert done.exit_code == 0
    assert "r: 4 in A, 2 in B" in done.output and "and 12 more modules" in done.output and "|A-B|" in done.output


def test_a_small_difference_is_not_lost(make: Any, tmp_path: Path) -> None:
    a = make("a", 1)
    done = run("diff", a, a)
    assert "settings: the same" in done.output
    assert all(one.difference <= 1e-6 * one.first for one in compare(a, a).modules)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "one adapter is given"),
        (["a", "b", "--method", "ties"], "needs the share of numbers .*add --density"),
        (["a", "b", "--density", "0.5"], "--density is for ties"),
        (["a", "b", "--weights", "1"], "1 numbers for 2 adapters"),
        (["a", "b", "--weights", "1,x"], "could not convert"),
        (["a", "narrow", "--method", "linear"], "the ranks are 4, 2.*use --method cat"),
        (["a", "elsewhere"], "was trained on other, and .* on tiny"),
        (["a", "dora"], "cannot be combined: it has use_dora"),
        (["a", "nothing"], "nothing: no adapter_config.json"),
    ],
)
def test_what_cannot_be_combined_is_refused_and_nothing_written(
    make: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    made = {
        "a": lambda: make("a", 1), "b": lambda: make("b", 2), "narrow": lambda: make("narrow", 3, rank=2),
        "elsewhere": lambda: make("elsewhere", 3, base="other"), "dora": lambda: make("dora", 3, dora=True),
    }  # fmt: skip
    given = [str(made[one]()) if one in made else one for one in arguments]
    done = run("merge", *given, "--output", tmp_path / "out")
    assert isinstance(done.exception, UserError)
    with pytest.raises(UserError, match=said):
        raise done.exception
    assert "\n" not in str(done.exception) and not (tmp_path / "out").exists()


def test_weights_are_numbers_for_each() -> None:
    assert parse_weights(None, 4) == [0.25] * 4
    assert parse_weights("1, -2", 2) == [1, -2]
