"""FLOPs counted from sizes against torch's own counter, on the plain transformers path."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_torch.planning.flops import (
    PLAIN,
    Computed,
    Execution,
    Flops,
    Linear,
    cost_of,
    count,
    planned_cost,
)
from torch.utils.flop_counter import FlopCounterMode

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS, WIDTH = 3, 11


def built(kit: SimpleNamespace, adapter: Any, **config: Any) -> tuple[Any, Any]:
    """A transformers model with eager attention, which is made of plain products, and its facts."""
    engine = kit.engine(config=kit.config(**config), adapter=adapter, options={"attention": "eager"})
    return engine._parts.network.base, engine._parts.network.facts


def counted(model: Any, *, checkpointing: bool = False) -> Flops:
    """What torch counts, forward and backward apart."""
    tokens = torch.randint(2, 50, (ROWS, WIDTH))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=tokens, use_cache=False).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return Flops(forward.get_total_flops(), backward.get_total_flops())


TRAINS = {
    "full": {"full": True},
    "all linear": {"targets": LINEAR},
    "attention": {"targets": ("q_proj", "k_proj", "v_proj")},
    "feed-forward": {"targets": ("up_proj", "down_proj")},
}


@pytest.mark.parametrize("trains", TRAINS)
@pytest.mark.parametrize("tied", [False, True])
def test_they_are_what_torch_counts(kit: SimpleNamespace, trains: str, tied: bool) -> None:
    model, facts = built(kit, kit.adapter(**TRAINS[trains]), tie_word_embeddings=tied)
    batch = [Computed((WIDTH,) * ROWS, head_rows=ROWS * WIDTH)]
    assert count(cost_of(model, facts), batch, PLAIN) == counted(model)


def test_checkpointing_adds_the_layers_forward(kit: SimpleNamespace) -> None:
    model, facts = built(kit, kit.adapter(targets=LINEAR))
    batch = [Computed((WIDTH,) * ROWS, head_rows=ROWS * WIDTH)]
    truth = counted(model, checkpointing=True)
    found = count(cost_of(model, facts), batch, replace(PLAIN, checkpointing=True))
    assert found.forward == truth.forward
    # transformers sends a gradient into the embedding here, and leaves off with the last product that it needs
    into_embedding = 2 * ROWS * WIDTH * (24 * (24 + 12 + 12) + 3 * 4 * 24)
    last_products = 2 * 2 * ROWS * WIDTH * 4 * 24
    assert found.backward == truth.backward - into_embedding + last_products


def test_facts_alone_give_the_same(kit: SimpleNamespace) -> None:
    for adapter, planned in (
        (kit.adapter(full=True), {"full": True}),
        (kit.adapter(targets=LINEAR, rank=4), {"rank": 4}),
        (kit.adapter(targets=("q_proj", "down_proj"), rank=3), {"rank": 3, "targets": ("q_proj", "down_proj")}),
    ):
        model, facts = built(kit, adapter)
        assert planned_cost(facts, **planned) == cost_of(model, facts)


def test_layers_frozen_below_the_first_that_trains_cost_no_backward(kit: SimpleNamespace) -> None:
    model, facts = built(kit, kit.adapter(full=True), num_hidden_layers=3)
    model.requires_grad_(False)
    model.model.layers[2].mlp.down_proj.requires_grad_(True)
    batch = [Computed((WIDTH,) * ROWS, head_rows=ROWS * WIDTH)]
    assert count(cost_of(model, facts), batch, PLAIN) == counted(model)
    model.model.layers[2].input_layernorm.weight.requires_grad_(True)
    assert count(cost_of(model, facts), batch, PLAIN) == counted(model)


def test_peft_adapters_are_read_too(kit: SimpleNamespace) -> None:
    peft = pytest.importorskip("peft")
    _, facts = built(kit, kit.adapter())
    plain = kit.engine(options={"attention": "eager"}, adapter=kit.adapter(full=True))._parts.network.base
    config = peft.LoraConfig(r=5, target_modules=list(LINEAR))
    plain.requires_grad_(False)
    adapted = peft.inject_adapter_in_model(config, plain, "default")
    batch = [Computed((WIDTH,) * ROWS, head_rows=ROWS * WIDTH)]
    assert cost_of(adapted, facts) == planned_cost(facts, rank=5)
    assert count(cost_of(adapted, facts), batch, PLAIN) == counted(adapted)


def test_frozen_keys_of_the_first_layer_still_get_a_product(kit: SimpleNamespace) -> None:
    """Attention in one piece makes the gradients of queries, keys and values together, whoever asks."""
    model, facts = built(kit, kit.adapter(targets=("q_proj", "v_proj")))
    batch = [Computed((WIDTH,) * ROWS, head_rows=ROWS * WIDTH)]
    found, truth = count(cost_of(model, facts), batch, PLAIN), counted(model)
    assert found.forward == truth.forward
    assert found.backward == truth.backward + 2 * facts.heads * facts.head_dim * ROWS * WIDTH**2


def test_skipping_what_is_masked_halves_attention_and_rescoring_adds_a_product(kit: SimpleNamespace) -> None:
    _, facts = built(kit, kit.adapter())
    model, batch = planned_cost(facts, rank=2), [Computed((7, 4), head_rows=0)]
    width, layers = facts.heads * facts.head_dim, facts.layers
    whole = count(model, batch, PLAIN)
    causal = count(model, batch, Execution(rescores=False, relogits=False))
    assert whole.forward - causal.forward == 4 * width * layers * (49 + 16 - 28 - 10)
    again = count(model, batch, Execution(relogits=False))
    assert again.backward - causal.backward == 2 * width * layers * (28 + 10)
    assert again.forward == causal.forward


def test_a_shared_beginning_costs_its_positions_once_and_its_pairs_for_all(kit: SimpleNamespace) -> None:
    _, facts = built(kit, kit.adapter())
    model, how = planned_cost(facts, full=True), Execution(rescores=False)
    apart = count(model, [Computed((9, 10), 0)], how)
    shared = count(model, [Computed((5, 4, 5), 0, across=5 * 4 + 5 * 5)], how)
    once = [Computed((5,), 0)]
    width = facts.heads * facts.head_dim * facts.layers
    assert apart.total - shared.total == count(model, once, how).total  # five positions and their own pairs less
    assert count(model, once, how).forward > 4 * width * 15


def test_the_last_layer_may_go_on_with_fewer_positions(kit: SimpleNamespace) -> None:
    _, facts = built(kit, kit.adapter())
    model = planned_cost(facts, full=True)
    batches = [Computed((20,), 3, last_rows=last) for last in (None, 3)]
    behind = facts.heads * facts.head_dim * facts.hidden_size + 3 * facts.hidden_size * facts.ffn_size
    everything, few = (count(model, [batch]).total for batch in batches)
    assert everything - few == 3 * 2 * 17 * behind


def test_the_head_counts_rows_and_its_logits_once_more_where_it_trains() -> None:
    from finetooth_torch.planning.flops import ModelCost

    rows = [Computed((), head_rows=9)]
    frozen = ModelCost((), 8, Linear(6, 50), embedding=True)
    assert count(frozen, rows) == Flops(2 * 9 * 6 * 50, 2 * 9 * 6 * 50)
    trained = ModelCost((), 8, Linear(6, 50, trained=True), embedding=True)
    assert count(trained, rows) == Flops(2 * 9 * 6 * 50, 3 * 2 * 9 * 6 * 50)
    nothing = ModelCost((), 8, Linear(6, 50))
    assert count(nothing, rows).backward == 0


def test_micro_batches_add_up(kit: SimpleNamespace) -> None:
    _, facts = built(kit, kit.adapter())
    model = planned_cost(facts, full=True)
    one, other = Computed((5, 5), 4), Computed((9,), 9)
    assert count(model, [one, other]) == count(model, [one]) + count(model, [other])


@pytest.mark.parametrize(("full", "proportional_to"), [(False, None), (True, None), (True, "weights")])
def test_the_engine_reports_what_it_executed(kit: SimpleNamespace, full: bool, proportional_to: str | None) -> None:
    """Against torch's own count of the same call (which sees attention as plain products only)."""
    from torch.utils.flop_counter import FlopCounterMode

    settings = kit.config(hidden_size=128, intermediate_size=384, vocab_size=4096)
    engine = kit.engine(config=settings, micro_batch_tokens=10_000, adapter=kit.adapter(full=full))
    data = kit.data(6)
    engine.logprobs(data)  # not counted with the next call
    with FlopCounterMode(display=False) as counter:
        reported = engine.forward_backward(data, replace(kit.nll, proportional_to=proportional_to)).flops
    assert reported == pytest.approx(counter.get_total_flops(), rel=0.08)
    scored = engine.forward(data, returns=("logprobs",)).flops
    assert 0.2 * reported < scored < 0.6 * reported


