"""A LoRA over a base in fewer bits: the twin of the guide's recipe, what a merge would compute, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

from finetooth_core.cli import main
from finetooth_hooks import Datum
from finetooth_mlx.adapters import LoraAdapter, LoraOptions
from safetensors.numpy import load_file, save_file

RECIPE = Path(__file__).parents[4] / "docs/recipes/mac-lora.yaml"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
KINDS = [(8, "affine"), (4, "affine"), (4, "mxfp4")]
ROWS = [
    {"messages": [{"role": "user", "content": f"{i % 5}+1?"}, {"role": "assistant", "content": f"{i % 5 + 1}"}]}
    for i in range(24)
]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path], quantised: Callable[..., Path]
) -> Path:
    """A model `plain`, the same in fewer bits, and rows."""
    folder = tmp_path_factory.mktemp("bits")
    (folder / "plain").mkdir()
    write(folder / "plain", "qwen3", width=64)
    for bits, mode in KINDS:
        (folder / f"{mode}{bits}").mkdir()
        quantised(folder / f"{mode}{bits}", folder / "plain", bits, mode)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return folder


def overrides(folder: Path, model: str, output: str, **more: Any) -> list[str]:
    given = {
        "model": folder / model, "data.train": folder / "rows.jsonl", "data.eval": folder / "rows.jsonl",
        "train.max_length": 64, "train.epochs": 2, "evaluate.every": 6, "checkpoint.every": 6,
        "optimizer.learning_rate": 0.02, "output": folder / output, **more,
    }  # fmt: skip
    return [f"{name}={value}" for name, value in given.items()]


def dequantised(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The numbers of a folder in affine bits, by the formula: code * scale + bias of its group, in float64."""
    held = load_file(folder / "model.safetensors")
    bits = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization"]["bits"]
    plain = {name: held[name] for name in held if not name.endswith((".scales", ".biases"))}
    for path in [name.removesuffix(".scales") for name in held if name.endswith(".scales")]:
        words = plain[f"{path}.weight"]
        codes = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32(2**bits - 1)
        groups = codes.reshape(len(words), -1, 32).astype(np.float64)
        whole = groups * held[f"{path}.scales"][..., None] + held[f"{path}.biases"][..., None]
        plain[f"{path}.weight"] = whole.reshape(len(words), -1).astype(np.float32)
    return plain


def merged(folder: Path, artifact: Path, target: Path) -> Path:
    """A plain folder: what the base's codes stand for, and the addition."""
    tensors, added = dequantised(folder), load_file(artifact / "adapter_model.safetensors")
    scale = json.loads((artifact / "adapter_config.json").read_text(encoding="utf-8"))
    for name, a in added.items():
        if name.endswith(".lora_A.weight"):
            b = added[name.replace("lora_A", "lora_B")]
            path = name.removeprefix("base_model.model.").replace(".lora_A", "")
            tensors[path] = tensors[path] + np.float32(scale["lora_alpha"] / scale["r"]) * (b @ a)
    target.mkdir()
    for file in (folder.parent / "plain").glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[[str], Path]:
    """The run over a base, made once."""

    @cache
    def train(base: str) -> Path:
        bits = [] if (folder / base).exists() else [f"quantization={{name: {base}, group_size: 32}}"]
        assert main(["run", str(RECIPE), *overrides(folder, "plain" if bits else base, f"run-{base}"), *bits]) == 0
        return folder / f"run-{base}"

    return train


