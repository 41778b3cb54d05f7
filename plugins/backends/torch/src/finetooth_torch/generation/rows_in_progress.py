"""Completions in progress: each row's settings and end, and the step that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.protocols import Tokenizer
from finetooth_kernels.memory import placed
from finetooth_modelfiles.schemas import SchemaState
from torch import Tensor

from finetooth_torch.compute import TORCH, Compute
from finetooth_torch.device import graphs
from finetooth_torch.generation.cached_step import Decoding
from finetooth_torch.generation.replayed_steps import ReplayedSteps
from finetooth_torch.generation.sampling import Asked, Chosen, choose_together
from finetooth_torch.heads.repetition import Additions, SeenIds, penalised, with_additions
from finetooth_torch.planning.flops import Computed

BYTES_OF_LETTER = 4
"""Most tokens per character of a stop string: UTF-8's bytes, a token each."""

TOKENS_BEFORE = 8
"""Tokens decoded before those of a stop string, since the first characters of a text may depend on where decoding
begins."""


LEAVE_TOGETHER = 4
"""On a device that has graphs, finished rows leave when one in so many has finished: then another graph is made."""


@dataclass
class Row:
    """A completion in progress.

    Attributes:
        prompt, sample: its place in the result.
        room: tokens that it may still get.
        stop_ids: end it.
        schema: allows the next tokens; None: any.
        seen: tokens of prompt and completion; None without a penalty.
        additions: to its logits; None: none.
        trailing: 1 after a stop token, which the text leaves out.
    """

    prompt: int
    sample: int
    sampling: Sampling
    stop_ids: frozenset[int]
    stream: np.random.Generator
    room: int
    schema: SchemaState | None = None
    seen: SeenIds | None = None
    additions: Additions | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)
    kept: list[tuple[int, ...]] = field(default_factory=list)
    text: str | None = None
    trailing: int = 0
    stopped: bool = False

    @property
    def finished(self) -> bool:
        return self.stopped or self.room == 0

    def take(self, token: int, logprob: float, tokenizer: Tokenizer) -> None:
        """The next token, and whether it is the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.room -= 1
        if self.seen is not None:
            self.seen.add(token)
        if self.additions is not None:
            self.additions.add(token)
        if token in self.stop_ids:
            self.stopped, self.trailing = True, 1
        elif self.sampling.stop:
            self._look_for_stop(tokenizer)
        if self.schema is not None and not self.stopped:
            self.stopped = self.schema.take(token)

    def _look_for_stop(self, tokenizer: Tokenizer) -> None:
        """End the row if its newest token completed a stop string: first among the last tokens, then in the text."""
        stops = self.sampling.stop
        reach = BYTES_OF_LETTER * max(len(stop) for stop in stops) + TOKENS_BEFORE
        if len(self.tokens) > reach:
            tail = tokenizer.decode(self.tokens[-reach:])
            if not any(stop in tail for stop in stops):
                return
        text = tokenizer.decode(self.tokens)
        ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        if ends:
            self.stopped, self.text = True, text[: min(ends)]

    def completion(self, tokenizer: Tokenizer, weights_version: int) -> Completion:
        """What was written."""
        text = self.text
        if text is None:
            text = tokenizer.decode(self.tokens[: len(self.tokens) - self.trailing])
        return Completion(
            tokens=tuple(self.tokens),
            logprobs=tuple(self.logprobs),
            text=text,
            stop="stop" if self.stopped else "length",
            weights_version=weights_version,
            drawn_logprobs=tuple(self.drawn),
            kept=tuple(self.kept),
        )


class Writing:
    """A batch of rows in progress.

    Args:
        decoding: reads their prompts and runs them through the layers.
        rows: in the decoding's order.
        logits: from (R, D) states before the next token to (R, V) logits.
        compute: the operations.
    """

    def __init__(
        self, decoding: Decoding, rows: Sequence[Row], logits: Callable[[Tensor], Tensor], tokenizer: Tokenizer, *,
        device: torch.device, compute: Compute = TORCH,
    ) -> None:  # fmt: skip
        self._compute = compute
        self._decoding, self._logits, self._tokenizer, self._device = decoding, logits, tokenizer, device
        self._held = list(rows)  # by row of the decoding; a finished one may stay for a while
        self._together, self._joined = graphs.replays(device), False
        self._replayed: ReplayedSteps | None = None
        if compute.graphs is not None:
            self._replayed = ReplayedSteps(compute.graphs(device), decoding, logits, compute, device)

    @property
    def rows(self) -> list[Row]:
        """The unfinished rows."""
        return [row for row in self._held if not row.finished]

    def begin(self) -> list[Row]:
        """Read the prompts and sample the first token of each row; return the rows that got one."""
        return self._write(self._decoding.read())

    def step(self) -> list[Row]:
        """Sample the next token; return the rows that got one."""
        if self._replayed is not None and _alike(self._held):
            first = self._held[0]
            chosen = self._replayed(self._held, first.sampling, _settings(first))
            if chosen is not None:
                return self._take(self._held, [(range(len(self._held)), chosen)])
        last = placed(torch.tensor([row.tokens[-1] for row in self._held]), self._device)
        return self._write(self._decoding.advance(last))

    def computed(self, rows: Sequence[Row]) -> tuple[Computed, Computed]:
        """The cost of reading the prompts and sampling `rows`: all rows of the batch, once finished."""
        contexts, samples = self._decoding.contexts, len(rows) // len(self._decoding.contexts)
        fed = [len(row.tokens) - 1 for row in rows]  # the last token is not read again
        pairs = sum(n * contexts[i // samples] + n * (n - 1) / 2 for i, n in enumerate(fed))
        written = Computed((1,) * sum(fed), sum(len(row.tokens) for row in rows), pairs)
        return self._decoding.computed, written

    def join(self, other: Writing) -> bool:
        """Join the rows of another; both have begun. False if they cannot be joined."""
        if not self._decoding.join(other._decoding):
            return False
        self._joined = True
        self._held += other._held
        return True

    def retire(self) -> None:
        """Drop finished rows."""
        done = sum(row.finished for row in self._held)
        wait = self._together and not self._joined  # a cache of its own may have no room for more
        if done and not (wait and done * LEAVE_TOGETHER < len(self._held)):
            self._held = [self._held[i] for i in self._decoding.retire([row.finished for row in self._held])]

    def _write(self, hidden: Tensor) -> list[Row]:
        going = [i for i, row in enumerate(self._held) if not row.finished]
        if len(going) < len(self._held) and not (self._together and _alike(self._held)):
            writing = [self._held[i] for i in going]
            hidden = hidden[placed(torch.tensor(going), self._device)]
        else:
            writing = self._held
        return self._take(writing, _chosen(self._logits(hidden), writing, self._compute))

    def _take(self, writing: Sequence[Row], choices: Sequence[tuple[Sequence[int], Chosen]]) -> list[Row]:
        """Append the chosen tokens to unfinished rows; return these."""
        going = [row for row in writing if not row.finished]
        for places, chosen in choices:
            columns = [chosen.tokens, chosen.logprobs, *([] if chosen.drawn is None else [chosen.drawn])]
            # one copy from the device: float64 holds a token id exactly
            values = torch.stack([of.double() for of in columns], -1).cpu().tolist()
            kept: Sequence[tuple[int, ...] | None] = chosen.kept or [None] * len(values)  # empty: no token was left out
            for place, (token, logprob, *drawn), ids in zip(places, values, kept, strict=True):
                row = writing[place]
                if row.finished:
                    continue
                if logprob != logprob:  # NaN
                    raise EngineError(
                        f"prompt {row.prompt}: the model's numbers for token {len(row.tokens)} are not finite",
                        action="set train.precision to bf16 or fp32, or look for NaN in the weights",
                    )
                row.take(int(token), logprob, self._tokenizer)
                row.drawn += drawn
                if ids is not None:
                    row.kept.append(ids)
        self.retire()
        return going


def _chosen(logits: Tensor, rows: Sequence[Row], compute: Compute) -> list[tuple[Sequence[int], Chosen]]:
    """The next token of each row, computed together for rows with the same settings. Returns the rows and their
    tokens."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault((*_settings(row), row.schema is not None), []).append(i)
    asked: list[Asked] = []
    for places in alike.values():
        mine = logits if len(alike) == 1 else logits[placed(torch.tensor(places), logits.device)]
        source = _source(mine, [rows[i] for i in places])
        open_ = mine if source is None else source
        schemas = [schema for i in places if (schema := rows[i].schema) is not None]  # of all, or of none
        among = masked(open_, schemas) if schemas else None
        asked.append(Asked(mine, rows[places[0]].sampling, [rows[i].stream for i in places], source, among))
    return list(zip(alike.values(), choose_together(asked, compute), strict=True))