def test_gradients_that_are_given_are_foreseen(kit: SimpleNamespace) -> None:
    """A client's own, and those of a step in pieces: what is reported has the logits once, and so has torch's count."""
    from torch.utils.flop_counter import FlopCounterMode

    settings = kit.config(hidden_size=128, intermediate_size=384, vocab_size=4096)
    engine = kit.engine(config=settings, micro_batch_tokens=64, adapter=kit.adapter(full=True))
    data = kit.data(6)
    once, twice = (
        engine.forward_backward(data, replace(kit.nll, proportional_to=name)).flops for name in ("weights", None)
    )
    handle = engine.forward(data).handle
    with FlopCounterMode(display=False) as counter:
        given = engine.backward(handle, [np.ones(datum.targets.shape) for datum in data]).flops
    assert given == once < twice
    assert counter.get_total_flops() == pytest.approx(given, rel=0.08)
    with FlopCounterMode(display=False) as counter:
        pieces = engine.forward_backward(data, replace(kit.nll, together="step")).flops
    assert counter.get_total_flops() == pytest.approx(pieces, rel=0.08)
    assert pieces - engine.forward(data, returns=("logprobs",)).flops == pytest.approx(once, rel=1e-6)


def test_a_backward_reports_the_forward_that_it_makes_again(kit: SimpleNamespace) -> None:
    engine, data = kit.engine(), kit.data(6)
    whole = engine.forward_backward(data, kit.nll).flops
    first, second = (engine.forward(data, kit.nll) for _ in range(2))
    engine.logprobs(data)  # counted with no other call
    assert first.flops == second.flops
    assert engine.backward(first.handle).flops == engine.backward(second.handle).flops == whole > 2 * first.flops
    given = engine.forward(data)
    assert engine.backward(given.handle, [np.ones(d.targets.shape) for d in data]).flops == whole


def test_a_groups_prompt_is_read_once(kit: SimpleNamespace) -> None:
    """By torch's own count: eight answers of one token take seven rows of the head more than one answer, and nothing
    else."""
    from finetooth_hooks import Sampling
    from torch.utils.flop_counter import FlopCounterMode

    settings = kit.config(hidden_size=128, intermediate_size=384, vocab_size=4096)
    engine = kit.engine(config=settings, micro_batch_tokens=10_000)
    prompts = [list(range(2, 42)), list(range(50, 70))]

    def counted(answers: int) -> int:
        with FlopCounterMode(display=False) as counter:
            engine.generate(prompts, Sampling(max_tokens=1, n=answers, stop_ids=()))
        return counter.get_total_flops()

    assert counted(8) - counted(1) == 2 * 7 * len(prompts) * 128 * 4096
    layers = settings.num_hidden_layers * 3 * 2 * 128 * 384  # of a position, in the feed-forward blocks alone
    assert counted(1) > (40 + 20) * layers / 2
