"""LoRA against peft itself, formulas, and its own export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError, UserError
from finetooth_kit.fake_context import FakeContext
from finetooth_lora.adapter import LoraAdapter, LoraOptions, build
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError

torch.set_num_threads(1)


def adapt(tiny, seed=0, layers=2, tied=False, **options):
    """(adapter, namespace whose model is adapted)."""
    made = tiny(layers=layers, tied=tied)
    adapter = LoraAdapter(LoraOptions(**options))
    made.model = adapter.apply(made.model, made.facts, np.random.default_rng(seed)).eval()
    return adapter, made


def shake(model, seed=3):
    """Give every trained parameter a new value, so that the addition is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_fresh_adapter_computes_as_the_base(tiny, tokens):
    expected = logits(tiny().model, tokens)
    for options in ({}, {"dora": True}, {"rslora": True}):
        _, made = adapt(tiny, rank=4, **options)
        torch.testing.assert_close(logits(made.model, tokens), expected, atol=1e-5, rtol=1e-5)


def test_only_the_addition_trains_and_in_float32(tiny):
    adapter = LoraAdapter(LoraOptions(rank=4))
    made = tiny()
    model = adapter.apply(made.model.to(torch.bfloat16), made.facts, np.random.default_rng(0))
    assert trained(model)
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained(model).items())
    assert model.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16


def test_module_paths_of_the_model_stay(tiny):
    _, made = adapt(tiny, rank=2)
    assert made.model is not None
    assert len(made.model.get_submodule("model.layers")) == 2
    assert made.model.get_submodule("lm_head").weight.shape == (61, 32)


def test_addition_is_scale_times_b_a(tiny):
    for options, scale in (({"alpha": 12}, 3.0), ({}, 2.0), ({"alpha": 12, "rslora": True}, 6.0)):
        _, made = adapt(tiny, rank=4, **options)
        shake(made.model)
        layer = made.model.model.layers[1].mlp.up_proj
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = x.double() @ (layer.base_layer.weight.double() + scale * b.double() @ a.double()).T
        with torch.no_grad():
            np.testing.assert_allclose(layer(x).numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "scale"),
    [({"alpha": 12}, 3.0), ({}, 2.0), ({"alpha": 12, "rslora": True}, 6.0), ({"rslora": True}, 8.0)],
    ids=["alpha", "default", "rslora", "rslora default"],
)
def test_what_a_backend_computes_together_is_what_the_layer_gives(tiny, options, scale):
    """`low_rank` hands base, matrices and scale to a backend that does not call the layer."""
    adapter, made = adapt(tiny, rank=4, **options)
    shake(made.model)
    layer = made.model.model.layers[1].mlp.up_proj
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    found = adapter.low_rank(layer)
    assert found.scale == pytest.approx(scale)
    with torch.no_grad():
        torch.testing.assert_close(found.base(x) + found.scale * (x @ found.a.T) @ found.b.T, layer(x))
        with adapter.disabled(made.model):
            off = adapter.low_rank(layer)
            assert off.a is None and off.b is None
            assert torch.equal(off.base(x), layer(x))


