"""A step of `ebft_strided` against the paper's equations over whole sequences, in float64 (arXiv:2603.12248).

The network is made up: a state depends on all tokens of its path and their places. The method reads a document and its
blocks as one tree; the oracle reads each block alone, behind the document before it, and sees no tree.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_ebft.strided import Strided, StridedOptions
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.data.examples import Conversation, Message
from finetooth_hooks.engine import Forward
from finetooth_hooks.protocols import Examples
from finetooth_kit import FakeContext
from finetooth_kit.fake_engine import FakeEngine

N, LENGTH, STRIDE, CONTEXT, PREFIX = 3, 4, 3, 5, 1
DEPTHS = (0.25, 0.5, 0.75)
RANDOM = np.random.default_rng(3)
EMBEDDED, DEEP = RANDOM.normal(size=(512, 6)), {depth: RANDOM.normal(size=(6, 5)) for depth in DEPTHS}


def states(tokens: Sequence[int]) -> dict[float, Any]:
    """(S, 5) of each depth."""
    fading = np.zeros(6)
    carried = []
    for place, token in enumerate(tokens):
        fading = 0.7 * fading + EMBEDDED[token] * (1 + 0.1 * place)
        carried.append(fading)
    return {depth: np.tanh(np.array(carried) @ deep) for depth, deep in DEEP.items()}


class PathEngine(FakeEngine):
    """Its states are those of each position's path; it keeps what it is given to train."""

    def forward(
        self, data: Sequence[Datum], loss: Any = None, *, returns: Collection[str] = (), **more: Any
    ) -> Forward:
        read = super().forward(data, loss, returns=returns, **more)
        outputs = tuple({**of, **self._of_tree(datum)} for of, datum in zip(read.outputs, data, strict=True))
        return replace(read, outputs=outputs)

    def _of_tree(self, datum: Datum) -> dict[str, Any]:
        assert datum.parents is not None
        paths: list[list[int]] = []
        for token, parent in zip(datum.tokens.tolist(), datum.parents.tolist(), strict=True):
            paths.append([*(paths[parent] if parent >= 0 else []), token])
        last = [states(path) for path in paths]
        return {f"hidden:{depth}": np.stack([of[depth][-1] for of in last]) for depth in DEPTHS}

    def forward_backward(self, data: Sequence[Datum], loss: Any, **more: Any) -> Forward:
        self.trained = list(data)
        return super().forward_backward(data, loss, **more)


def unit(vector: Any) -> Any:
    return vector / np.sqrt((vector**2).sum())


def feature(tokens: Sequence[int], first: int, pooling: str) -> Any:
    """Of the tokens from `first` on, behind those before it."""
    read = states(tokens)
    rows = [np.concatenate([unit(read[depth][i]) for depth in DEPTHS]) for i in range(first, len(tokens))]
    if pooling == "last_token":
        return rows[-1]
    if pooling == "concat":
        return np.concatenate([rows[0], rows[1], rows[2]])  # a quarter, half and three quarters of 0 to 3
    return np.mean(rows, axis=0)


def advantages(rewards: Any, estimator: str) -> list[float]:
    if estimator == "reinforce":
        return list(rewards)
    if estimator == "rloo":
        return [r - np.mean([other for k, other in enumerate(rewards) if k != j]) for j, r in enumerate(rewards)]
    return [(r - np.mean(rewards)) / (np.std(rewards, ddof=1) + 1e-4) for r in rewards]  # as GRPO has it


