"""Training in 8-bit floating point: on a CPU that says it can, its products computed from the same rounded numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from finetooth_kernels.trials import trials
from finetooth_kit.families import tiny_model as random_model
from finetooth_torch.device.kernel_trials import COLUMNS, ROWS
from transformers import AutoConfig

Recipe = dict[str, Any]

CARD = '''
"""A CPU that says it multiplies in 8 bits, and a provider that counts its products."""
from dataclasses import replace
from pathlib import Path
from finetooth_hooks import Hardware, Kernel, NoOptions, Serves, StopRun, hookimpl
from finetooth_hooks.protocols import Kernel as Built

@hookimpl
def ft_hardware():
    yield Hardware(name="eight", build=f"{__name__}:build")

@hookimpl
def ft_step(run, report):
    if report.step == 4 and (Path(__file__).parent / "stop").exists():
        raise StopRun("half of the way", exit_code=3)

@hookimpl
def ft_kernels():
    serves = Serves(operation="fp8_linear", devices=frozenset({"cpu"}), dtypes=frozenset({"bf16"}), rank=None)
    yield Kernel(name="counting", build=f"{__name__}:build_kernel", summary="counts", serves=(serves,))

def build(options: NoOptions, context):
    from finetooth_cpu.hardware import CpuHardware

    class Eight(CpuHardware):
        def facts(self):
            facts = super().facts()
            return replace(facts, precisions=("bf16", "fp32", "fp8"), slow_precisions=())

    return Eight()

def build_kernel(options: NoOptions, context):
    from finetooth_kernels.fp8 import fp8_linear

    def counted(x, weight, bias=None, base=None):
        with (Path(__file__).parent / "counted.txt").open("a") as file:
            file.write(f"{tuple(weight.shape)} {base is not None} {weight.requires_grad}\\n")
        return fp8_linear(x, weight, bias, base)

    return Built({"fp8_linear": counted})
'''


@pytest.fixture
def trained(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], losses: Callable[[Path], list[float]], tmp_path: Path
) -> Callable[..., list[float]]:
    """Losses of a run of eight steps."""
    (tmp_path / "card.py").write_text(CARD, encoding="utf-8")

    def run(precision: str, *overrides: str, code: int = 0, **sections: Any) -> list[float]:
        train = {"batch_size": 8, "precision": precision, "max_length": 256, "max_steps": 8, "epochs": 8}
        hardware = {"plugins": [str(tmp_path / "card.py")], "hardware": "eight"}
        file, output = tmp_path / f"{precision}.yaml", tmp_path / f"run-{precision}"
        file.write_text(yaml.safe_dump(recipe(train=train, output=str(output), **hardware, **sections)))
        ended, out, err = ft("run", file, *overrides)
        assert ended == code, out + err
        return losses(output)

    return run


@pytest.mark.parametrize("decoder", ["stream", "transformers"])
@pytest.mark.parametrize("adapter", [{"name": "lora", "rank": 4}, "full"])
def test_it_learns_as_bf16_does(
    trained: Callable[..., list[float]], tmp_path: Path, adapter: Any, decoder: str
) -> None:
    """Both go the same way: after eight steps within a share of what was learnt; and no loss is the same number."""
    optimizer = {"name": "adamw", "learning_rate": 1e-2 if adapter != "full" else 1e-3}
    layers = f"backend.decoder={decoder}"
    eight = trained("fp8", "kernels.fp8_linear=counting", layers, adapter=adapter, optimizer=optimizer)
    plain = trained("bf16", layers, adapter=adapter, optimizer=optimizer)
    learnt = plain[0] - plain[-1]
    assert learnt > 0.3 and np.abs(np.subtract(eight, plain)).max() < 0.2 * learnt
    assert not np.equal(eight, plain).any()
    made = trials("fp8_linear", torch.bfloat16, "cpu", ROWS, COLUMNS)
    (tried,) = {str(tuple(trial.given["weight"].shape)) for trial in made}
    lines = (tmp_path / "counted.txt").read_text().splitlines()
    calls = [line.split() for line in lines if not line.startswith(tried)]  # a plugin's kernel is tried before a run
    assert {call[-1] for call in calls} == {str(adapter == "full")}
    # an adapter's layers multiply in 8 bits too, and what they add is summed with the product before it is rounded
    assert {call[-2] for call in calls} == {str(adapter != "full")}
    shapes = {" ".join(call[:2]) for call in calls}
    assert len(shapes) >= 3 and not any("4," in shape.split()[0] and shape.startswith("(4,") for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_moe", "gemma3_text"])
def test_other_families_learn_as_in_bf16(
    trained: Callable[..., list[float]], tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    """Routers and experts that are one weight multiply as in bf16, and so do the adapter's matrices."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048, "initializer_range": 0.2,
             "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}  # fmt: skip
    ids = {name: getattr(AutoConfig.from_pretrained(folder), name) for name in ("eos_token_id", "pad_token_id")}
    vocabulary = AutoConfig.from_pretrained(folder).vocab_size
    random_model(AutoConfig.for_model(kind, vocab_size=vocabulary, **ids, **sizes)).save_pretrained(folder)
    eight = trained("fp8", "kernels.fp8_linear=counting", model=str(folder))
    plain = trained("bf16", model=str(folder))
    learnt = plain[0] - plain[-1]
    assert learnt > 0.3 and np.abs(np.subtract(eight, plain)).max() < 0.2 * learnt
    lines = (tmp_path / "counted.txt").read_text().splitlines()
    queries, keys, up, down = "(32, 32)", "(16, 32)", "(64, 32)", "(32, 64)"
    layers = {queries, keys} if kind == "qwen3_moe" else {queries, keys, up, down}
    assert {line.rpartition(")")[0] + ")" for line in lines if line.endswith("False")} == layers


