"""LoftQ and EVA against NumPy's decompositions in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.originals import originals
from finetooth_torchshared.quantised import DequantisingLinear
from pydantic import ValidationError

torch.set_num_threads(1)


class Coarse(DequantisingLinear):
    """Five levels a row."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, module: torch.nn.Linear) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        weight = module.weight.detach()
        self.register_buffer("scales", weight.abs().amax(1, keepdim=True) / 2)
        self.register_buffer("codes", (weight / self.scales).round().to(torch.int8))

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        return (self.codes.float() * self.scales).to(dtype)


def test_loftq_begins_with_the_best_of_what_was_lost(tiny: Any, tokens: Any) -> None:
    made = tiny()
    with torch.no_grad():
        wanted = made.model(tokens).logits
    weights = {}
    for path, module in list(made.model.named_modules()):
        if path.endswith("_proj"):
            weights[path] = module.weight.detach().clone()
            parent, _, name = path.rpartition(".")
            setattr(made.model.get_submodule(parent), name, Coarse(module))
    with torch.no_grad():
        before = (made.model(tokens).logits - wanted).abs().mean()
    adapter = LoraAdapter(LoraOptions(rank=4, init="loftq"), original=weights.__getitem__)
    model = adapter.apply(made.model, made.facts, np.random.default_rng(0)).eval()
    for path, weight in weights.items():
        layer = model.get_submodule(path)
        added = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
        rest = weight - layer.base_layer.dequantised(torch.float32)
        left = np.linalg.norm((rest - added.detach()).double().numpy())
        values = np.linalg.svd(rest.double().numpy(), compute_uv=False)
        assert left == pytest.approx(np.sqrt((values[4:] ** 2).sum()), rel=1e-4)
    with torch.no_grad():
        assert (model(tokens).logits - wanted).abs().mean() < before


def test_eva_begins_with_the_directions_of_the_inputs(tiny: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same whatever is summed at once, and the model begins as it is."""
    found = []
    rows = [list(map(int, row)) for row in tokens]
    for room in (1 << 30, 1):
        monkeypatch.setattr("finetooth_lora.inputs.EVA_ROOM", room)
        made = tiny()
        seen: dict[str, list[np.ndarray]] = {}
        for path, module in made.model.named_modules():
            if path.endswith("_proj"):
                seen[path] = []
                into = seen[path]
                module.register_forward_pre_hook(lambda m, args, to=into: to.append(args[0].flatten(0, -2).numpy()))
        with torch.no_grad():
            wanted = made.model(tokens).logits
        read = {path: np.concatenate(parts).astype(np.float64) for path, parts in seen.items()}
        adapter = LoraAdapter(LoraOptions(rank=4, init="eva"), rows=lambda: rows)
        model = adapter.apply(made.model, made.facts, np.random.default_rng(0)).eval()
        for path, inputs in read.items():
            a = model.get_submodule(path).lora_A["default"].weight.detach().double().numpy()
            _, values, vectors = np.linalg.svd(inputs, full_matrices=False)
            np.testing.assert_allclose(a @ a.T, np.eye(4), atol=1e-5)
            # as much of the inputs as the best four directions hold
            assert np.linalg.norm(inputs @ a.T) == pytest.approx(np.sqrt((values[:4] ** 2).sum()), rel=1e-4)
            assert np.abs(a[0] @ vectors[0]) == pytest.approx(1, abs=1e-3)
        with torch.no_grad():
            torch.testing.assert_close(model(tokens).logits, wanted)
        found.append(torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    torch.testing.assert_close(found[0], found[1])


def test_what_they_cannot_begin_with_is_said(tiny: Any) -> None:
    made = tiny()
    adapter = LoraAdapter(LoraOptions(rank=4, init="loftq"), original=lambda path: torch.zeros(8, 8))
    with pytest.raises(RecipeError, match=r"makes up for what a quantised weight lost, and .* is a Linear"):
        adapter.apply(made.model, made.facts, np.random.default_rng(0))
    for options in ({"init_rows": 4}, {"init": "eva", "dora": True}, {"init": "loftq", "resume_from": "runs/x"},
                    {"init": "eva", "targets": [], "target_parameters": ["experts"]}):  # fmt: skip
        with pytest.raises(ValidationError):
            LoraOptions(rank=4, **options)


def test_originals_are_read_one_by_one(tiny: Any, tmp_path: Any) -> None:
    """Out of the files, in the precision that they were stored from; else from the model."""
    from types import SimpleNamespace

    made = tiny()
    made.model.save_pretrained(tmp_path)
    path = "model.layers.0.mlp.up_proj"
    weight = made.model.get_submodule(path).weight
    info: Any = SimpleNamespace(files=tuple(tmp_path.glob("*.safetensors")), stored=None, reference="tiny")
    loader: Any = SimpleNamespace(load=lambda *given, **options: made.model)
    for files in (info.files, ()):
        info.files = files
        torch.testing.assert_close(originals(info, loader, "fp32")(path), weight.float(), rtol=0, atol=0)
    info.files = tuple(tmp_path.glob("*.safetensors"))
    found = originals(info, SimpleNamespace(), "bf16")(path)  # type: ignore[arg-type]
    torch.testing.assert_close(found, weight.bfloat16().float(), rtol=0, atol=0)
