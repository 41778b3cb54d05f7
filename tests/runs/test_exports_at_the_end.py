"""A recipe's `export`: what training leaves beside its artifact, and what is said where that does not work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import yaml
from finetooth_hooks import FinetoothError
from finetooth_registry.registry import Registry
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

Recipe = Callable[..., dict[str, Any]]
SHORT = {"batch_size": 8, "max_steps": 2, "precision": "fp32", "max_length": 256}


def merged_in_float64(run: Path, base: Path) -> dict[str, np.ndarray]:
    """The base and scale * B A of the run's adapter."""
    whole = {name: x.astype(np.float64) for name, x in load_file(base / "model.safetensors").items()}
    config = json.loads((run / "artifact" / "adapter_config.json").read_text())
    tensors = load_file(run / "artifact" / "adapter_model.safetensors")
    for name, a in tensors.items():
        if ".lora_A." in name:
            key = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            b = tensors[name.replace("_A.", "_B.")].astype(np.float64)
            whole[key] += config["lora_alpha"] / config["r"] * b @ a.astype(np.float64)
    return whole


def test_merged_weights_are_there_in_the_precision_that_was_asked_for(
    recipe: Recipe, tiny_llama: Path, ft: Callable[..., Any], tmp_path: Path
) -> None:
    made = recipe(train=SHORT, trackers=[], export=[{"name": "safetensors", "precision": "bf16"}, "safetensors"])
    made["checkpoint"] = {"every": "1 steps"}
    made["optimizer"] = {"name": "adamw", "learning_rate": 0.03}
    made["export"][1] = {"name": "safetensors", "precision": "fp32"}
    finetooth.run(made)
    run = Path(made["output"])
    wanted, base = merged_in_float64(run, tiny_llama), load_file(tiny_llama / "model.safetensors")
    for name, kind, bound in (("safetensors", torch.bfloat16, 2**-8), ("safetensors-2", torch.float32, 2**-20)):
        found = load_torch(run / "exports" / name / "model.safetensors")
        assert {one.dtype for one in found.values()} == {kind}
        for key, values in found.items():
            np.testing.assert_allclose(values.double().numpy(), wanted[key], rtol=bound, atol=1e-6)
    moved = "model.layers.0.self_attn.q_proj.weight"
    assert not np.allclose(wanted[moved], base[moved], atol=1e-4)
    # and training goes on from it
    onward = recipe(model=str(run / "exports" / "safetensors-2"), train=SHORT, trackers=[], output=str(tmp_path / "on"))
    assert finetooth.run(onward).steps == 2
    # and what goes on is exported anew
    code, out, err = ft("resume", run, "train.max_steps=3")
    assert code == 0 and out.count("exported to") == 2, err
    again = load_torch(run / "exports" / "safetensors-2" / "model.safetensors")[moved].double().numpy()
    assert not np.allclose(again, wanted[moved], atol=1e-4)
    np.testing.assert_allclose(again, merged_in_float64(run, tiny_llama)[moved], rtol=2**-20, atol=1e-6)


def test_what_cannot_be_exported_is_said_before_training(
    recipe: Recipe, ft: Callable[..., Any], tmp_path: Path
) -> None:
    import yaml

    path = tmp_path / "recipe.yaml"
    for export, said in (
        (["nowhere"], "export.0"),
        ([{"name": "safetensors", "precison": "bf16"}], "did you mean export.0.precision?"),
        ([{"name": "safetensors", "precision": "int3"}], "export.0.precision"),
    ):
        path.write_text(yaml.safe_dump(recipe(train=SHORT, export=export)))
        code, _, err = ft("check", path)
        assert code == 2 and said in err and "\n" not in err.strip().removeprefix("note").split("error: ")[1], err
    path.write_text(yaml.safe_dump({**recipe(train=SHORT), "merge_lora": True}))
    code, _, err = ft("check", path)
    assert code == 2 and "list what to write once training has ended: export: [...]" in err


def test_an_export_that_fails_leaves_the_run_and_the_others(recipe: Recipe, tmp_path: Path) -> None:
    made = recipe(train=SHORT, trackers=[], adapter="full", export=["vllm_lora", "safetensors"])
    with pytest.raises(FinetoothError, match=r"export\.0: training succeeded, but vllm_lora cannot be written"):
        finetooth.run(made)
    run = Path(made["output"])
    assert json.loads((run / "result.json").read_text())["status"] == "done"
    assert [path.name for path in (run / "exports").iterdir()] == ["safetensors"]


def test_a_run_that_the_registry_refuses_does_not_train(recipe: Recipe, ft: Callable[..., Any], tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "registry")
    made = recipe(train=SHORT, trackers=[], export=[{"name": "registry", "model": "bot"}])
    made["export"][0]["registry"] = str(registry.folder)
    made["data"]["classification"] = {"customer_data": True}
    (tmp_path / "refused.yaml").write_text(yaml.safe_dump(made))
    for command in (("check",), ("check", "--json"), ("run",)):
        code, out, err = ft(*command, tmp_path / "refused.yaml")
        assert code == 2 and len((err or out).splitlines()) == 1, command
        assert "accepts no customer data" in err + out and "correct data.classification" in err + out
    assert not Path(made["output"]).exists()
    assert [(event.kind, event.detail["model"]) for event in registry.events()] == [("refused", "bot")] * 3
    with pytest.raises(FinetoothError, match="accepts no customer data"):
        finetooth.run(made)
    made["data"]["classification"] = {"customer_data": False}
    made["export"][0]["registry"] = str(tmp_path / "nowhere")
    with pytest.raises(FinetoothError, match="holds no registry"):
        finetooth.run(made)
    (tmp_path / "nowhere.yaml").write_text(yaml.safe_dump(made))
    assert "holds no registry" in ft("check", tmp_path / "nowhere.yaml")[2]
    made["export"][0]["registry"] = str(registry.folder)
    (tmp_path / "admitted.yaml").write_text(yaml.safe_dump(made))
    assert ft("check", tmp_path / "admitted.yaml")[0] == 0