def test_a_stopped_run_goes_on_in_fp8(
    trained: Callable[..., list[float]], ft: Callable[..., Any], losses: Callable[[Path], list[float]], tmp_path: Path
) -> None:
    whole = trained("fp8")
    (tmp_path / "run-fp8").rename(tmp_path / "whole")
    (tmp_path / "stop").touch()
    half = trained("fp8", code=3, checkpoint={"every": 4})
    assert half == whole[:4]
    (tmp_path / "stop").unlink()
    code, out, err = ft("resume", tmp_path / "run-fp8")
    assert code == 0, out + err
    assert losses(tmp_path / "run-fp8") == whole


def test_the_plan_says_what_it_costs(recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "card.py").write_text(CARD, encoding="utf-8")
    train = {"batch_size": 8, "precision": "fp8", "max_length": 256}
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(recipe(train=train, plugins=[str(tmp_path / "card.py")], hardware="eight")))
    code, out, _ = ft("check", "-v", file)
    said = " ".join(out.split())
    assert code == 0 and "multiply in 8-bit floating point, and all else is in bf16" in said
    assert "is off by up to 6 % before it multiplies" in said
    assert "backend.decoder stream" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hardware=cpu"], "train.precision=fp8: not possible on"),
        (["hardware=eight", "kernels.fp8_linear=triton"], "kernels.fp8_linear=triton: it serves fp8_linear on cuda"),
        (["hardware=eight", "kernels.fp8_linear=ms_amp"], "kernels.fp8_linear=ms_amp: MS-AMP has no release for torch"),
        (["hardware=eight", "quantization=int8"], "train.precision=fp8: the base is stored as int8 by groups of 64"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path, overrides: list[str], said: str
) -> None:
    (tmp_path / "card.py").write_text(CARD, encoding="utf-8")
    train = {"batch_size": 8, "precision": "fp8", "max_length": 256}
    file = tmp_path / "refused.yaml"
    file.write_text(yaml.safe_dump(recipe(train=train, plugins=[str(tmp_path / "card.py")])))
    code, _, err = ft("check", file, *overrides)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, err
