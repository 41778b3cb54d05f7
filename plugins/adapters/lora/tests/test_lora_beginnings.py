"""PiSSA and OLoRA against peft's own, the frozen pair, and LoRA+."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError, UserError
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.beginnings import START
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError

torch.set_num_threads(1)
BOTH = pytest.mark.parametrize("init", ["pissa", "olora"])


def adapt(tiny: Any, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    made = tiny()
    adapter = LoraAdapter(LoraOptions(**{"rank": 4, **options}))
    made.model = adapter.apply(made.model, made.facts, np.random.default_rng(seed)).eval()
    return adapter, made


def logits(model: Any, tokens: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def train(model: Any, tokens: Any, steps: int = 5) -> list[float]:
    """Losses of plain gradient descent on what trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.SGD(trained, lr=0.05), []
    for _ in range(steps):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@BOTH
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_it_trains_as_peft_does_over_a_base_without_what_was_taken_out(
    tiny: Any, tokens: Any, init: str, rslora: bool
) -> None:
    """peft takes A and B out of the weight; here the weight stays and the pair is taken off: the same steps."""
    _, made = adapt(tiny, init=init, rslora=rslora)
    config = LoraConfig(
        r=4, lora_alpha=16 if rslora else 8, init_lora_weights=init, use_rslora=rslora,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    theirs = get_peft_model(tiny().model, config).eval()
    for name, parameter in made.model.named_parameters():
        if name.endswith("lora_A.default.weight"):
            other = theirs.get_submodule(f"base_model.model.{name.removesuffix('.weight')}").weight
            torch.testing.assert_close(parameter, other, atol=1e-5, rtol=1e-4)
    assert train(made.model, tokens) == pytest.approx(train(theirs, tokens), rel=1e-4)
    torch.testing.assert_close(logits(made.model, tokens), logits(theirs, tokens), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("target", ["q_proj", "lm_head", "embed_tokens"])
def test_dora_refuses_weights_without_a_direction(tiny: Any, tokens: Any, target: str) -> None:
    """The row of a pad token is 0 in many models: DoRA divides by its length, and the first loss would be nan."""
    made = tiny()
    module = next(of for path, of in made.model.named_modules() if path.endswith(target))
    with torch.no_grad():
        if target == "embed_tokens":
            module.weight[:, 5] = 0
        else:
            module.weight[5] = 0
    adapter = LoraAdapter(LoraOptions(rank=2, dora=True, targets=[target]))
    with pytest.raises(RecipeError, match=rf"^adapter\.dora: all weights of output 5 of .*{target} are 0, so"):
        adapter.apply(made.model, made.facts, np.random.default_rng(0))


@BOTH
def test_it_begins_as_the_base_and_is_the_base_when_switched_off(tiny: Any, tokens: Any, init: str) -> None:
    adapter, made = adapt(tiny, init=init)
    base = logits(tiny().model, tokens)
    torch.testing.assert_close(logits(made.model, tokens), base, atol=1e-5, rtol=1e-5)
    train(made.model, tokens)
    with adapter.disabled(made.model):
        assert torch.equal(logits(made.model, tokens), base)


@BOTH
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_the_artifact_is_a_plain_lora_of_twice_the_rank_and_comes_back(
    tiny: Any, tokens: Any, tmp_path: Any, init: str, rslora: bool
) -> None:
    adapter, made = adapt(tiny, init=init, rslora=rslora)
    train(made.model, tokens)
    adapter.export(made.model, tmp_path / "artifact", made.info)
    config = json.loads((tmp_path / "artifact" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    loaded = PeftModel.from_pretrained(tiny().model, tmp_path / "artifact").eval()
    torch.testing.assert_close(logits(loaded, tokens), logits(made.model, tokens), atol=1e-5, rtol=1e-5)
    other, fresh = adapt(tiny, seed=9, init=init, rslora=rslora)
    other.restore(fresh.model, tmp_path / "artifact")
    assert torch.equal(logits(fresh.model, tokens), logits(made.model, tokens))
    plain, made = adapt(tiny)
    with pytest.raises(UserError, match="rank is 8 there and 4 here"):
        plain.restore(made.model, tmp_path / "artifact")


def test_what_a_backend_computes_together_is_what_the_layer_gives(tiny: Any, tokens: Any) -> None:
    adapter, made = adapt(tiny, init="pissa")
    train(made.model, tokens)
    layer = made.model.model.layers[1].mlp.up_proj
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    found = adapter.low_rank(layer)
    assert found.a.shape == (8, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.base(x) + found.scale * (x @ found.a.T) @ found.b.T, layer(x))


def test_pissa_is_the_best_approximation_of_its_rank_also_by_iterations(tiny: Any) -> None:
    for iterations, bound in ((None, 1e-4), (16, 2e-2)):
        _, made = adapt(tiny, init="pissa", svd_iterations=iterations)
        layer = made.model.model.layers[0].self_attn.q_proj
        weight = layer.base_layer.weight.detach().double().numpy()
        a, b = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        taken = layer.scaling["default"] * b.detach().double().numpy() @ a.detach().double().numpy()
        singular = np.linalg.svd(weight, compute_uv=False)
        assert np.linalg.norm(weight - taken) == pytest.approx(np.linalg.norm(singular[4:]), rel=bound)
        torch.testing.assert_close(layer.lora_B[START].weight, -b)


@BOTH
def test_only_linear_modules_begin_so(tiny: Any, init: str) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.init: .* reads the weight of a linear module, and model.embed"):
        adapt(tiny, init=init, targets=["embed_tokens", "q_proj"])
    with pytest.raises(RecipeError, match=r"adapter\.rank: 33 is more than"):
        adapt(tiny, init=init, rank=33)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"init": "pissa", "dora": True}, "init and dora"),
        ({"init": "olora", "resume_from": "x"}, "init begins a new adapter"),
        ({"svd_iterations": 4}, "svd_iterations is for init: pissa"),
        ({"init": "olora", "svd_iterations": 4}, "svd_iterations is for init: pissa"),
        ({"targets": []}, "nothing would train"),
        ({"dora": True, "target_parameters": ["experts.down_proj"]}, "leave out dora or target_parameters"),
        ({"loraplus_ratio": 0}, "loraplus_ratio"),
    ],
)
def test_what_cannot_be_mixed_is_refused(options: dict[str, Any], refused: str) -> None:
    with pytest.raises(ValidationError, match=refused):
        LoraOptions(**options)


def test_every_b_has_its_share_of_the_rate(tiny: Any) -> None:
    adapter, made = adapt(tiny, loraplus_ratio=16, targets=["q_proj", "embed_tokens"])
    names = [name for name, parameter in made.model.named_parameters() if parameter.requires_grad]
    shares = adapter.rate_shares(names)
    assert {name for name in names if "_B." in name} == set(shares)
    assert set(shares.values()) == {16}
    assert LoraAdapter(LoraOptions()).rate_shares(names) == {}
