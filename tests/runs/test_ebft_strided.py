"""`ebft_strided` end to end: blocks, features, rewards and loss are those of each block read alone by transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_ebft.strided import Strided, StridedOptions, anchors, tokens_of, tree
from finetooth_hooks import DataError, Datum
from finetooth_hooks.data.datum import TokenChunk
from finetooth_rollouts.kept import renormalised
from transformers import AutoModelForCausalLM

N, LENGTH, STRIDE, CONTEXT = 3, 3, 2, 6
METHOD = {
    "name": "ebft_strided", "stride": STRIDE, "context_length": CONTEXT, "generate_max_len": LENGTH,
    "n_samples_per_prompt": N, "ce_coef": 0.25,
}  # fmt: skip
DEPTHS = (0, 1, 1)
"""What a quarter, half and three quarters are of two layers."""


@pytest.fixture
def given(recipe: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    rows = {"name": "tasks", "task": "family", "count": 8, "seed": 5}
    return recipe(
        data={"train": rows, "renderer": "chatml"}, method=METHOD, output=str(tmp_path / "run"),
        optimizer={"name": "adamw", "learning_rate": 1e-2}, evaluate={"evaluators": []},
        train={"precision": "fp32", "max_length": 256, "batch_size": 2, "max_steps": 2},
    )  # fmt: skip


def states(model: Any, tokens: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(map(int, tokens))]), output_hidden_states=True)


def feature(read: Any, at: int) -> Any:
    parts = [read.hidden_states[depth][0, at].double().numpy() for depth in DEPTHS]
    return np.concatenate([part / np.linalg.norm(part) for part in parts])


def test_blocks_are_those_of_each_block_alone(
    given: dict[str, Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, losses: Callable[..., Any],
    metrics: Callable[..., Any],
) -> None:  # fmt: skip
    """The first step of a run: its loss and its numbers, from transformers reading document and block one by one."""
    seen: list[Any] = []
    drawn = Strided._drawn

    def noted(self: Any, engine: Any, rows: Any, step: int) -> Any:
        blocks, flops = drawn(self, engine, rows, step)
        seen.append((rows, blocks))
        return blocks, flops

    monkeypatch.setattr(Strided, "_drawn", noted)
    assert finetooth.run(given).steps == 2
    rows, blocks = seen[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    assert len(blocks) > len(rows)
    policy, rewards_seen, aligned, count = 0.0, [], [], 0
    for block in blocks:
        document = tokens_of(rows[block.row])
        truth = feature(states(model, document), block.anchor + LENGTH - 1)
        reads = [states(model, [*document[: block.anchor], *of.tokens]) for of in block.rollouts]
        samples = np.stack([feature(read, -1) for read in reads])
        cosine = samples @ truth / np.linalg.norm(samples, axis=1) / np.linalg.norm(truth)
        products = samples @ samples.T
        rewards = 2 * cosine - 2 * (products.sum(1) - np.diag(products)) / (N - 1)
        for of, reward in zip(block.rollouts, rewards, strict=True):
            advantage = (N * reward - rewards.sum()) / (N - 1)
            assert len(of.tokens) == LENGTH and of.prompt == tuple(document[: block.anchor])
            policy -= LENGTH * advantage  # at ratio 1
            count += LENGTH
        rewards_seen += rewards.tolist()
        aligned += cosine.tolist()
    crossed, trained = 0.0, 0
    for row in rows:
        said = states(model, row.tokens).logits[0].log_softmax(-1)
        at = np.flatnonzero(row.mask)
        crossed -= sum(float(said[i, row.targets[i]]) for i in at)
        trained += len(at)
    first = metrics(Path(given["output"]))[0]
    assert first["ebft/reward"] == pytest.approx(np.mean(rewards_seen), abs=1e-5)
    assert first["ebft/alignment"] == pytest.approx(np.mean(aligned), abs=1e-5)
    assert losses(Path(given["output"]))[0] == pytest.approx(policy / count + 0.25 * crossed / trained, rel=1e-4)


def test_a_block_sees_no_other(given: dict[str, Any]) -> None:
    """Log-probabilities of a tree's blocks are each alone's; other blocks' tokens change no bit of them."""
    session = finetooth.session({**given, "adapter": "full"})
    engine, method = session.engine, session.job.method
    row = method.data[0]
    blocks, _ = method._drawn(engine, [row], 1)
    assert len(blocks) > 1
    whole = tree(row, blocks)
    (read,) = engine.logprobs([whole])
    first = len(row) + 1
    for block in blocks:
        for of in block.rollouts:
            alone = Datum.from_tokens([*tokens_of(row)[: block.anchor], *of.tokens])
            (expected,) = engine.logprobs([alone])
            np.testing.assert_allclose(read[first : first + LENGTH], expected[-LENGTH:], atol=2e-5)
            np.testing.assert_allclose(of.logprobs, expected[-LENGTH:], atol=2e-5)
            first += LENGTH + 1
    changed = whole.tokens.copy()
    last = len(changed) - (LENGTH + 1)  # the last version of the last block
    changed[last + 1 :] = (changed[last + 1 :] + 1) % 50
    (other,) = engine.logprobs([replace(whole, input=(TokenChunk(changed),))])
    np.testing.assert_array_equal(other[:last], read[:last])
    assert not np.array_equal(other[last:], read[last:])


