"""Continuous batching: requests join and leave a running sampling batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.sampling import Completion, Sampling


@dataclass(frozen=True)
class Written:
    """A token that a step added to one completion.

    Attributes:
        request: number from `RunningBatch.add`.
        sample: which completion of the request, from 0.
        token: its id.
        logprob: under the unscaled model (temperature 1).
        completion: the whole completion, with its last token; None before that.
    """

    request: int
    sample: int
    token: int
    logprob: float
    completion: Completion | None = None


class RunningBatch(Protocol):
    """A running batch of completions, each with its own settings and random stream: a request's tokens depend on its
    prompt, its sampling and the weights, never on other requests.

    It samples the weights at its creation: after `step`, `load`, `restore` or `rollback` of the engine it raises an
    error. Its own memory (caches, packed weights) is freed with the object.

    Attributes:
        owner: of the requests that are added next. Where an engine need not read a prompt again that begins like an
            earlier one, both have the same owner: nobody learns from the time of a call what others asked.
    """

    owner: str = ""

    def add(
        self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: HeldAdapter | None = None
    ) -> int:
        """Add a request; its rows begin with the next step that has room for them, in order of arrival.

        Args:
            prompt: token ids.
            first: number of its first sample. Sample k of `Engine.generate` is number k; if a prompt occurs twice
                there, the second one's samples continue the count.
            adapter: held by the engine, to sample from instead of its own weights. Others in the batch may have other
                adapters. Capability `adapters`.

        Returns:
            the request's number in this batch.

        Raises:
            EngineError: as `Engine.generate` would; or the engine does not hold the adapter.
        """
        ...

    def cancel(self, request: int) -> None:
        """Drop a waiting or running request; a finished or unknown one raises nothing."""
        ...

    def step(self) -> list[Written]:
        """Sample one token for every row. New rows read their prompts first and get their first token too.

        Returns:
            the new tokens; empty without rows.

        Raises:
            EngineError: the engine's weights changed since the batch was made, or memory ran out. The requests that
                were in it are lost.
        """
        ...

    def __len__(self) -> int:
        """Number of unfinished requests."""
        ...

    @property
    def waiting(self) -> int:
        """Number of requests with rows that wait for room."""
        ...
