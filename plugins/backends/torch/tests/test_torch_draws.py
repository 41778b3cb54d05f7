"""Dropout and noise are functions of the datum: no cut, order, layout or call changes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import EngineError
from finetooth_kit.fake_context import FakeContext
from finetooth_steps.draws import keep_mask, position_keys, uniform_words
from finetooth_torch.draws import Draws
from torch import nn

OWN, PACKED = {"packing": False}, {"packing": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one batch": {"micro_batch_tokens": 10_000},
    "cut": {"micro_batch_tokens": 40},
    "own code": {"micro_batch_tokens": 10_000, "decoder": "transformers", "options": OWN},
    "own code, cut": {"micro_batch_tokens": 40, "decoder": "transformers", "options": OWN},
    "packed": {"micro_batch_tokens": 100, "decoder": "transformers", "options": PACKED},
    "recomputed": {"micro_batch_tokens": 60, "gradient_checkpointing": True},
    "own code, recomputed": {
        "micro_batch_tokens": 60, "decoder": "transformers", "gradient_checkpointing": True, "options": OWN,
    },
}  # fmt: skip


def gradients(kit: SimpleNamespace, order: Any = None, calls: int = 1, **settings: Any) -> dict[str, Any]:
    engine = kit.engine(precision="fp64", **settings)
    data = [replace(datum, place=place) for place, datum in enumerate(kit.data(8))]
    data = [data[at] for at in order] if order is not None else data
    counts = {"tokens": 50.0, "weights": 50.0, "sequences": 8.0}
    losses = [engine.forward_backward(data[at::calls], kit.nll, normalizer=counts).loss for at in range(calls)]
    return {"loss": sum(losses), **kit.gradients(engine)}


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-7, err_msg=name)  # transformers' rotary is fp32


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_no_layout_changes_what_is_dropped(kit: SimpleNamespace, layout: str) -> None:
    adapter = kit.adapter(dropout=0.4)
    whole = gradients(kit, adapter=adapter, **LAYOUTS["one batch"])
    same(gradients(kit, adapter=kit.adapter(dropout=0.4), **LAYOUTS[layout]), whole)
    dry = gradients(kit, adapter=kit.adapter(), **LAYOUTS["one batch"])
    assert abs(dry["loss"] - whole["loss"]) > 1e-4  # something was dropped


def test_what_is_scored_drops_nothing_though_somebody_else_trains_the_model(kit: SimpleNamespace) -> None:
    engine, data = kit.engine(precision="fp64", adapter=kit.adapter(dropout=0.4)), kit.data(4)
    engine.forward_backward(data, kit.nll)
    engine.step()
    scored = engine.logprobs(data)
    engine.module().train()  # as a trainer of another library does with the model that it was given
    for before, after in zip(scored, engine.logprobs(data), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("seed", range(3))
def test_no_order_and_no_number_of_calls_changes_what_is_dropped(kit: SimpleNamespace, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(8)
    whole = gradients(kit, adapter=kit.adapter(dropout=0.4), **LAYOUTS["one batch"])
    same(gradients(kit, order, seed + 1, adapter=kit.adapter(dropout=0.4), micro_batch_tokens=50 + 20 * seed), whole)


@pytest.mark.parametrize("layout", ["own code, cut", "packed", "own code, recomputed"])
def test_dropped_weights_of_attention_are_keyed_too(kit: SimpleNamespace, layout: str) -> None:
    def of(layout: str, dropped: float = 0.4) -> dict[str, Any]:
        given = LAYOUTS[layout]
        options = {**given["options"], "attention": "eager"}
        return gradients(kit, **{**given, "options": options}, config=kit.config(attention_dropout=dropped))

    whole = of("own code")
    same(of(layout), whole)
    assert abs(of("own code", 0.0)["loss"] - whole["loss"]) > 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "xglm"])
def test_attention_of_a_models_own_code_is_keyed(kind: str) -> None:
    """GPT-2's hands the share of an `nn.Dropout` to transformers' function; XGLM's has rows and heads in one
    dimension."""
    from transformers import AutoConfig, AutoModel

    settings = {
        "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "attn_pdrop": 0.4},
        "xglm": {"d_model": 8, "num_layers": 2, "attention_heads": 2, "ffn_dim": 8, "attention_dropout": 0.4},
    }
    config = AutoConfig.for_model(kind, vocab_size=11, **settings[kind])
    config._attn_implementation = "eager"
    model, draws = AutoModel.from_config(config).train(), Draws(torch.device("cpu"))
    draws.attach(model)
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])

    def states(rows: tuple[int, ...]) -> torch.Tensor:
        with draws.entered(5, 2, rows), torch.no_grad():
            draws.lay_out(torch.arange(4 * len(rows)).view(-1, 4), (4,) * len(rows), (len(rows), 4))
            out: torch.Tensor = model(input_ids=ids[list(rows)], use_cache=False).last_hidden_state
        return out

    together = states((1, 0))
    torch.testing.assert_close(together, torch.cat([states((1,)), states((0,))]))
    with torch.no_grad():
        assert not torch.allclose(together, model.eval()(input_ids=ids[[1, 0]]).last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("name", ["sdpa", "flash_attention_2"])
def test_kernels_that_drop_inside_do_not_say_that_they_drop(name: str) -> None:
    context = FakeContext(Path(), installed=True)
    assert not context.catalog.get("attention", name).entry.serves.dropout
    assert context.catalog.get("attention", "eager").entry.serves.dropout


@pytest.mark.parametrize("layout", ["cut", "own code, cut", "packed"])
def test_noise_on_embeddings_is_keyed_too(kit: SimpleNamespace, layout: str) -> None:
    whole = gradients(kit, embedding_noise=5.0, **LAYOUTS["one batch"])
    same(gradients(kit, embedding_noise=5.0, **LAYOUTS[layout]), whole)


def test_the_numbers_are_those_of_the_reference() -> None:
    """Rows of two data, padded; columns of any count."""
    model = nn.Sequential(nn.Dropout(0.3))
    draws = Draws(torch.device("cpu"))
    draws.attach(model)
    model.train()
    with draws.entered(5, 2, (7, 1)):
        draws.lay_out(torch.arange(8).view(2, 4), (4, 3), (2, 4))
        out = model(torch.ones(2, 4, 19)).numpy()
    expected = [keep_mask(uniform_words(position_keys(5, 2, place, 4), "0", 19), 0.3) / 0.7 for place in (7, 1)]
    np.testing.assert_allclose(out[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(out[1, :3], expected[1][:3], rtol=1e-6)
    model.eval()
    assert torch.equal(model(torch.ones(3)), torch.ones(3))


def test_rows_without_a_key_are_told_and_refused_where_several_ranks_train() -> None:
    model = nn.Sequential(nn.Dropout(0.3)).train()
    for strict in (False, True):
        draws = Draws(torch.device("cpu"), strict=strict)
        draws.attach(model)
        model[0].__dict__["draws"] = draws
        with draws.entered(0, 0, (0,)):
            draws.lay_out(torch.arange(4).view(1, 4), (4,), (1, 4))
            if not strict:
                told: list[str] = []
                draws.note = lambda text, topic, told=told: told.append(text)
                assert model(torch.ones(5, 6)).shape == (5, 6) and model(torch.ones(1, 4, 6)).shape == (1, 4, 6)
                assert [text.split(" drops")[0] for text in told] == ["the module '0'"]
                continue
            with pytest.raises(EngineError, match=r"the module '0' drops from rows .*set its dropout to 0"):
                model(torch.ones(5, 6))
