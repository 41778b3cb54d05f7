"""Models rounded on the pretend accelerator and on the CPU: prints whether the codes are the same, how many tensors are
stored, how many Hessians the device inverted, and where everything of the layers is.

The device takes no tensor of the host besides its own. test_gptq_model.py runs this."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from finetooth_gptq.model import Rounding, quantize_model_gptq, store_layers

BACKEND = Path(__file__).parents[3] / "backends" / "torch" / "tests"
sys.path[:0] = [str(BACKEND), str(Path(__file__).parent)]

import pretend_accelerator as pretend  # noqa: E402
from test_gptq_model import llama, rows  # noqa: E402


def mixture() -> Any:
    """A model whose experts are one weight."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).eval()


def stored(model: Any) -> dict[str, torch.Tensor]:
    """What the layers store, and where that is."""
    buffers = model.model.layers.named_buffers()
    return {name: of for name, of in buffers if name.rpartition(".")[2] in ("codes", "scales", "zeros")}


def as_a_quantizer(make: Any, where: str) -> Any:
    """A model of the host, rounded for a device."""
    model, rounding = make(), Rounding(4, 32, 0.01, ordered=True)
    told: list[str] = []
    assert store_layers(model, "model.layers", rows(), rounding, lambda path, shape: True, told.append, where)
    assert not told
    return model


def as_a_function(make: Any, where: str) -> Any:
    """A model of the device."""
    return quantize_model_gptq(make().to(where), 4, rows=rows(), group=32)


def main() -> None:
    kept = pretend.register()
    for make, way in ((llama, as_a_quantizer), (mixture, as_a_quantizer), (llama, as_a_function)):
        host = stored(way(make, "cpu"))
        with pretend.counting():
            model = way(make, pretend.DEVICE)
            inverted = pretend.OPERATIONS["aten.cholesky_inverse"]
        device = stored(model)
        same = host.keys() == device.keys() and all(torch.equal(of, pretend.raw(device[at])) for at, of in host.items())
        places = {str(of.device) for of in (*device.values(), *model.model.layers.parameters())}
        print(make.__name__, way.__name__, same, len(host), inverted, *places)
    del kept


if __name__ == "__main__":
    main()
