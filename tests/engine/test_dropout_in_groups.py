"""An adapter's dropout in groups of linear modules, as the stream decoder computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.torch_request import FACTS, TinyLlamaLoader

torch = pytest.importorskip("torch")
pytest.importorskip("finetooth_lora")

ROWS = 11


def trained(tmp_path: Any, precision: str, **options: Any) -> tuple[Any, Any, Any]:
    """A model in training whose layers have a LoRA that is no longer what it began as, its adapter, and its draws."""
    from finetooth_torch.draws import Draws

    entries = [entry for entry in entries_of("finetooth_lora.plugin") if entry.kind == "adapter"]
    settings = {"name": "lora", "rank": 4, "dropout": 0.4, "targets": ["q_proj", "v_proj"], **options}
    adapter = FakeContext(tmp_path, entries=tuple(entries)).build("adapter", settings)
    model = TinyLlamaLoader().load("tiny", framework="torch", precision=precision, device="cpu")
    model = adapter.apply(model, FACTS, np.random.default_rng(0)).train()
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
            parameter.data = parameter.data.to(next(model.parameters()).dtype)
    draws = Draws(torch.device("cpu"))
    draws.attach(model)
    return model, adapter, draws


@pytest.mark.parametrize(("precision", "allowed"), [("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 2e-2)])
def test_a_group_drops_what_its_modules_drop_one_by_one(precision: str, allowed: float, tmp_path: Any) -> None:
    """Values and gradients of one with dropout, one without an addition and one with dropout of its own; of all rows
    and of some. Modules are called in float64."""
    from finetooth_native.stream_decoder import Group
    from finetooth_torch.compute import TORCH

    for wanted in (None, torch.tensor([2, 3, 7])):
        found = []
        for ours in (True, False):
            model, adapter, draws = trained(tmp_path, precision)
            model = model if ours else model.to(torch.float64)
            attention = model.model.layers[0].self_attn
            modules = [attention.q_proj, attention.k_proj, attention.v_proj]
            draw = torch.Generator().manual_seed(2)
            x = torch.randn(ROWS if wanted is None else 3, FACTS.hidden_size, generator=draw)
            x = x.to(precision_of(precision)).to(next(model.parameters())).requires_grad_()
            group = Group(modules, adapter.low_rank, TORCH)
            with draws.entered(5, 2, (7, 1)):
                draws.lay_out(torch.tensor([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 0]]), (6, 5), (ROWS,))
                draws.wanted = wanted
                if ours:
                    group._called = None  # type: ignore[assignment, method-assign]
                    y = group(x)
                else:
                    y = torch.cat([module(x) for module in modules], -1)
                trains = [p for module in modules for p in module.parameters() if p.requires_grad]
                found.append((y, *torch.autograd.grad(y.square().sum(), [x, *trains])))
        assert len(found[0]) == len(found[1]) == 6
        for got, exact in zip(*found, strict=True):
            assert float(((got.double() - exact).norm() / exact.norm()).detach()) < allowed


def precision_of(name: str) -> Any:
    return {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}[name]


@pytest.mark.parametrize("options", [{"dora": True}, {"init": "olora"}, {}], ids=["dora", "a frozen pair", "no keys"])
def test_what_the_product_cannot_drop_is_called(options: dict[str, Any], tmp_path: Any) -> None:
    """Then peft's own layers drop: with DoRA from the base's input too, and of a frozen pair nothing. Rows without
    keys draw from torch's generator."""
    from finetooth_native.stream_decoder import Group
    from finetooth_torch.compute import TORCH

    model, adapter, draws = trained(tmp_path, "fp32", **options)
    projection = model.model.layers[0].self_attn.q_proj
    x = torch.randn(ROWS, FACTS.hidden_size, generator=torch.Generator().manual_seed(2))
    with draws.entered(5, 2, (7,)):
        if options:
            draws.lay_out(torch.arange(ROWS).view(1, ROWS), (ROWS,), (ROWS,))
        found = []
        for call in (Group([projection], adapter.low_rank, TORCH), projection):
            torch.manual_seed(0)
            found.append(call(x))
    assert torch.equal(*found)


def test_weights_of_layers_that_drop_are_not_packed(tmp_path: Any) -> None:
    from finetooth_native.stream_decoder import Group
    from finetooth_torch.compute import TORCH

    model, adapter, _ = trained(tmp_path, "fp32")
    group = Group([model.model.layers[0].self_attn.q_proj], adapter.low_rank, TORCH)
    assert group.parts() is None
    model.eval()
    assert group.parts() is not None