@pytest.mark.parametrize(
    ("bits", "mode"), [KINDS[0], *(pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_the_twin_of_the_recipe_learns(
    folder: Path, trained: Callable[[str], Path], engine_of: Callable[..., Any], bits: int, mode: str
) -> None:
    """And what it became is the plain sum of what the codes stand for and the addition."""
    base = folder / f"{mode}{bits}"
    run = trained(base.name)
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    assert losses[-1] < 0.8 * losses[0]
    if mode != "affine":
        return
    artifact = run / "artifact"
    engine = engine_of(base, adapter=LoraAdapter(LoraOptions(rank=16, alpha=32, targets=TARGETS)))
    engine.restore(artifact)
    datum = Datum.from_tokens(list(range(20, 42)))
    wanted = engine.logprobs([datum])[0]
    whole = engine_of(merged(base, artifact, folder / f"merged-{base.name}"))
    np.testing.assert_allclose(whole.logprobs([datum])[0], wanted, atol=2e-3)
    assert np.abs(wanted - engine.logprobs([datum], role="reference")[0]).max() > 0.1


def test_a_base_is_stored_in_fewer_bits_as_it_is_loaded(
    folder: Path, trained: Callable[[str], Path], engine_of: Callable[..., Any]
) -> None:
    """The 8-bit twin by the recipe alone: it learns, and computes with the numbers of MLX's own codes."""
    import mlx.core as mx
    from finetooth_kit import FakeContext
    from finetooth_mlx.loader import MlxOptions, build
    from finetooth_mlx.quantizers import GroupOptions, build_int8

    lines = map(json.loads, (trained("int8") / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    assert losses[-1] < 0.8 * losses[0]
    loader = build(MlxOptions(), FakeContext(folder))
    ids, place = mx.array([list(range(20, 42))]), str(folder / "plain")
    quantizer = build_int8(GroupOptions(group_size=32))
    found = loader.load(place, framework="mlx", precision="fp32", device="cpu", quantizer=quantizer)
    plain = loader.load(place, framework="mlx", precision="fp32", device="cpu")
    for layer in plain.model.layers:
        for module in (*layer.self_attn.children().values(), *layer.mlp.children().values()):
            if "weight" in module and module.weight.ndim == 2:
                groups = np.array(module.weight).reshape(len(module.weight), -1, 32)
                low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
                step = (high - low) / 255
                rounded = np.round((groups - low) / step) * step + low
                assert np.abs(rounded - groups).max() <= 0.5 * step.max() * 1.001
                module.weight = mx.array(rounded.reshape(module.weight.shape).astype(np.float32))
    apart = np.abs(np.array(found(ids)) - np.array(plain(ids))).max()
    assert 0 < apart < 0.05 * np.abs(np.array(plain(ids))).max()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr().err.strip()
    assert "Traceback" not in printed
    return " ".join(printed.split())


def test_torch_refuses_its_bits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "is stored by mlx-lm in fewer bits, which torch does not read (set backend: mlx, or"
    assert main(["check", str(RECIPE), *overrides(folder, "affine8", "none", backend="torch")]) == 2
    assert line in said(capsys)


def held_out(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """The loss of a folder on the held-out rows, by transformers."""
    import torch
    import transformers

    capsys.readouterr()
    rows = ["--split", "eval", "--rows", "24", "--json"]
    assert main(["data", "preview", str(RECIPE), *overrides(folder, "plain", "none"), *rows]) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    lost = weight = 0.0
    for row in json.loads(capsys.readouterr().out):
        ids = torch.tensor([i for piece in row["pieces"] for i in piece["ids"]])
        weights = torch.tensor([w for piece in row["pieces"] for w in piece["weights"]])[1:]
        with torch.no_grad():
            given = loaded(ids[None]).logits[0, :-1].double().log_softmax(-1)
        lost -= float((weights * given.gather(-1, ids[1:, None])[:, 0]).sum())
        weight += float(weights.sum())
    return lost / weight


@pytest.mark.parametrize(
    "base", ["affine4", *(pytest.param(base, marks=pytest.mark.slow) for base in ("int4", "mxfp44"))]
)
def test_a_merge_keeps_the_tuning(
    folder: Path, trained: Callable[[str], Path], quantised: Callable[..., Path], engine_of: Callable[..., Any],
    capsys: pytest.CaptureFixture[str], base: str,
) -> None:  # fmt: skip
    """Merged and read back by transformers, what was written keeps the run's held-out score (the mean probability of a
    token): it is plain numbers, since rounding them to the base's bits moves predictions. A GGUF file is made of it."""
    run = trained(base)
    assert main(["merge", str(run)]) == 0
    assert "of the written model" in capsys.readouterr().out
    kept = json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"]["eval/loss"]
    assert np.exp(-held_out(folder, run / "merged", capsys)) >= 0.99 * np.exp(-kept)
    (folder / f"naive-{base}").mkdir()
    quantised(folder / f"naive-{base}", run / "merged", 4, "affine" if base == "int4" else base[:-1])
    engine = engine_of(folder / f"naive-{base}")
    datum = Datum.from_tokens(list(range(20, 42)))
    apart = np.abs(engine.logprobs([datum])[0] - engine_of(run / "merged").logprobs([datum])[0]).max()
    assert apart > 0.02, "rounding the sum again would have changed nothing, and the test shows nothing"
    assert main(["export", str(run), "--to", "gguf", "stored=f16", "--unmeasured"]) == 0
    assert "tensors read back" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bits": 7}, "weights of 7 bits in groups of 32 (affine), which MLX does not compute with"),
        ({"bits": "few"}, "weights of few bits"),
        ({"mode": "odd"}, "(odd), which MLX does not compute with"),
        ({"bits": 4}, "is not stored in the bits of config.json, 4 in groups of 32"),
        ({"group_size": 64}, "is not stored in the bits of config.json, 8 in groups of 64"),
    ],
)
def test_bits_that_it_has_not_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], line: str
) -> None:
    for file in (folder / "affine8").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["quantization"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["check", str(RECIPE), *overrides(folder, str(tmp_path), "none")]) == 2
    assert line in said(capsys)


def test_too_little_memory_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetooth_mlx.hardware.total_memory", lambda: 2**24)
    assert main(["check", str(RECIPE), *overrides(folder, "plain", "none")]) == 2
    assert "memory" in said(capsys)