@pytest.mark.slow
def test_computing_again_and_activations_elsewhere_change_no_number(
    given: dict[str, Any], losses: Callable[..., Any], tmp_path: Path
) -> None:
    """Through the model's own code, whose mask is that of the tree."""
    found = []
    for name, again, place in (("plain", False, "device"), ("again", True, "disk")):
        backend = {"name": "torch", "decoder": "transformers", "activations": place}
        train = {**given["train"], "gradient_checkpointing": again}
        finetooth.run({**given, "backend": backend, "train": train, "output": str(tmp_path / name)})
        found.append(losses(tmp_path / name))
    assert len(found[0]) == 2 and found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.slow
def test_what_trains_is_what_was_drawn_among(given: dict[str, Any], tiny_model: Path) -> None:
    """With top_p each drawn token's log-probability in the data that train is that of transformers' distribution among
    the smallest set of tokens that reaches it, as the sampler says too."""
    top_p, temperature = 0.6, 0.8
    method = {**METHOD, "ce_coef": 0.0, "top_p": top_p, "temperature": temperature}
    session = finetooth.session({**given, "method": method, "adapter": "full"})
    engine, method = session.engine, session.job.method
    rows = list(method.data[:2])
    blocks, _ = method._drawn(engine, rows, 1)
    trees = [tree(row, [block for block in blocks if block.row == i]) for i, row in enumerate(rows)]
    data = method._taught(trees, rows, blocks, [1.0] * sum(len(block.rollouts) for block in blocks))
    read = [of["logprobs"] for of in engine.forward(data, method._loss, returns=("logprobs",), train=False).outputs]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    firsts = [len(row) + 1 for row in rows]
    for block in blocks:
        for of in block.rollouts:
            places = slice(firsts[block.row], firsts[block.row] + LENGTH)
            datum = data[block.row]
            trained = renormalised(read[block.row][places], datum.fields["kept"][places])
            said = states(model, [*tokens_of(rows[block.row])[: block.anchor], *of.tokens]).logits[0].double()
            for i, (token, got) in enumerate(zip(of.tokens, trained, strict=True)):
                shares = (said[block.anchor - 1 + i] / temperature).softmax(-1)
                order = shares.sort(descending=True)
                count = int((order.values.cumsum(0) < top_p).sum()) + 1
                kept = order.indices[:count].tolist()
                assert set(kept) == set(of.kept[i]) and token in kept
                expected = float((shares[token] / shares[kept].sum()).log())
                assert got == pytest.approx(expected, abs=2e-5) == of.logprobs[i]
            firsts[block.row] += LENGTH + 1


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [(0, 12, [6, 8]), (0, 13, [6, 8, 10]), (10, 6, [10, 12]), (0, 9, [6]), (0, 8, []), (28, 2, [])],
)
def test_anchors(prompt: int, answer: int, expected: Any) -> None:
    """(S - generate_max_len - first) // stride + 1 of them."""
    row = Datum.from_tokens(list(range(prompt + answer)), [0.0] * prompt + [1.0] * answer)
    options = StridedOptions(stride=STRIDE, context_length=CONTEXT, generate_max_len=LENGTH)
    found = anchors(row, options)
    assert list(found) == list(expected)
    first, whole = max(CONTEXT, prompt), prompt + answer
    assert len(found) == max(0, (whole - LENGTH - first) // STRIDE + 1)


def test_rows_without_room_for_a_block_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"lower method\.generate_max_len"):
        finetooth.run({**given, "method": {**METHOD, "generate_max_len": 500}})


def test_one_version_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="set advantage_estimator to reinforce"):
        StridedOptions(n_samples_per_prompt=1, advantage_estimator="rloo")
    with pytest.raises(ValueError, match="leave top_p out"):
        StridedOptions(ce_coef=0.1, top_p=0.9)
    assert StridedOptions(n_samples_per_prompt=1).advantage_estimator == "reinforce"
    assert StridedOptions().advantage_estimator == "rloo"
