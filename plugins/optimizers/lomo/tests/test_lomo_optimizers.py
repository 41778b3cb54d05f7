"""LOMO, AdaLomo and BAdam against their papers in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_kit.fake_context import FACTS
from finetooth_lomo import optimizers as built
from finetooth_lomo.badam import block_of

STEPS, RATE, DECAY = 7, 0.03, 0.1
SHAPES = {
    "model.embed_tokens.weight": (9, 4),
    "model.layers.0.mlp.down_proj.weight": (8, 5),
    "model.layers.0.norm.weight": (4,),
    "model.layers.1.mlp.down_proj.weight": (8, 5),
}


def start(place):
    return np.random.default_rng(place).standard_normal(list(SHAPES.values())[place])


def gradients(place):
    shape, rng = list(SHAPES.values())[place], np.random.default_rng(10 + place)
    return 10.0 ** rng.integers(-2, 2, (STEPS, *[1] * len(shape))) * rng.standard_normal((STEPS, *shape))


def trained(optimizer, steps=STEPS):
    weights = [torch.nn.Parameter(torch.tensor(start(place))) for place in range(len(SHAPES))]
    made = optimizer.create(list(zip(SHAPES, weights, strict=True)))
    for step in range(steps):
        for place, weight in enumerate(weights):
            weight.grad = torch.tensor(gradients(place)[step])
        made.step()
    return [weight.detach().numpy() for weight in weights], made


def decay_of(place):
    return DECAY if len(list(SHAPES.values())[place]) > 1 else 0.0


def test_lomo_is_the_papers():
    got, made = trained(built.build_lomo(built.LomoOptions(learning_rate=RATE, weight_decay=DECAY, clip=0.5)))
    for place in range(len(SHAPES)):
        p = start(place)
        for g in gradients(place):
            p = p * (1 - RATE * decay_of(place)) - RATE * np.clip(g, -0.5, 0.5)
        np.testing.assert_allclose(got[place], p, rtol=1e-12)
    assert not any(made.state.values())


def adalomo(p, grads, decay, clip):
    r = c = v = 0.0
    for t, g in enumerate(grads, start=1):
        keep, square = 1 - t**-0.8, g**2
        if p.ndim == 2:
            r = keep * r + (1 - keep) * square.mean(1)
            c = keep * c + (1 - keep) * square.mean(0)
            v = np.outer(r, c) / r.mean()
        else:
            v = keep * v + (1 - keep) * square
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u**2).mean()) / clip)
        p = p * (1 - RATE * decay) - RATE * max(1e-3, np.sqrt((p**2).mean())) * u
    return p


def test_adalomo_is_the_papers():
    options = built.AdaLomoOptions(learning_rate=RATE, weight_decay=DECAY, clip=0.7)
    got, _ = trained(built.build_adalomo(options))
    for place in range(len(SHAPES)):
        wanted = adalomo(start(place), gradients(place), decay_of(place), 0.7)
        np.testing.assert_allclose(got[place], wanted, rtol=1e-9)


def test_badam_is_adam_over_one_block_after_the_other():
    """Blocks in the order of their names: embedding, layer 0, layer 1; two steps each, and the first once more."""
    options = built.BAdamOptions(
        learning_rate=RATE, weight_decay=DECAY, betas=(0.8, 0.95), eps=1e-6, switch_every=2, order="ascending"
    )
    optimizer = built.build_badam(options)
    got, made = trained(optimizer)
    turns = {0: [(0, 1), (6,)], 1: [(2, 3)], 2: [(2, 3)], 3: [(4, 5)]}
    for place, blocks in turns.items():
        p = start(place)
        for block in blocks:
            m = v = np.zeros_like(p)
            for t, step in enumerate(block, start=1):
                g = gradients(place)[step]
                m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
                p = p * (1 - RATE * decay_of(place))
                p = p - RATE * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
        np.testing.assert_allclose(got[place], p, rtol=1e-9)
    assert [tuple(weight.shape) for weight in made.state] == [(9, 4)], "only the block that trains has moments"
    assert [tuple(weight.shape) for weight in optimizer.active(made)] == [(9, 4)]


def test_random_turns_visit_each_block_once_a_round_and_follow_the_seed():
    def order(seed):
        optimizer = built.build_badam(built.BAdamOptions(switch_every=1, seed=seed))
        weights = [torch.nn.Parameter(torch.tensor(start(place))) for place in range(len(SHAPES))]
        made = optimizer.create(list(zip(SHAPES, weights, strict=True)))
        seen = []
        for _ in range(12):
            seen.append(
                optimizer.active(made)[0].data_ptr() == weights[0].data_ptr() or optimizer.active(made)[0].shape
            )
            made.step()
        return seen, [sorted(map(str, seen[i : i + 3])) for i in range(0, 12, 3)]

    (first, rounds), (again, _), (other, _) = order(3), order(3), order(4)
    assert first == again and first != other
    assert all(one == rounds[0] for one in rounds)


def test_blocks_are_layers():
    names = ["base_model.model.layers.11.self_attn.q_proj.weight", "model.norm.weight", "transformer.wte.weight"]
    assert [block_of(name, None) for name in names] == ["layer 00011", "top", "embedding"]


def test_what_counts_steps_together_is_refused_one_by_one():
    with pytest.raises(RecipeError, match=r"optimizer.offload.*badam counts"):
        built.build_badam(built.BAdamOptions(offload="cpu"))


@pytest.mark.parametrize("name", ["adalomo", "badam"])
def test_the_plan_counts_what_is_kept(name):
    """All matrices of the kit's model, trained for a step."""
    optimizer = {
        "adalomo": lambda: built.build_adalomo(built.AdaLomoOptions()),
        "badam": lambda: built.build_badam(built.BAdamOptions(order="ascending")),
    }[name]()
    q, kv, h = FACTS.heads * FACTS.head_dim, FACTS.kv_heads * FACTS.head_dim, FACTS.hidden_size
    of_layer = {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q)}
    of_layer |= {"gate_proj": (FACTS.ffn_size, h), "up_proj": (FACTS.ffn_size, h), "down_proj": (h, FACTS.ffn_size)}
    shapes = {f"m.layers.{i}.{part}.weight": shape for i in range(FACTS.layers) for part, shape in of_layer.items()}
    shapes |= {"m.embed_tokens.weight": (FACTS.vocab_size, h)}
    shapes |= {} if FACTS.tied else {"lm_head.weight": (FACTS.vocab_size, h)}
    weights = {part: torch.nn.Parameter(torch.ones(shape)) for part, shape in shapes.items()}
    total = sum(weight.numel() for weight in weights.values())
    made, most = optimizer.create(list(weights.items())), 0
    for _ in range(1 if name == "adalomo" else 50 * 4):
        for weight in weights.values():
            weight.grad = torch.ones_like(weight)
        made.step()
        kept = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
        most = max(most, sum(value.numel() * value.element_size() for value in kept if value.dim()))
    assert optimizer.state_bytes(FACTS) == pytest.approx(most / total, rel=0.01)