def test_a_is_uniform_b_is_zero_and_both_come_from_the_generator(tiny):
    before = torch.random.get_rng_state()
    _, one = adapt(tiny, seed=5, rank=16)
    torch.rand(7)  # whatever torch's global generator did must not matter
    _, two = adapt(tiny, seed=5, rank=16)
    _, other = adapt(tiny, seed=6, rank=16)
    for name, parameter in trained(one.model).items():
        assert torch.equal(parameter, trained(two.model)[name])
        if "lora_B" in name:
            assert not parameter.any()
        else:
            bound = parameter.shape[1] ** -0.5
            assert parameter.abs().max() <= bound
            assert abs(parameter.std().item() - bound / 3**0.5) < 0.1 * bound
            assert not torch.equal(parameter, trained(other.model)[name])
    torch.random.set_rng_state(before)
    adapt(tiny, rank=4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_disabled_is_the_base_exactly_and_comes_back(tiny, tokens):
    adapter, made = adapt(tiny, rank=4)
    shake(made.model)
    names = set(trained(made.model))
    adapted = logits(made.model, tokens)
    with adapter.disabled(made.model):
        assert torch.equal(logits(made.model, tokens), logits(tiny().model, tokens))
    assert torch.equal(logits(made.model, tokens), adapted)
    assert set(trained(made.model)) == names
    with pytest.raises(RuntimeError, match="inside"), adapter.disabled(made.model):
        raise RuntimeError("inside")
    assert torch.equal(logits(made.model, tokens), adapted)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dora": True},
        {"rslora": True, "alpha": 5},
        {"targets": "attention"},
        {"targets": ["q_proj", r"model\.layers\.1\.mlp\.(up|down)_proj"]},
        {"targets": ["lm_head", "embed_tokens", "v_proj"]},
    ],
    ids=["plain", "dora", "rslora", "attention", "regex", "head"],
)
def test_peft_loads_the_export_with_equal_logits(tiny, tokens, tmp_path, options):
    adapter, made = adapt(tiny, rank=4, **options)
    shake(made.model)
    adapter.export(made.model, tmp_path / "artifact", made.info)
    loaded = PeftModel.from_pretrained(tiny().model, tmp_path / "artifact").eval()
    assert (logits(made.model, tokens) - logits(tiny().model, tokens)).abs().max() > 1e-2
    torch.testing.assert_close(logits(loaded, tokens), logits(made.model, tokens), atol=1e-6, rtol=1e-6)
    config = json.loads((tmp_path / "artifact" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["r"] == 4
    assert len({path.stat().st_mode for path in (tmp_path / "artifact").iterdir()}) == 1


def test_same_adapter_gives_the_same_bytes(tiny, tmp_path):
    for name in ("one", "two"):
        adapter, made = adapt(tiny, rank=4)
        adapter.export(made.model, tmp_path / name, made.info)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    # a set's order would differ in another process
    names = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)


@pytest.mark.parametrize(
    "targets", ["all-linear", "attention", ["q_proj", "down_proj"], ["lm_head"], [r".*\.1\..*_proj"]]
)
@pytest.mark.parametrize("dora", [False, True])
def test_counted_parameters_are_those_that_train(tiny, targets, dora):
    adapter, made = adapt(tiny, rank=3, targets=targets, dora=dora, layers=3)
    assert adapter.trained_parameters(made.facts, made.info.parameters) == sum(
        p.numel() for p in trained(made.model).values()
    )


def test_targets_of_a_keyword_stay_inside_the_decoder_layers(tiny):
    made = tiny()
    made.model.model.vision = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 4)})
    adapter = LoraAdapter(LoraOptions(rank=2, targets="attention"))
    model = adapter.apply(made.model, made.facts, np.random.default_rng(0))
    assert not any("vision" in name for name in trained(model))
    assert sum("q_proj.lora_A" in name for name in trained(model)) == 2


@pytest.mark.parametrize(
    ("targets", "named"),
    [(["q_prj"], "q_proj"), (["q_proj", "upproj"], "up_proj"), (["("], "down_proj"), (["model.layers"], "lm_head")],
)
def test_a_target_that_matches_nothing_names_the_nearest(tiny, targets, named):
    with pytest.raises(RecipeError, match=named) as raised:
        adapt(tiny, targets=targets)
    assert raised.value.setting == "adapter.targets"
    assert repr(targets[-1]) in str(raised.value)


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 257}, {"dropout": 1.0}, {"alpha": 0}, {"targets": "mlp"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        LoraOptions(**options)


def test_default_alpha_keeps_the_scale_at_two():
    assert [LoraOptions(rank=r).resolved_alpha / r for r in (1, 16, 256)] == [2, 2, 2]
    assert LoraOptions().rank == 32
    assert LoraOptions(rank=64, rslora=True).resolved_alpha == 16


def test_gradients_reach_only_the_addition(tiny, tokens):
    _, made = adapt(tiny, rank=4, dropout=0.1)
    made.model(tokens, labels=tokens).loss.backward()
    assert {n for n, p in made.model.named_parameters() if p.grad is not None} == set(trained(made.model))


@pytest.mark.parametrize("options", [{"dora": True}, {"dropout": 0.5}, {"dora": True, "dropout": 0.5}], ids=str)
def test_token_bytes_are_what_backward_keeps_for_each_more_token(tiny, options):
    """Of the layers that replaced modules, one after the other; those of a block that read as much read the same."""
    adapter, made = adapt(tiny, rank=3, **options)
    layers = {path: of for path, of in made.model.named_modules() if isinstance(of, BaseTunerLayer)}

    def kept(tokens: int) -> int:
        found, read, alive = {}, {}, []
        for path, layer in layers.items():
            block = path.rpartition(".")[0], layer.get_base_layer().in_features
            x = read.setdefault(block, torch.ones(1, tokens, block[1])).requires_grad_(True)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: found.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
            ):
                alive.append(layer.train()(x))
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    told = adapter.token_bytes(made.facts, "fp32") * made.facts.layers
    assert told == pytest.approx((kept(96) - kept(32)) / 64, rel=0.02)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"targets": ["lm_head", "embed_tokens", "q_proj"]}], ids=str)