def _settings(row: Row) -> tuple[Any, ...]:
    """What decides how its token is chosen, but for what its own tokens change."""
    of = row.sampling
    return of.temperature, of.top_k, of.top_p, of.min_p, of.repetition_penalty, of.drawn


def _alike(rows: Sequence[Row]) -> bool:
    """Whether all have the same settings, and logits without changes."""
    plain = all(row.schema is None and row.seen is None and row.additions is None for row in rows)
    return plain and len({_settings(row) for row in rows}) == 1


def masked(logits: Tensor, states: Sequence[SchemaState]) -> Tensor:
    """A copy of the logits (R, V) with -inf for tokens that a row's schema does not allow."""
    allowed = np.stack([state.allowed(logits.shape[-1]) for state in states])
    return logits.masked_fill(placed(torch.from_numpy(~allowed), logits.device), -torch.inf)


def _source(logits: Tensor, rows: Sequence[Row]) -> Tensor | None:
    """The logits that rows with the same settings sample from; None for the unchanged logits."""
    seen = [row.seen for row in rows if row.seen is not None]
    source = penalised(logits, seen, rows[0].sampling.repetition_penalty) if seen else None
    if all(row.additions is None for row in rows):
        return source
    return with_additions(logits if source is None else source, [row.additions for row in rows])
