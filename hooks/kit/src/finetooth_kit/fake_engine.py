"""An engine that learns nothing: a fixed bigram model in NumPy, for trying what drives or measures an engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Counts, EngineInfo, Forward, Stepped, StepSettings, Usage
from finetooth_hooks.errors import EngineError
from finetooth_hooks.protocols import Tokenizer
from finetooth_hooks.sampling import Completion, Generated, Sampling
from finetooth_steps.data_checks import check_fields
from finetooth_steps.loss_state import checked_state
from finetooth_steps.micro_batches import one_batch
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.outputs import is_whole, side_by_side
from finetooth_steps.rectangles import loss_data
from finetooth_steps.totals import Totals
from numpy.typing import NDArray


@dataclass
class FakeEngine(EngineBase):
    """Implements the engine's protocol over a random table of next-token log-probabilities, with a scalar head.

    Attributes:
        calls: name of each primitive that was called, in order.
        seen: input tokens of the data given to `forward_backward`, call by call.
        losses: loss of each `forward_backward`.
        refuse: what `forward_backward` raises from now on, once it has noted the data.
    """

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...] = ()
    calls: list[str] = field(default_factory=list)
    seen: list[list[tuple[int, ...]]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    refuse: Exception | None = None
    weights_version: int = 0
    states: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.tokenizer.vocab_size
        logits = np.random.default_rng(0).normal(size=(size, size))
        self.table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("numpy", "cpu", "fp64", self.table.size, self.table.size)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"zero_grad", "generate", "reference", "head", "usage", "roles", "depths"})

    def _score(self, datum: Datum) -> NDArray[np.float64]:
        rows = self.table[datum.tokens]
        targets = datum.targets if datum.targets.ndim == 2 else datum.targets[:, None]
        scores = np.where(datum.mask[:, None], np.take_along_axis(rows, targets, axis=1), 0.0)
        return scores if datum.targets.ndim == 2 else scores[:, 0]

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        self.calls.append("logprobs")
        return [self._score(datum).astype(np.float32) for datum in data]

    def forward(
        self,
        data: Sequence[Datum],
        loss: LossSpec | None = None,
        *,
        role: str = "policy",
        returns: Collection[str] = ("logprobs",),
        normalizer: Counts | None = None,
        train: bool = True,
    ) -> Forward:
        self.calls.append("forward")
        result = self._evaluate(data, loss, normalizer)
        rowwise = [name for name in returns if is_whole(name)]  # a row of the table is a state, at every depth
        both = zip(result.outputs, data, strict=True)
        outputs = tuple({**of, **dict.fromkeys(rowwise, self.table[datum.tokens])} for of, datum in both)
        return replace(result, outputs=outputs)

    def _evaluate(self, data: Sequence[Datum], loss: LossSpec | None, normalizer: Counts | None) -> Forward:
        outputs = tuple(
            {
                "logprobs": self._score(datum).astype(np.float32),
                "values": _values(datum).astype(np.float32),
                "scores": np.asarray(_score_of(datum), dtype=np.float32),
            }
            for datum in data
        )
        tokens, targets = sum(len(datum) for datum in data), sum(int(datum.mask.sum()) for datum in data)
        if loss is None:
            return Forward(outputs, tokens=tokens, padded=tokens, targets=targets)
        check_fields(data)
        batch = one_batch(data, whole=True)
        scores = side_by_side(batch, [self._score(datum) for datum in data])
        head = {
            "values": side_by_side(batch, [_values(datum) for datum in data]),
            "scores": np.array([_score_of(datum) for datum in data]),
        }
        rows = [self.table[datum.tokens] for datum in data if any(need.startswith("logits") for need in loss.needs)]
        head |= {need: side_by_side(batch, rows) for need in loss.needs if need.startswith("logits")}
        wanted = {
            need: scores if need.startswith("logprobs") else head.get(need, np.zeros_like(scores))
            for need in loss.needs
        }
        before = self.states.get(loss.name, {})
        result = loss.fn(wanted, loss_data(data, batch, np.asarray), before)
        added = Totals(loss, count_normalizers(data) if normalizer is None else normalizer)
        added.add(result, np.zeros(()))
        if after := checked_state(loss, before, result.state):
            self.states[loss.name] = after
        components, metrics, totals = added.components, added.metrics, added.plain
        return Forward(outputs, added.loss, components, metrics, tokens, tokens, targets, totals=totals)

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        self.calls.append("forward_backward")
        self.seen.append([tuple(int(i) for i in datum.tokens) for datum in data])
        if self.refuse is not None:
            raise self.refuse
        result = self._evaluate(data, loss, normalizer)
        self.losses.append(result.loss or 0.0)
        return result

    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        if settings is not None:
            raise EngineError("the fake engine takes no step settings")
        self.calls.append("step")
        self.weights_version += 1
        return Stepped(self.weights_version, 1e-3, 1.0)

    def zero_grad(self) -> None:
        self.calls.append("zero_grad")

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        self.calls.append("generate")
        stops = self.stop_ids if sampling.stop_ids is None else sampling.stop_ids
        completions = [[self._complete(prompt, sampling, stops, n) for n in range(sampling.n)] for prompt in prompts]
        return Generated(completions)

    def _complete(self, prompt: Sequence[int], sampling: Sampling, stops: tuple[int, ...], n: int) -> Completion:
        random = np.random.default_rng([sampling.seed, n, *prompt])
        tokens: list[int] = []
        scores: list[float] = []
        while len(tokens) < sampling.max_tokens and not (tokens and tokens[-1] in stops):
            row = self.table[tokens[-1] if tokens else prompt[-1]]
            noise = sampling.temperature * random.gumbel(size=row.shape) if sampling.temperature else 0.0
            tokens.append(int(np.argmax(row + noise)))
            scores.append(float(row[tokens[-1]]))
        ended = bool(tokens) and tokens[-1] in stops
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special=True)
        return Completion(tuple(tokens), tuple(scores), text, "stop" if ended else "length", self.weights_version)

    def save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "fake.txt").write_text(str(self.weights_version), encoding="utf-8")

    def load(self, path: Path) -> None:
        self.weights_version = int((path / "fake.txt").read_text(encoding="utf-8"))

    def export(self, path: Path) -> None:
        self.save(path)

    def restore(self, path: Path) -> None:
        self.load(path)

    def set_total_steps(self, total: int | None) -> None:
        self.calls.append("set_total_steps")

    def move_role(self, role: str, mix: float) -> None:
        self.calls.append("move_role")

    def usage(self) -> Usage:
        return Usage(self.table.nbytes, self.table.nbytes)

    def peak_flops(self) -> float:
        return 0.0


def _values(datum: Datum) -> NDArray[np.float64]:
    """(N,) what the engine's head says: the share of a position's token in the ids so far."""
    values = datum.tokens / (1.0 + np.cumsum(datum.tokens))
    return np.where(datum.mask, values, 0.0)


def _score_of(datum: Datum) -> float:
    """The value at the last position that counts."""
    return float(_values(datum)[datum.mask][-1]) if datum.mask.any() else 0.0
