"""OFT, BOFT, VeRA and (IA)3 against peft itself, formulas in float64, and their own export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import PlanError, RecipeError, UserError
from finetooth_peft.ia3 import Ia3Adapter, Ia3Options
from finetooth_peft.orthogonal import BoftAdapter, BoftOptions, OftAdapter, OftOptions
from finetooth_peft.vera import VeraAdapter, VeraOptions
from peft import PeftModel
from peft.tuners.boft.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError

torch.set_num_threads(1)
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "oft": (OftAdapter, OftOptions, {"block_size": 8}),
    "oft exact": (OftAdapter, OftOptions, {"block_size": 8, "exact": True}),
    "oft shared": (OftAdapter, OftOptions, {"block_size": 4, "share_blocks": True, "targets": "attention"}),
    "boft": (BoftAdapter, BoftOptions, {"block_size": 4}),
    "vera": (VeraAdapter, VeraOptions, {"rank": 6}),
    "vera by seed": (VeraAdapter, VeraOptions, {"rank": 6, "save_projection": False, "projection_seed": 3}),
    "ia3": (Ia3Adapter, Ia3Options, {}),
}
EACH = pytest.mark.parametrize("kind", list(KINDS))


def adapt(kind: str, tiny: Any, seed: int = 0, dtype: Any = None, **more: Any) -> tuple[Any, Any]:
    of, options, given = KINDS[kind]
    made, adapter = tiny(), of(options(**{**given, **more}))
    model = made.model if dtype is None else made.model.to(dtype)
    made.model = adapter.apply(model, made.facts, np.random.default_rng(seed)).eval()
    return adapter, made


def shake(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)


def logits(model: Any, tokens: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


@EACH
def test_a_fresh_one_computes_as_the_base_and_only_it_trains(kind: str, tiny: Any, tokens: Any) -> None:
    before = torch.random.get_rng_state()
    adapter, made = adapt(kind, tiny)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(logits(made.model, tokens), logits(tiny().model, tokens), atol=1e-5, rtol=1e-5)
    trained = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == adapter.trained_parameters(made.facts, 0)
    made.model(tokens, labels=tokens).loss.backward()
    assert {name for name, p in made.model.named_parameters() if p.grad is not None} == set(trained)


@EACH
def test_what_trains_is_float32_and_begins_exactly_over_a_base_in_bf16(kind: str, tiny: Any) -> None:
    _, plain = adapt(kind, tiny)
    _, rounded = adapt(kind, tiny, dtype=torch.bfloat16)
    mine = {name: p for name, p in plain.model.named_parameters() if p.requires_grad}
    for name, parameter in rounded.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, mine[name])


@EACH
def test_peft_loads_the_export_with_equal_logits_and_it_comes_back(
    kind: str, tiny: Any, tokens: Any, tmp_path: Any
) -> None:
    adapter, made = adapt(kind, tiny)
    shake(made.model)
    for name in ("artifact", "again"):
        adapter.export(made.model, tmp_path / name, made.info)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "artifact" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    loaded = PeftModel.from_pretrained(tiny().model, tmp_path / "artifact").eval()
    assert (logits(made.model, tokens) - logits(tiny().model, tokens)).abs().max() > 1e-2
    torch.testing.assert_close(logits(loaded, tokens), logits(made.model, tokens), atol=1e-6, rtol=1e-6)
    other, fresh = adapt(kind, tiny, seed=9)
    other.restore(fresh.model, tmp_path / "artifact")
    assert torch.equal(logits(fresh.model, tokens), logits(made.model, tokens))
    assert json.loads((tmp_path / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


@EACH
@pytest.mark.parametrize("named", ["", "clang++"])
def test_the_compilers_that_the_environment_names_stay(
    kind: str, named: str, tiny: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft's BOFT leaves gcc there where it cannot compile for CUDA."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
        if named:
            monkeypatch.setenv(name, named)
    adapter, made = adapt(kind, tiny)
    adapter.export(made.model, tmp_path / "artifact", made.info)
    adapter.fold(tiny().model, tmp_path / "artifact", precision="fp32", device="cpu")
    assert [os.environ.get(name, "") for name in ("CC", "CXX")] == [named, named]


@EACH
def test_folded_and_switched_off(kind: str, tiny: Any, tokens: Any, tmp_path: Any) -> None:
    adapter, made = adapt(kind, tiny)
    shake(made.model)
    adapter.export(made.model, tmp_path / "artifact", made.info)
    folded = adapter.fold(tiny().model, tmp_path / "artifact", precision="fp32", device="cpu")
    torch.testing.assert_close(logits(folded, tokens), logits(made.model, tokens), atol=2e-5, rtol=1e-4)
    with adapter.disabled(made.model):
        assert torch.equal(logits(made.model, tokens), logits(tiny().model, tokens))


@EACH
def test_an_artifact_of_another_one_is_refused(kind: str, tiny: Any, tmp_path: Any) -> None:
    adapter, made = adapt(kind, tiny)
    adapter.export(made.model, tmp_path, made.info)
    odd = "boft" if kind != "boft" else "ia3"
    other, fresh = adapt(odd, tiny)
    with pytest.raises(UserError, match=f"holds an adapter of the kind {adapter.kind}, not {other.kind}"):
        other.restore(fresh.model, tmp_path)
    narrower, fresh = adapt(kind, tiny, targets=["k_proj"], **({"feedforward": []} if kind == "ia3" else {}))
    with pytest.raises(UserError, match=r"only in the artifact|feedforward_modules is"):
        narrower.restore(fresh.model, tmp_path)


def test_a_rotation_of_another_series_is_refused(tiny: Any, tmp_path: Any) -> None:
    adapter, made = adapt("oft", tiny)
    adapter.export(made.model, tmp_path, made.info)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    for setting, value in (("num_cayley_neumann_terms", 2), ("coft", True)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**about, setting: value}))
        with pytest.raises(UserError, match=f"{setting} is {value} there"):
            adapter.restore(made.model, tmp_path)


def weight_of(layer: Any) -> Any:
    return layer.base_layer.weight.detach().double().numpy()


def outputs(layer: Any) -> tuple[Any, Any]:
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return x.double().numpy(), layer(x).double().numpy()


@pytest.mark.parametrize(("kind", "bound"), [("oft exact", 1e-5), ("oft", 2e-2)])
def test_oft_turns_the_inputs_by_cayley_transforms(kind: str, bound: float, tiny: Any) -> None:
    """R = (I + Q) (I - Q)^-1 of the skew-symmetric Q, block by block; the series is near it for small Q, and what
    solves for it takes -Q for Q."""
    _, made = adapt(kind, tiny)
    shake(made.model)
    layer = made.model.model.layers[1].mlp.up_proj
    entries = layer.oft_R["default"].weight.detach().double().numpy()
    upper = np.triu_indices(8, 1)
    turned = np.zeros((32, 32))
    for block, row in enumerate(entries):
        q = np.zeros((8, 8))
        q[upper] = row
        q = q - q.T
        turned[8 * block : 8 * block + 8, 8 * block : 8 * block + 8] = (np.eye(8) + q) @ np.linalg.inv(np.eye(8) - q)
    np.testing.assert_allclose(turned @ turned.T, np.eye(32), atol=1e-12)
    x, found = outputs(layer)
    expected = x @ (turned.T if kind == "oft exact" else turned) @ weight_of(layer).T
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


def test_boft_turns_and_scales(tiny: Any) -> None:
    _, made = adapt("boft", tiny)
    shake(made.model)
    layer = made.model.model.layers[0].self_attn.q_proj
    blocks = layer.boft_R["default"].detach().double().numpy()[0]
    scale = layer.boft_s["default"].detach().double().numpy()[:, 0]
    turned = np.zeros((32, 32))
    for place, block in enumerate(blocks):
        q = 0.5 * (block - block.T)
        turned[4 * place : 4 * place + 4, 4 * place : 4 * place + 4] = (np.eye(4) - q) @ np.linalg.inv(np.eye(4) + q)
    x, found = outputs(layer)
    candidates = [(x @ one @ weight_of(layer).T) * scale for one in (turned, turned.T)]
    assert min(np.abs(found - expected).max() for expected in candidates) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_boft_computes_by_blocks_what_peft_computes_by_whole_matrices(dropout: float, tiny: Any) -> None:
    """Outputs and gradients, of peft's own forward pass over the same layer; no permutation is held."""
    _, made = adapt("boft", tiny, dropout=dropout)
    shake(made.model)
    layer = made.model.model.layers[0].mlp.down_proj.train()
    assert not dict(layer.named_buffers())
    found = []
    for forward in (type(layer).forward, Linear.forward):
        layer.boft_P = torch.eye(layer.in_features).unsqueeze(0)
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        torch.manual_seed(1)
        y = forward(layer, x)
        wanted = [x, layer.boft_R["default"], layer.boft_s["default"]]
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), wanted)])
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)