def test_restored_weights_are_those_exported(tiny, tokens, tmp_path, options):
    adapter, made = adapt(tiny, rank=4, **options)
    shake(made.model)
    adapter.export(made.model, tmp_path / "artifact", made.info)
    fresh_adapter, fresh = adapt(tiny, seed=9, rank=4, **options)
    fresh_adapter.restore(fresh.model, tmp_path / "artifact")
    assert torch.equal(logits(fresh.model, tokens), logits(made.model, tokens))
    assert set(trained(fresh.model)) == set(trained(made.model))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rank": 8, "alpha": 8}, "rank is 4 there and 8 here"),
        ({"rank": 4, "alpha": 3}, "alpha"),
        ({"rank": 4, "dora": True}, "dora"),
        ({"rank": 4, "alpha": 8, "rslora": True}, "rslora is False there and True here"),
        ({"rank": 4, "targets": "attention"}, "only in the artifact"),
        ({"rank": 4, "targets": ["lm_head"]}, "artifact"),
    ],
)
def test_an_artifact_of_another_adapter_is_refused(tiny, tmp_path, options, named):
    adapter, made = adapt(tiny, rank=4)
    adapter.export(made.model, tmp_path / "artifact", made.info)
    other, fresh = adapt(tiny, **options)
    before = {name: p.clone() for name, p in trained(fresh.model).items()}
    with pytest.raises(UserError, match=named):
        other.restore(fresh.model, tmp_path / "artifact")
    assert all(torch.equal(p, before[name]) for name, p in trained(fresh.model).items())


def test_an_artifact_of_several_scales_is_refused(tiny, tmp_path):
    adapter, made = adapt(tiny, rank=4)
    adapter.export(made.model, tmp_path, made.info)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**about, "alpha_pattern": {"q_proj": 64}}))
    with pytest.raises(UserError, match="it was made with alpha_pattern"):
        adapter.restore(made.model, tmp_path)
    context = FakeContext(tmp_path, model=made.info, facts=made.facts)
    with pytest.raises(RecipeError, match="it was made with alpha_pattern"):
        build(LoraOptions(rank=4, resume_from=str(tmp_path)), context)


def test_a_folder_without_an_adapter_is_refused(tiny, tmp_path):
    adapter, made = adapt(tiny, rank=4)
    with pytest.raises(UserError, match="not a readable adapter: the folder does not exist"):
        adapter.restore(made.model, tmp_path / "none")
    with pytest.raises(UserError, match="not a readable adapter"):
        adapter.restore(made.model, tmp_path)
    adapter.export(made.model, tmp_path, made.info)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="not a readable adapter"):
        adapter.restore(made.model, tmp_path)


def test_whoever_only_reads_its_options_loads_neither_peft_nor_torch():
    code = "import sys, finetooth_lora.adapter; print(sorted({'peft', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["lora", "relora"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_is_said_to_draw(name: str, dropout: float, tmp_path: Path) -> None:
    made = FakeContext(tmp_path, installed=True).build("adapter", {"name": name, "dropout": dropout})
    assert ("draws" in made.capabilities) is (dropout > 0)
    assert "low_rank" in made.capabilities


@pytest.mark.parametrize(
    ("options", "known"),
    [({"dora": True}, False), ({"init": "olora"}, True), ({"init": "olora", "dropout": 0.1}, False)],
)
def test_what_a_backend_cannot_compute_itself_is_said(options, known, tmp_path):
    made = FakeContext(tmp_path, installed=True).build("adapter", {"name": "lora", **options})
    assert ("low_rank" in made.capabilities) is known
