"""The reference's numbers are made once, found again by content, and give the loss that the model itself gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import EngineError
from finetooth_hooks.data.examples import Pair
from finetooth_kit import FakeEngine

Contexts = Callable[..., Any]


def losses(context: Any, engine: FakeEngine, reference: str) -> list[float]:
    method = context.build("method", {"name": "dpo", "reference": reference})
    method.prepare()
    return [report.loss for report in method.steps(engine)]


class Drifting(FakeEngine):
    """Its policy says something else after every step; its reference does not."""

    def _score(self, datum: Any) -> Any:
        return super()._score(datum) * (1.0 + 0.1 * self.weights_version)

    def logprobs(self, data: Any, *, role: str = "policy") -> Any:
        self.calls.append(f"logprobs {role}")
        version, self.weights_version = self.weights_version, 0 if role == "reference" else self.weights_version
        try:
            return [self._score(datum).astype(np.float32) for datum in data]
        finally:
            self.weights_version = version


def test_it_is_made_once_and_found_again(make_context: Contexts, pairs: list[Pair], tmp_path: Path) -> None:
    context = make_context(pairs, batch_size=4, epochs=1)
    engine = Drifting(context.tokenizer)
    first = losses(context, engine, "precomputed")
    assert engine.calls.count("logprobs reference") == 1
    assert first[0] == pytest.approx(np.log(2), rel=1e-6)  # the policy is the reference
    assert abs(first[1] - np.log(2)) > 1e-4
    again = Drifting(context.tokenizer)
    assert losses(context, again, "precomputed") == first
    assert "logprobs reference" not in again.calls
    assert [note for note in context.notes if "were read from the cache" in note]
    (file,) = (context.cache / "reference-logprobs").iterdir()
    file.write_bytes(b"torn")
    third = Drifting(context.tokenizer)
    assert losses(context, third, "precomputed") == first
    assert "logprobs reference" in third.calls


def test_other_data_or_another_model_are_not_found(make_context: Contexts, pairs: list[Pair]) -> None:
    from dataclasses import replace

    context = make_context(pairs, batch_size=4, epochs=1)
    losses(context, Drifting(context.tokenizer), "precomputed")
    for change in ("data", "weights", "bits", "tokens"):
        same_size = [replace(pairs[0], chosen=(replace(pairs[0].chosen[0], content="It is 7."),)), *pairs[1:]]
        other = make_context(same_size if change == "data" else pairs, batch_size=4, epochs=1)
        if change == "weights":
            other.model = replace(other.model, contents={"model.bin": "1" * 64})
        if change == "bits":
            other.plan = SimpleNamespace(picks={"quantizer": "acme:int4"}, options={"quantizer": {}}, notes=())
        if change == "tokens":
            other.facts = replace(other.facts, vocab_size=other.facts.vocab_size + 1, new_tokens=(9,))
        engine = Drifting(other.tokenizer)
        losses(other, engine, "precomputed")
        assert "logprobs reference" in engine.calls, change


def test_a_policy_that_has_moved_on_is_no_reference(make_context: Contexts, pairs: list[Pair]) -> None:
    class Whole(Drifting):
        capabilities = frozenset({"zero_grad"})  # type: ignore[assignment]

    context = make_context(pairs, batch_size=4, epochs=1)
    with pytest.raises(EngineError, match="the policy has changed since"):
        losses(context, Whole(context.tokenizer, weights_version=3), "precomputed")
    engine = Whole(context.tokenizer)
    losses(context, engine, "precomputed")
    assert "logprobs policy" in engine.calls
