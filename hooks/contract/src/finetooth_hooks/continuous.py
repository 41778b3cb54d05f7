"""Sampling without an end: requests join a batch that is being written, and leave it as they finish."""

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
        request: number that `RunningBatch.add` gave.
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
    """Completions that are being written together, each with settings and a random stream of its own: what a request
    gets depends on its prompt, its sampling and the weights, never on who else is in the batch.

    It samples the weights as they were when it was made: after `step`, `load`, `restore` or `rollback` of the engine it
    is refused. What it holds of its own (caches, packed weights) is freed with the object.
    """

    def add(
        self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: HeldAdapter | None = None
    ) -> int:
        """Take a request; its rows begin with the next step that has room for them, in the order of their coming.

        Args:
            prompt: token ids.
            first: number of its first sample. Sample k of `Engine.generate` is number k; where a prompt comes twice
                there, the second one's samples are counted on.
            adapter: what the engine holds, to be sampled instead of its own weights. Which adapters others in the batch
                have does not matter either. Capability `adapters`.

        Returns:
            the request's number in this batch.

        Raises:
            EngineError: as `Engine.generate` would; or the engine does not hold the adapter.
        """
        ...

    def cancel(self, request: int) -> None:
        """Drop a request, whether it waits or is being written; a finished or unknown one raises nothing."""
        ...

    def step(self) -> list[Written]:
        """Write one token to every row. Rows that begin read their prompts first and get their first token too.

        Returns:
            what was added; empty if there is nothing to write.

        Raises:
            EngineError: the engine's weights changed since the batch was made, or memory ran out. The requests that
                were in it are lost.
        """
        ...

    def __len__(self) -> int:
        """Requests that are not finished."""
        ...

    @property
    def waiting(self) -> int:
        """Requests among them with rows for which there was no room yet."""
        ...