def test_vera_scales_two_matrices_that_all_layers_share(tiny: Any) -> None:
    _, made = adapt("vera", tiny)
    shake(made.model)
    one, other = made.model.model.layers[0].mlp.down_proj, made.model.model.layers[1].self_attn.k_proj
    assert one.vera_A["default"] is other.vera_A["default"]
    for layer in (one, other):
        a = layer.vera_A["default"].double().numpy()[:, : layer.in_features]
        b = layer.vera_B["default"].double().numpy()[: layer.out_features]
        d = layer.vera_lambda_d["default"].detach().double().numpy()
        scale = layer.vera_lambda_b["default"].detach().double().numpy()
        x, found = outputs(layer)
        expected = x @ weight_of(layer).T + scale * ((d * (x @ a.T)) @ b.T)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_ia3_scales_keys_values_and_what_the_feed_forward_block_reads(tiny: Any) -> None:
    _, made = adapt("ia3", tiny)
    shake(made.model)
    layer = made.model.model.layers[0]
    x, found = outputs(layer.self_attn.v_proj)
    factor = layer.self_attn.v_proj.ia3_l["default"].detach().double().numpy()[:, 0]
    np.testing.assert_allclose(found, (x @ weight_of(layer.self_attn.v_proj).T) * factor, rtol=1e-4, atol=1e-6)
    x, found = outputs(layer.mlp.down_proj)
    factor = layer.mlp.down_proj.ia3_l["default"].detach().double().numpy()[0]
    np.testing.assert_allclose(found, (x * factor) @ weight_of(layer.mlp.down_proj).T, rtol=1e-4, atol=1e-6)
    assert not hasattr(layer.self_attn.q_proj, "ia3_l")


