"""What a model is: classes, configs and folders in fewer bits; and numbers equal to transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx.core as mx
from finetooth_hooks import RecipeError
from finetooth_kit import FakeContext
from finetooth_mlx.configs import mlx_config
from finetooth_mlx.loader import MlxOptions, build


def loader(folder: Path) -> Any:
    return build(MlxOptions(), FakeContext(folder))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_logits_are_those_of_transformers(tmp_path: Path, write: Callable[..., Path], kind: str, tied: bool) -> None:
    """Of folders as they are written today (`rope_parameters`, defaults left out) and as they were."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    (tmp_path / "older").mkdir()
    write(tmp_path / "older", kind, tied=tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "older").eval()
    model.save_pretrained(tmp_path / "newer")
    assert "rope_theta" not in json.loads((tmp_path / "newer" / "config.json").read_text(encoding="utf-8"))
    ids = np.arange(3, 40)[None]
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).logits.numpy()
    for folder in ("older", "newer"):
        mine = loader(tmp_path).load(str(tmp_path / folder), framework="mlx", precision="fp32", device="cpu")
        found = np.array(mine(mx.array(ids.astype(np.int32))))
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max(), folder


def test_parameters_are_counted_with_and_without_weights(tmp_path: Path, write: Callable[..., Path]) -> None:
    described = loader(tmp_path).describe(str(write(tmp_path)))
    sketched = loader(tmp_path).sketch(str(tmp_path))
    assert described.parameters == sketched.parameters > 10_000
    assert len(described.digest) == 64 and described.stored is None


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        mlx_config(config, "some/model")
    return str(caught.value)


def test_what_a_class_would_pass_over_is_refused() -> None:
    llama = {"model_type": "llama"}
    assert "is of the type blip, for which mlx-lm has no model class" in refused({"model_type": "blip"})
    assert "the activation gelu" in refused({**llama, "hidden_act": "gelu"})
    assert "config without hidden_size" in refused({**llama, **dict.fromkeys(("layer_types",))})
    assert "computes other numbers than transformers" in refused({"model_type": "falcon_h1"})
    assert "(gemma3) reads more than text" in refused({"model_type": "gemma3", "text_config": {"hidden_size": 16}})
    assert "by the length of each row (dynamic)" in refused({**llama, "rope_parameters": {"rope_type": "dynamic"}})
    long = {"model_type": "phi3", "rope_scaling": {"type": "longrope"}}
    assert "by the length of each row (longrope)" in refused(long)
    irregular = ["full_attention", "sliding_attention", "sliding_attention"]
    assert "no regular order" in refused({"model_type": "gemma3_text", "layer_types": irregular})
    assert "sliding window" in refused({"model_type": "starcoder2", "sliding_window": 4096})
    by_kind = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert "differ by kind of layer" in refused({**llama, "rope_parameters": by_kind})
    assert "sliding window" in refused({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]})


def test_bits_of_another_library_are_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    with pytest.raises(RecipeError, match="fewer bits by gptq, which the MLX backend does not read"):
        loader(tmp_path).describe(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"architectures": ["X"]}, "names no model_type (write its model_type into config.json, such as llama"),
        ({"model_type": "wobble3"}, "has model type `wobble3`"),
    ],
)
def test_a_type_that_nobody_knows_is_named(tmp_path: Path, config: dict[str, Any], line: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        loader(tmp_path).describe(str(tmp_path))
    assert line in str(caught.value) and "check that it is whole" not in str(caught.value)


def test_another_framework_is_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="loads for mlx, not for torch"):
        loader(tmp_path).load(str(write(tmp_path)), framework="torch", precision="fp32", device="cpu")
