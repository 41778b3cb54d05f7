"""Sampling with graphs: the step of a token, from the last tokens to the chosen ones, as one launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import numpy as np
import torch
from finetooth_hooks import Sampling
from finetooth_kernels.memory import placed
from torch import Tensor

from finetooth_torch.compute import Compute
from finetooth_torch.device.graphs import Graphs
from finetooth_torch.generation.cached_step import Decoding
from finetooth_torch.generation.sampling import Chosen, choose, choose_in_place, read_choice, uniform_numbers
from finetooth_torch.planning.graphs import LOGIT_BYTES, MOST_BYTES


class Drawing(Protocol):
    """A row in progress: its tokens, and where its uniform numbers come from."""

    tokens: list[int]
    stream: np.random.Generator


class ReplayedSteps:
    """Steps of a batch. The first one with other rows, a larger cache or other settings warms up, the next one is
    captured, and those after it replay the capture.

    Args:
        logits: from (R, D) states before the next token to (R, V) logits.
    """

    def __init__(
        self, graphs: Graphs, decoding: Decoding, logits: Callable[[Tensor], Tensor], compute: Compute,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._graphs, self._decoding, self._logits, self._compute = graphs, decoding, logits, compute
        self._device = device
        self._key: Hashable = None
        self._fits = False
        self._given: Tensor | None = None
        self._captured: tuple[tuple[Tensor, Tensor], Callable[[], None]] | None = None

    def __call__(self, rows: Sequence[Drawing], sampling: Sampling, settings: Hashable) -> Chosen | None:
        """The next token of each row; the host waits once. None, without a change, if the batch has no such steps.

        Args:
            sampling: of all rows.
            settings: what of it decides how a token is chosen.
        """
        layout = self._decoding.begin_column()
        if layout is None:
            return None
        numbers = uniform_numbers(sampling, [row.stream for row in rows])
        last = [row.tokens[-1] for row in rows]
        given = torch.tensor([last, numbers or [0.0] * len(rows)], dtype=torch.float64)
        choice, logits = self._computed((layout, settings), given, sampling)
        chosen = read_choice(choice.cpu(), sampling)
        if chosen is None:
            return choose(logits, sampling, (), self._compute, numbers=numbers)
        return chosen

    def _computed(self, key: Hashable, given: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """What `_step` makes of (2, R) float64, tokens and numbers, on the host."""
        placed_there = placed(given, self._device)
        if key != self._key or self._given is None:
            self._key, self._captured, self._given = key, None, placed_there
            result = self._graphs.warm(lambda: self._step(sampling))
            self._fits = result[1].numel() * LOGIT_BYTES <= MOST_BYTES
            return result
        self._given.copy_(placed_there)
        if not self._fits:
            return self._graphs.warm(lambda: self._step(sampling))
        if self._captured is None:
            self._captured = self._graphs.capture(lambda: self._step(sampling))
        result, replay = self._captured
        replay()
        return result

    def _step(self, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """The choice, as `read_choice` reads it, and the logits (R, V)."""
        assert self._given is not None
        tokens, draws = self._given.unbind()
        logits = self._logits(self._decoding.advance_on_device(tokens.long()))
        return choose_in_place(logits, sampling, draws, self._compute), logits
