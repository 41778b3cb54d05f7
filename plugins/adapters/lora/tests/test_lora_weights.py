"""LoRA on what is no linear module: experts in one weight, convolutions, rows of tokens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.sizes import experts_of
from peft import PeftModel
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

torch.set_num_threads(1)
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def moe() -> Any:
    config = Qwen3MoeConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3MoeForCausalLM(config).eval()


def shake(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)


def logits(model: Any, tokens: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def adapter_of(tiny: Any, **options: Any) -> tuple[LoraAdapter, Any, Any]:
    model, facts = moe(), replace(tiny().facts, block=None)
    adapter = LoraAdapter(LoraOptions(rank=2, **options), experts=experts_of(model.config.to_dict()))
    return adapter, adapter.apply(model, facts, np.random.default_rng(0)).eval(), facts


@pytest.mark.parametrize("targets", [["q_proj"], []], ids=["beside attention", "alone"])
def test_experts_held_as_one_weight_train_and_peft_loads_them(
    tiny: Any, tokens: Any, tmp_path: Any, targets: Any
) -> None:
    adapter, model, facts = adapter_of(tiny, targets=targets, target_parameters=EXPERTS)
    base = logits(moe(), tokens)
    torch.testing.assert_close(logits(model, tokens), base)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == adapter.trained_parameters(facts, 0)
    assert all("lora_" in name for name in trained)
    shake(model)
    adapter.export(model, tmp_path / "artifact", tiny().info)
    loaded = PeftModel.from_pretrained(moe(), tmp_path / "artifact").eval()
    assert (logits(model, tokens) - base).abs().max() > 1e-2
    torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), atol=1e-6, rtol=1e-6)
    other, fresh, _ = adapter_of(tiny, targets=targets, target_parameters=EXPERTS)
    other.restore(fresh, tmp_path / "artifact")
    assert torch.equal(logits(fresh, tokens), logits(model, tokens))
    with adapter.disabled(model):
        torch.testing.assert_close(logits(model, tokens), base)
    folded = adapter.fold(moe(), tmp_path / "artifact", precision="fp32", device="cpu")
    torch.testing.assert_close(logits(folded, tokens), logits(model, tokens), atol=1e-5, rtol=1e-4)
    assert adapter.additions(tmp_path / "artifact") is None


def test_an_addition_to_experts_is_scale_times_b_a_of_each(tiny: Any) -> None:
    """In float64, expert by expert: the weight is (experts, outputs, inputs)."""
    _, model, _ = adapter_of(tiny, targets=[], target_parameters=["experts.down_proj"])
    shake(model)
    wrapper = model.model.layers[0].mlp.experts
    a, b = (wrapper.lora_A["default"].weight.detach(), wrapper.lora_B["default"].weight.detach())
    delta = wrapper.get_delta_weight("default").detach().double().numpy()
    for expert in range(4):
        rows = a.double().numpy()[2 * expert : 2 * expert + 2]
        columns = b.double().numpy().reshape(32, 2, 4)[:, :, expert]
        np.testing.assert_allclose(delta[expert], 2.0 * columns @ rows, rtol=1e-4, atol=1e-6)


def test_dropout_reaches_attention_and_not_the_experts(tiny: Any) -> None:
    _, model, _ = adapter_of(tiny, targets=["q_proj"], target_parameters=EXPERTS, dropout=0.05)
    drops = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p == 0.05}
    assert {name.split(".")[-3] for name in drops} == {"q_proj"}
    assert len(drops) == 2


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("experts.gate_proj", r"names no weight .* \(name one such as .*experts\.gate_up_proj"),
        ("q_proj.weight", r"is a module's own weight .*add q_proj to adapter\.targets"),
    ],
)
def test_a_name_that_is_no_weight_of_experts_is_refused(tiny: Any, target: str, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"adapter\.target_parameters: '{target}' {said}"):
        adapter_of(tiny, targets=[], target_parameters=[target])


def test_a_model_without_experts_says_so(tiny: Any) -> None:
    made = tiny()
    adapter = LoraAdapter(LoraOptions(targets=[], target_parameters=["experts.down_proj"]))
    with pytest.raises(RecipeError, match="holds none as one weight"):
        adapter.apply(made.model, made.facts, np.random.default_rng(0))


class Convolved(nn.Module):
    """A tiny Llama whose first layer has convolutions beside its attention."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.model, self.lm_head, self.config = made.model.model, made.model.lm_head, made.model.config
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.conv1d = nn.Conv1d(32, 32, 3, padding=1)
            self.conv2d = nn.Conv2d(1, 4, 3)

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv1d(x), self.conv2d(x.unsqueeze(1))


