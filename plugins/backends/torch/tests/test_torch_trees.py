"""A datum whose parents are a tree: each path from the beginning is computed as if it stood alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from finetooth_hooks import DataError, Datum
from finetooth_kit import entries_of
from finetooth_torch.layout.shared_rows import _tree_obstacle
from finetooth_torch.planning.attention import AttentionChoice
from torch import nn


def tree(parents: list[int], seed: int = 0, name: str = "tree") -> Datum:
    """Random tokens under these parents; every position has a target of its own."""
    random = np.random.default_rng(seed)
    n = len(parents)
    base = Datum.from_tokens(random.integers(2, 60, n + 1).tolist(), id=name)
    weights = random.uniform(0.5, 2.0, n).astype(np.float32)
    return replace(
        base, targets=random.integers(2, 60, n), parents=np.array(parents), fields={"weights": weights},
        mask=np.ones(n, dtype=bool),
    )  # fmt: skip


def paths(datum: Datum) -> list[tuple[int, Datum]]:
    """For each position the path to it as a datum of its own, of which the last target alone counts."""
    assert datum.parents is not None
    found = []
    for position in range(len(datum)):
        path = [position]
        while datum.parents[path[0]] >= 0:
            path.insert(0, int(datum.parents[path[0]]))
        weights = np.where(np.arange(len(path)) == len(path) - 1, datum.fields["weights"][path], 0.0)
        alone = Datum.from_tokens([*datum.tokens[path].tolist(), 0], id=f"path:{position}")
        mask = weights != 0
        found.append((position, replace(alone, targets=datum.targets[path], fields={"weights": weights}, mask=mask)))
    return found


BLOCKS = [*range(-1, 11), 3, 12, 13, 5, 15, 16, -1, 18, 18, 20]
"""A document of 12, blocks of three that continue it at positions 3 and 5, and another sequence that forks."""


def test_paths_are_computed_as_alone(kit: SimpleNamespace) -> None:
    """Log-probabilities and gradients, in fp32: what float64 leaves is the order of sums."""
    engine = kit.engine(adapter=kit.adapter(full=True), micro_batch_tokens=100_000)
    data = [
        tree(BLOCKS),
        tree([-1, 0, 1, 0, 0, 4], seed=1, name="forks"),
        tree(list(range(-1, 5)), seed=2, name="line"),
    ]
    alone = [path for datum in data for _, path in paths(datum)]
    expected = iter(engine.logprobs(alone))
    for datum, scores in zip(data, engine.logprobs(data), strict=True):
        np.testing.assert_allclose(scores, [next(expected)[-1] for _ in range(len(datum))], atol=2e-6, rtol=2e-6)
    result = engine.forward_backward(data, kit.nll)
    gradients = kit.gradients(engine)
    engine.zero_grad()
    other = engine.forward_backward(alone, kit.nll)
    assert result.loss == pytest.approx(other.loss, rel=1e-6)
    assert kit.relative(gradients, kit.gradients(engine)) < 1e-5


def test_any_tree(kit: SimpleNamespace) -> None:
    engine, random = kit.engine(), np.random.default_rng(4)
    for seed in range(12):
        parents = [int(random.integers(-1, i)) if i else -1 for i in range(int(random.integers(2, 15)))]
        datum = tree(parents, seed=seed)
        expected = [out[-1] for out in engine.logprobs([path for _, path in paths(datum)])]
        np.testing.assert_allclose(engine.logprobs([datum])[0], expected, atol=2e-6, rtol=2e-6, err_msg=str(parents))


def test_what_a_branch_says_changes_no_other(kit: SimpleNamespace) -> None:
    """Blocks see the document and themselves: bit-equal whatever stands in a sibling."""
    engine, datum = kit.engine(), tree(BLOCKS)
    tokens = datum.tokens.copy()
    tokens[12:15] = tokens[12:15] % 50 + 3
    changed = replace(datum, input=Datum.from_tokens([*tokens.tolist(), 0]).input)
    before, after = engine.logprobs([datum])[0], engine.logprobs([changed])[0]
    same = np.ones(len(datum), dtype=bool)
    same[12:15] = False
    np.testing.assert_array_equal(before[same], after[same])
    assert (before[12:15] != after[12:15]).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_window_is_counted_along_the_path(kit: SimpleNamespace, attention: str) -> None:
    """Layers that see few positions see those of their own path, however many branches lie between."""
    from transformers import Gemma3TextConfig

    options = {"decoder": "transformers", "attention": attention}
    config = Gemma3TextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=61, max_position_embeddings=128, sliding_window=4, sliding_window_pattern=2,
    )  # fmt: skip
    engine, datum = kit.engine(config=config, options=options), tree(BLOCKS)
    expected = [out[-1] for out in engine.logprobs([path for _, path in paths(datum)])]
    np.testing.assert_allclose(engine.logprobs([datum])[0], expected, atol=2e-6, rtol=2e-6)


def test_attention_without_a_mask_computes_no_tree() -> None:
    """It is handed the lengths of sequences that stand one after the other."""
    varlen = AttentionChoice({}, {"full": next(iter(entries_of("finetooth_varlen.plugin")))}, ())  # type: ignore[dict-item]
    assert "takes no mask of pairs of positions" in _tree_obstacle(nn.Identity(), "own", varlen)


def test_a_model_that_hands_states_on_refuses_a_tree(kit: SimpleNamespace) -> None:
    from transformers import Lfm2Config

    config = Lfm2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, layer_types=["conv", "full_attention"], block_multiple_of=8,
    )  # fmt: skip
    engine = kit.engine(config=config, options={"decoder": "transformers"})
    with pytest.raises(DataError, match=r"tree: a segment continues another one .*\n?.*"):
        engine.logprobs([tree(BLOCKS)])
