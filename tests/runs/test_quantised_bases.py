"""The slot for quantizers, by use: a plugin of an outsider stores the base as int8, and a LoRA trains over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
import yaml
from finetooth_hooks import Datum, PlanError

Recipe = dict[str, Any]
INT8 = Path(__file__).parents[2] / "docs/guides/quantizer/int8.py"


@pytest.fixture
def asked(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def make(**sections: Any) -> Recipe:
        sections = {"quantization": "int8_rows", "plugins": [str(INT8)], **sections}
        return recipe(**{key: value for key, value in sections.items() if value is not None})

    return make


def codes(engine: Any) -> dict[str, torch.Tensor]:
    """What is stored of the base, by name."""
    network = engine._parts.network
    return {name: tensor.clone() for name, tensor in network.base.named_buffers() if name.endswith(("codes", "scale"))}


def test_a_lora_trains_over_int8(
    asked: Callable[..., Recipe], ft: Callable[..., Any], losses: Callable[[Path], list[float]], tmp_path: Path
) -> None:
    file = tmp_path / "int8.yaml"
    file.write_text(yaml.safe_dump(asked(train={"epochs": 8, "batch_size": 8, "precision": "fp32"})), encoding="utf-8")
    code, out, err = ft("run", file)
    assert code == 0, out + err
    seen = losses(tmp_path / "run")
    assert np.mean(seen[-3:]) < seen[0] - 0.4
    plan = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert plan["picks"]["quantizer"].endswith(":int8_rows")
    decisions = {decision["setting"]: decision for decision in plan["decisions"]}
    assert decisions["backend.decoder"]["value"] == "stream"
    assert sorted(path.name for path in (tmp_path / "run" / "artifact").glob("adapter_*"))
    code, out, err = ft("merge", tmp_path / "run")  # as plain numbers: those that it was trained over
    assert code == 0 and (tmp_path / "run/merged/model.safetensors").is_file(), out + err


def test_the_base_stays_as_it_was_stored(asked: Callable[..., Recipe]) -> None:
    session = finetooth.session(asked(train={"max_steps": 4, "batch_size": 8, "precision": "fp32"}))
    before = codes(session.engine)
    assert len(before) == 2 * 7 * 2  # two layers of seven linear modules, codes and scales
    session.run()
    after = codes(session.engine)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    # the numbers are those of the base with the rounded weights, the adapter over it
    engine = session.engine
    datum = Datum.from_tokens(list(range(20, 60)))
    found = engine.logprobs([datum])[0]
    plain = finetooth.session(asked(quantization=None, output=str(session.folder) + "-plain")).engine
    plain.restore(session.folder / "artifact")
    with torch.no_grad():
        for name, codes_ in before.items():
            if name.endswith("codes"):
                path = name.removesuffix(".codes")
                weight = codes_.float() * before[f"{path}.scale"]
                plain._parts.network.base.get_submodule(path).weight.copy_(weight)
    np.testing.assert_allclose(found, plain.logprobs([datum])[0], atol=2e-5)


def test_its_bytes_are_planned(asked: Callable[..., Recipe]) -> None:
    """In fp32 a stored weight takes a quarter, to the byte."""
    quantised = finetooth.session(asked()).plan.memory
    plain = finetooth.session(asked(quantization=None, backend={"name": "torch", "decoder": "transformers"}))
    model = plain.context.facts
    heads, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    weights = model.layers * (2 * model.hidden_size * (heads + kv) + 3 * model.hidden_size * model.ffn_size)
    saved = plain.plan.memory.parts["weights"] - quantised.parts["weights"]
    assert saved == pytest.approx(weights * (4 - 1 - 4 / 256), abs=1)
    kept = finetooth.session(asked(quantization={"name": "int8_rows", "skip": ["down_proj"]})).plan.memory
    assert quantised.parts["weights"] < kept.parts["weights"] < plain.plan.memory.parts["weights"]


@pytest.mark.parametrize("adapter", ["full", {"name": "freeze", "layers": 1}])
def test_an_adapter_that_trains_the_base_is_refused(asked: Callable[..., Recipe], adapter: Any) -> None:
    session = finetooth.session(asked(adapter=adapter))
    with pytest.raises(PlanError, match=r"quantization: .*int8_rows stores .* and adapter: finetooth-(full|freeze)"):
        _ = session.plan


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_stream_decoder_computes_over_it_what_the_models_own_code_does(
    asked: Callable[..., Recipe], losses: Callable[[Path], list[float]], tmp_path: Path, checkpointing: bool
) -> None:
    """Losses, and, as plain descent adds them up, the slopes of three steps."""
    found = {}
    for decoder in ("transformers", "stream"):
        train = {"max_steps": 3, "batch_size": 8, "precision": "fp32", "gradient_checkpointing": checkpointing}
        backend, output = {"name": "torch", "decoder": decoder}, tmp_path / decoder
        descent = {"name": "sgd", "learning_rate": 1.0}
        session = finetooth.session(asked(backend=backend, train=train, optimizer=descent, output=str(output)))
        session.run()
        parameters = session.engine._parts.network.model.named_parameters()
        trained = {name: weight.detach().numpy() for name, weight in parameters if weight.requires_grad}
        found[decoder] = losses(output), trained
    (own, weights), (streamed, same) = found.values()
    np.testing.assert_allclose(streamed, own, rtol=1e-5)
    assert weights.keys() == same.keys() and any(np.abs(weight).max() > 1e-2 for weight in weights.values())
    for name, weight in weights.items():
        np.testing.assert_allclose(same[name], weight, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_over_it_is_the_model_of_the_next_stage(
    asked: Callable[..., Recipe], tmp_path: Path, precision: str
) -> None:
    """The next stage begins with what the run computes, and does not change what the run stored."""
    first = finetooth.session(asked(train={"max_steps": 2, "batch_size": 8, "precision": precision}))
    first.run()
    random = np.random.default_rng(0)
    probe = [Datum.from_tokens(random.integers(10, 4000, size=length).tolist()) for length in (9, 14, 30)]
    wanted = first.engine.logprobs(probe)
    train = {"max_steps": 1, "batch_size": 8, "precision": precision}
    asks = {"model": str(tmp_path / "run"), "train": train}
    session = finetooth.session(asked(output=str(tmp_path / "next"), quantization=None, **asks))
    (said,) = (decision for decision in session.plan.decisions if decision.setting == "model")
    assert "base is quantised" in said.reason
    found = session.engine.logprobs(probe)
    tolerance = 1e-4 if precision == "fp32" else 0.1
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
    session.run()
    again = finetooth.session(asked(output=str(tmp_path / "again"), **asks))  # the sum, stored in int8 anew
    assert again.run().status == "done" and codes(again.engine)
    for ours, theirs in zip(again.engine.logprobs(probe), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1.0)


@pytest.fixture(scope="session")
def fp8_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder of fp8 weights, a scale for each 32 by 32."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("fp8") / "model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        blocks = tensors[name].unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
        scale = blocks.abs().amax((1, 3)) / 448
        stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        tensors[name], tensors[f"{name}_scale_inv"] = stored.reshape(tensors[name].shape), scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("adapter", ["full", {"name": "freeze", "layers": 1}])
def test_a_folder_that_is_quantised_already_trains_nothing_of_its_own(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], fp8_model: Path, tmp_path: Path, adapter: Any
) -> None:
    """On every machine alike, and before a weight is read: there is none."""
    (empty := tmp_path / "empty").mkdir()
    for file in fp8_model.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, empty)
    header = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    packed = json.dumps(header).encode()
    (empty / "model.safetensors").write_bytes(len(packed).to_bytes(8, "little") + packed + bytes(4))
    file = tmp_path / "full.yaml"
    file.write_text(yaml.safe_dump(recipe(model=str(empty), adapter=adapter)), encoding="utf-8")
    code, _, err = ft("run", file)
    assert code == 2 and not (tmp_path / "run").exists()
    assert f"model: {empty} is stored as fp8, and adapter: finetooth-" in err and "plain numbers" in err


@pytest.mark.filterwarnings("ignore")
def test_a_lora_trains_over_a_folder_that_is_quantised_already(
    recipe: Callable[..., Recipe], ft: Callable[..., Any], losses: Callable[[Path], list[float]], fp8_model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    file = tmp_path / "lora.yaml"
    train = {"epochs": 8, "batch_size": 8, "precision": "fp32"}
    file.write_text(yaml.safe_dump(recipe(model=str(fp8_model), train=train)), encoding="utf-8")
    code, out, err = ft("run", file)
    assert code == 0, out + err
    seen = losses(tmp_path / "run")
    assert np.mean(seen[-3:]) < seen[0] - 0.4
    code, _, err = ft("merge", tmp_path / "run")
    assert code == 2 and "is stored as fp8, and a merged weight cannot be stored in these bits" in err
    session = finetooth.session(recipe(model=str(tmp_path / "run"), output=str(tmp_path / "next")))
    with pytest.raises(PlanError, match="which is stored as fp8, and a merged weight cannot be stored in these bits"):
        _ = session.engine


@pytest.mark.filterwarnings("ignore")
def test_it_conforms() -> None:
    from finetooth_kit import run_checks

    assert run_checks(str(INT8))