def test_a_block_that_does_not_divide_is_refused_before_weights_are_read(tiny: Any) -> None:
    made = tiny()
    for adapter in (OftAdapter(OftOptions(block_size=10)), BoftAdapter(BoftOptions(block_size=10))):
        for refused in (
            lambda adapter=adapter: adapter.trained_parameters(made.facts, 0),
            lambda adapter=adapter: adapter.apply(tiny().model, made.facts, np.random.default_rng(0)),
        ):
            with pytest.raises(RecipeError, match=r"adapter\.block_size: 10 does not divide the 32 .*set it to 8"):
                refused()


def test_what_makes_no_sense_is_refused(tiny: Any) -> None:
    from dataclasses import replace

    with pytest.raises(ValidationError, match="none of the targets"):
        Ia3Options(feedforward=["up_proj"])
    with pytest.raises(RecipeError, match=r"adapter\.targets: .*'q_prj'"):
        VeraAdapter(VeraOptions(targets=["q_prj"])).trained_parameters(tiny().facts, 0)
    with pytest.raises(PlanError, match=r"model\.added_tokens: adapter VeraAdapter keeps"):
        VeraAdapter(VeraOptions()).trained_parameters(replace(tiny().facts, new_tokens=(60,)), 0)


def test_held_bytes_are_those_of_the_shared_matrices(tiny: Any) -> None:
    adapter, made = adapt("vera", tiny)
    layer = made.model.model.layers[0].mlp.down_proj
    held = layer.vera_A["default"].nbytes + layer.vera_B["default"].nbytes
    assert adapter.held_bytes(made.facts, "fp32") == held
    assert OftAdapter(OftOptions()).held_bytes(made.facts, "fp32") == 0


@EACH
def test_token_bytes_are_what_backward_keeps_for_each_more_token(kind: str, tiny: Any) -> None:
    """Of the layers that replaced modules, one after the other; those of a block that read as much read the same."""
    adapter, made = adapt(kind, tiny)
    layers = {path: of for path, of in made.model.named_modules() if isinstance(of, BaseTunerLayer)}

    def kept(tokens: int) -> int:
        found: dict[int, torch.Tensor] = {}
        read: dict[tuple[str, int], torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        alive = []
        for path, layer in layers.items():
            block = path.rpartition(".")[0], layer.get_base_layer().in_features
            x = read.setdefault(block, torch.ones(1, tokens, block[1]))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                alive.append(layer(x.requires_grad_(True)))
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    told = adapter.token_bytes(made.facts, "fp32") * made.facts.layers
    assert told == pytest.approx((kept(96) - kept(32)) / 64)


def test_whoever_only_reads_the_options_loads_neither_peft_nor_torch() -> None:
    code = (
        "import sys, finetooth_peft.orthogonal, finetooth_peft.vera, finetooth_peft.ia3;"
        "print(sorted({'peft', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