@pytest.mark.parametrize(
    ("pooling", "white", "estimator"),
    [("last_token", False, "rloo"), ("mean_pooling", True, "reinforce"), ("concat", True, "rloo"),
     ("completion_mean", False, "group_norm")],
)  # fmt: skip
def test_a_step_is_that_of_the_equations(tmp_path: Path, pooling: Any, white: bool, estimator: Any) -> None:
    asked = [(f"row {i}", f"Count to {n}.", " ".join(map(str, range(n)))) for i, n in enumerate((6, 9, 4, 7))]
    rows = tuple((id, Conversation((Message("user", q), Message("assistant", a)))) for id, q, a in asked)
    context = FakeContext(tmp_path, installed=True, given={"train": Examples("train", rows)})
    options = StridedOptions(
        stride=STRIDE, context_length=CONTEXT, generate_max_len=LENGTH, n_samples_per_prompt=N, embed_method=pooling,
        use_whitening=white, advantage_estimator=estimator, alignment_coef=0.8, diversity_coef=0.6, rl_coef=0.7,
        ce_coef=0.2, min_completion_prefix=PREFIX,
    )  # fmt: skip
    method, engine = Strided(options, context), PathEngine(context.tokenizer)
    method.prepare()
    report = next(method.steps(engine))

    blocks, groups, truths = [], [], []
    for datum in engine.trained:
        parents = datum.parents.tolist()  # type: ignore[union-attr]
        document = datum.tokens[: next(i for i in range(1, len(parents)) if parents[i] != i - 1)].tolist()
        (row,) = [row for row in method._data if [*row.tokens, row.targets[-1]] == document]
        answers = int(np.flatnonzero(row.mask)[0]) + 1
        end = int(np.flatnonzero(row.mask)[-1]) + 2
        at = len(document)
        for anchor in itertools.count(max(CONTEXT, answers + PREFIX), STRIDE):
            if anchor + LENGTH > end:
                break
            drawn = []
            for _ in range(N):
                drawn.append((at + 1, datum.tokens[at + 1 : at + 1 + LENGTH].tolist()))
                at += LENGTH + 1
            blocks.append((datum, drawn))
            groups.append([feature([*document[:anchor], *tokens], anchor, pooling) for _, tokens in drawn])
            truths.append(feature(document[: anchor + LENGTH], anchor, pooling))
        assert at == len(datum)
    assert len(blocks) > len(engine.trained)
    if white:
        samples = np.concatenate(groups)
        values, vectors = np.linalg.eigh(samples.T @ samples)
        kept = values > 1e-12 * values.max()
        whitening = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
        groups, truths = [np.array(group) @ whitening for group in groups], [truth @ whitening for truth in truths]

    gains, rewards, cosines, alike, distances = [], [], [], [], []
    for group, truth in zip(groups, truths, strict=True):
        cosine = [unit(sample) @ unit(truth) for sample in group]
        other = [sum(group[j] @ group[k] for k in range(N) if k != j) / (N - 1) for j in range(N)]
        own = np.array([2 * 0.8 * c - 2 * 0.6 * o for c, o in zip(cosine, other, strict=True)])
        gains.append(advantages(own, estimator))
        rewards, cosines, alike = [*rewards, *own], [*cosines, *cosine], [*alike, *other]
        distances.append(((np.mean(group, axis=0) - truth) ** 2).sum())
    expected = {"reward": rewards, "alignment": cosines, "diversity": alike, "cfm_loss": distances}
    for name, values in expected.items():
        assert report.metrics[f"ebft/{name}"] == pytest.approx(np.mean(values), abs=1e-6), name
    assert report.metrics["ebft/advantages_std"] == pytest.approx(np.std(gains), abs=1e-6)

    share = 1 / (len(blocks) * N * LENGTH)
    left = {id(datum): np.zeros(len(datum)) for datum in engine.trained}
    for (datum, drawn), gain in zip(blocks, gains, strict=True):
        for (first, _), advantage in zip(drawn, gain, strict=True):
            places = slice(first - 1, first - 1 + LENGTH)  # each position predicts the token behind it
            np.testing.assert_allclose(datum.fields["advantages"][places], advantage, atol=1e-6)
            np.testing.assert_allclose(datum.fields["token_weights"][places], share, rtol=1e-6)
            np.testing.assert_array_equal(datum.targets[places], datum.tokens[first : first + LENGTH])
            left[id(datum)][places] = 1
    entropy, trained = 0.0, 0
    for datum in engine.trained:
        np.testing.assert_array_equal(np.asarray(datum.fields["token_weights"]) > 0, left[id(datum)] > 0)
        weights = np.asarray(datum.fields["weights"])
        said = engine.table[datum.tokens, datum.targets]
        entropy, trained = entropy - (weights * said).sum(), trained + weights.sum()
    policy = -np.mean([advantage for gain in gains for advantage in gain])  # at the ratio 1
    assert report.loss == pytest.approx(0.7 * policy + 0.2 * entropy / trained, abs=1e-6)
