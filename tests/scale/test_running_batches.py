"""A running batch over two gloo processes: each writes its share of the samples, and both get the tokens that one
process writes, whoever joins, leaves or is cancelled meanwhile."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Sampling
from finetooth_torch.generation.joinable_batch import TorchRunningBatch

sys.path.insert(0, str(Path(__file__).parent))
from test_primitives import CASES, STRATEGIES, folder, ranks, rows  # noqa: F401 - folder is a fixture

pytestmark = pytest.mark.slow
LONG = Sampling(max_tokens=12, temperature=0.7, n=3, seed=5, stop_ids=())
SHORT = Sampling(max_tokens=4, temperature=0.0, stop_ids=())
ARRIVING: dict[int, list[tuple[list[int], Sampling, int]]] = {
    0: [([5, 6, 7], LONG, 0), ([8, 9], SHORT, 0)],
    3: [([5, 6, 7], LONG, LONG.n), ([11], SHORT, 0), ([12] * 30, LONG, 0)],
    8: [([13, 14], LONG, 0), ([15], SHORT, 0)],
}
"""Requests with the number of their first sample, by the step before which they come."""
CANCELLED = 4
"""The request that goes before the seventh step."""


def written(engine: Any) -> list[Any]:
    """Of each request the tokens of its samples with their log-probabilities, as they came; and the completions'."""
    batch, found, step = engine.running_batch(), dict[str, Any](), 0
    while step <= max(ARRIVING) or len(batch):
        for prompt, sampling, first in ARRIVING.get(step, ()):
            batch.add(prompt, sampling, first=first)
        if step == 6:
            batch.cancel(CANCELLED)
        for token in batch.step():
            assert step < 6 or token.request != CANCELLED
            of = found.setdefault(f"{token.request}/{token.sample}", {"tokens": [], "logprobs": [], "whole": None})
            of["tokens"].append(token.token)
            of["logprobs"].append(token.logprob)
            if token.completion is not None:
                of["whole"] = list(token.completion.tokens)
        step += 1
    return found


def main() -> None:
    """The program of each rank: a recipe, and the file for what it gets and how many tokens each rank wrote."""
    recipe, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    session = finetooth.session(recipe, data=False)
    engine, own, step = session.engine, list[int](), TorchRunningBatch.step

    def counted(batch: TorchRunningBatch) -> Any:
        tokens = step(batch)
        own.append(len(tokens))
        return tokens

    TorchRunningBatch.step = counted  # type: ignore[method-assign]
    before = written(engine)
    engine.forward_backward(rows(1, 4), session.context.loss("cross_entropy"))
    engine.step()
    after = written(engine)
    out.with_suffix(f".{os.environ.get('RANK', '0')}").write_text(json.dumps([before, after, sum(own)]))
    if session.writes:
        out.write_text(json.dumps([before, after, sum(own)]), encoding="utf-8")


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Any]:  # noqa: F811
    """What one process writes."""
    return ranks(folder, "alone", {}, __file__)


@pytest.mark.parametrize("strategy", CASES)
def test_ranks_write_what_one_process_writes_each_a_share(folder: Path, alone: list[Any], strategy: str) -> None:  # noqa: F811
    ranks(folder, strategy, {"devices": 2, "strategy": STRATEGIES[strategy]}, __file__)
    shares = []
    for rank in range(2):
        *found, own = json.loads((folder / f"{strategy}.{rank}").read_text(encoding="utf-8"))
        shares.append(own)
        for one, other in zip(found, alone, strict=False):
            assert one.keys() == other.keys() and len(one) > 10
            for sample, of in other.items():
                assert (one[sample]["tokens"], one[sample]["whole"]) == (of["tokens"], of["whole"]), sample
                np.testing.assert_allclose(one[sample]["logprobs"], of["logprobs"], rtol=1e-5, atol=1e-5)
    assert sum(shares) == alone[2] and min(shares) > 0.4 * alone[2]


if __name__ == "__main__":
    main()