@pytest.mark.parametrize("dora", [False, True])
def test_convolutions_with_and_without_dora(tiny: Any, tmp_path: Any, dora: bool) -> None:
    """The merged weight in float64: W + s B A, with DoRA each filter scaled to its length."""
    made = tiny()
    adapter = LoraAdapter(LoraOptions(rank=2, targets=["conv1d", "conv2d"], dora=dora))
    model = adapter.apply(Convolved(made), made.facts, np.random.default_rng(0)).eval()
    x = torch.randn(2, 32, 9, generator=torch.Generator().manual_seed(1))
    plain = Convolved(tiny())
    for ours, theirs in zip(model(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    shake(model)
    for name in ("conv1d", "conv2d"):
        layer, base = getattr(model, name), getattr(plain, name)
        weight = base.weight.detach().double().numpy()
        a, b = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        a, b = (side.detach().double().numpy() for side in (a, b))
        merged = weight + 2.0 * np.einsum("or,r...->o...", b.reshape(b.shape[0], -1), a)
        if dora:
            length = np.sqrt((merged**2).sum(axis=tuple(range(1, merged.ndim)), keepdims=True))
            magnitude = layer.lora_magnitude_vector["default"].weight.detach().double().numpy()
            merged = merged / length * magnitude.reshape(length.shape)
        base.weight.data = torch.from_numpy(merged).float()
    with torch.no_grad():
        for ours, theirs in zip(model(x), plain(x), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_named_tokens_train_beside_the_addition(tiny: Any, tokens: Any, tmp_path: Any, tied: bool) -> None:
    made = tiny(tied=tied)
    adapter = LoraAdapter(LoraOptions(rank=2, targets=["q_proj"], train_tokens=["a", "b"]), tokens=(3, 7))
    model = adapter.apply(made.model, made.facts, np.random.default_rng(0)).eval()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter.trained_parameters(replace(made.facts, layers=2), 0) == trained
    assert trained == 2 * 2 * (32 + 32) + 2 * 32 * (1 if tied else 2)
    shake(model)
    adapter.export(model, tmp_path / "artifact", made.info)
    loaded = PeftModel.from_pretrained(tiny(tied=tied).model, tmp_path / "artifact").eval()
    torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), atol=1e-6, rtol=1e-6)


def test_a_token_that_the_model_lacks_is_refused() -> None:
    from finetooth_lora.adapter import build

    tokenizer = SimpleNamespace(token_id={"<a>": 4}.get)
    context: Any = SimpleNamespace(
        tokenizer=tokenizer, facts=SimpleNamespace(new_tokens=()), model=SimpleNamespace(reference="tiny", config={})
    )
    assert build(LoraOptions(train_tokens=["<a>"]), context).tokens == (4,)
    with pytest.raises(RecipeError, match=r"adapter\.train_tokens: '<b>' is not a token of tiny"):
        build(LoraOptions(train_tokens=["<b>"]), context)


def test_dora_is_what_peft_computes_and_its_slopes(tiny: Any, tokens: Any) -> None:
    from peft.tuners.lora.dora import DoraLinearLayer

    made = tiny()
    model = LoraAdapter(LoraOptions(rank=2, dora=True)).apply(made.model, made.facts, np.random.default_rng(0)).eval()
    shake(model)

    def computed() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        found = model(tokens).logits
        found.square().sum().backward()
        return found.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]

    ours, slopes = computed()
    changed = [module for module in model.modules() if isinstance(module, DoraLinearLayer)]
    assert changed and all(type(module) is not DoraLinearLayer for module in changed)
    for module in changed:
        module.__class__ = DoraLinearLayer
    theirs, wanted = computed()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert slopes and len(slopes) == len(wanted)
    for ours, theirs in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
