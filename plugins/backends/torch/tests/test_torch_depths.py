"""Hidden states of any layer are those that transformers numbers so, and gradients reach the weights below them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Contribution, Datum, LossData, LossResult, LossSpec, OutputName, PlanError

LAYERS = 3
NAMES = ("hidden:0", "hidden:1", "hidden:2", "hidden:3", "hidden:0.0", "hidden:0.5", "hidden:0.7", "hidden:1.0")
NUMBERS = (0, 1, 2, 3, 0, 1, 2, 3)
"""What the names mean with three layers; 1.5 is 1, and 2.1 is 2."""


def rows() -> list[Datum]:
    random = np.random.default_rng(2)
    begin = random.integers(2, 60, 20).tolist()
    return [Datum.from_tokens([*begin, *random.integers(2, 60, n).tolist()], id=f"row:{n}") for n in (3, 9, 5)]


def make(kit: SimpleNamespace, decoder: str, **changes: Any) -> Any:
    config = kit.config("llama", num_hidden_layers=LAYERS)
    return kit.engine(config=config, options={"decoder": decoder}, micro_batch_tokens=100_000, **changes)


def decoders(kit: SimpleNamespace) -> tuple[str, ...]:
    return ("transformers",) if kit.decoder == "transformers" else ("stream", "transformers")


def test_states_are_those_of_transformers(kit: SimpleNamespace) -> None:
    for decoder in decoders(kit):
        engine = make(kit, decoder)
        outputs = engine.forward(rows(), returns=NAMES, train=False).outputs
        model = engine.module().eval()
        for datum, out in zip(rows(), outputs, strict=True):
            with torch.no_grad():
                states = model(input_ids=torch.tensor(datum.tokens[None]), output_hidden_states=True).hidden_states
            for name, number in zip(NAMES, NUMBERS, strict=True):
                np.testing.assert_allclose(out[name], states[number][0].numpy(), atol=2e-5, rtol=1e-4, err_msg=name)


def middle(outputs: Any, data: LossData, state: Any) -> LossResult:
    squares = (outputs["hidden:0.5"] ** 2).sum(-1) + outputs["logprobs"]
    return LossResult({"middle": Contribution((squares * data.fields["weights"]).sum())})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_end_at_the_layer(kit: SimpleNamespace, checkpointing: bool) -> None:
    """A loss of the middle alone trains what lies below, by the gradient of the model's own code."""
    spec = LossSpec("test:middle", middle, frozenset({"logprobs", "hidden:0.5"}))
    for decoder in decoders(kit):
        engine = make(kit, decoder, gradient_checkpointing=checkpointing, adapter=kit.adapter(full=True))
        engine.forward_backward(rows(), spec)
        model = engine.module()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        total, count = torch.zeros(()), 0
        for datum in rows():
            out = model(input_ids=torch.tensor(datum.tokens[None]), output_hidden_states=True)
            said = out.logits[0].log_softmax(-1).gather(1, torch.tensor(datum.targets)[:, None]).sum()
            total = total + said + (out.hidden_states[1] ** 2).sum()
            count += len(datum)
        (total / count).backward()
        assert found
        for name, gradient in found.items():
            expected = dict(model.named_parameters())[name].grad
            np.testing.assert_allclose(gradient, expected, atol=2e-5, rtol=2e-3, err_msg=name)


@pytest.mark.parametrize(
    ("name", "says"),
    [("hidden:4", "the model has 3 layers"), ("hidden:1.5", "from 0.0 to 1.0"), ("hidden:-1", "number of a layer"),
     ("hidden:", "number of a layer"), ("logits:0.5", "only hidden has a depth")],
)  # fmt: skip
def test_other_depths_are_refused(kit: SimpleNamespace, name: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        make(kit, "transformers").forward(rows(), returns=(name,), train=False)


def test_names_come_apart() -> None:
    assert OutputName.of("hidden:0.25@reference") == OutputName("hidden", 0.25, "reference")
    assert OutputName.of("hidden:12") == OutputName("hidden", 12)
    assert OutputName.of("logprobs@critic") == OutputName("logprobs", None, "critic")
    assert [OutputName.of(f"hidden:{depth}").layer(32) for depth in ("0.25", "0.5", "0.75")] == [8, 16, 24]
