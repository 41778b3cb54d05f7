"""Sampling with a KV cache, batched: prompts of similar length together, padded on the left, rows leaving as they
finish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.protocols import Tokenizer
from torch import Tensor
from transformers import DynamicCache

from finetooth_torch.network import Network
from finetooth_torch.sampling import choose, row_streams


@dataclass
class _Row:
    """A completion that is being written.

    Attributes:
        prompt, sample: where it belongs in the result.
        room: tokens it may still get.
        trailing: 1 once a stop token ended it, which its text leaves out.
    """

    prompt: int
    sample: int
    stream: np.random.Generator
    room: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str | None = None
    trailing: int = 0
    stopped: bool = False


class Generator:
    """Samples from a network.

    Args:
        stop_ids: end a completion when the sampling does not say otherwise.
        tokens: most positions (prompt and completion, all rows) of one batch.
    """

    def __init__(
        self, network: Network, tokenizer: Tokenizer, stop_ids: Sequence[int], *, device: torch.device, tokens: int
    ) -> None:
        self._network, self._tokenizer = network, tokenizer
        self._stop_ids, self._device, self._tokens = frozenset(stop_ids), device, tokens

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, weights_version: int
    ) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in their order.

        Raises:
            EngineError: an empty prompt, one longer than the model was made for, an id outside the vocabulary, or
                sampling settings that mean nothing.
        """
        self._check(prompts, sampling)
        streams = row_streams(prompts, sampling)
        results: list[list[Completion | None]] = [[None] * sampling.n for _ in prompts]
        self._network.train(False)
        with torch.no_grad():
            for batch in self._batches(prompts, sampling):
                rows = [
                    _Row(index, sample, streams[index][sample], self._room(prompts[index], sampling))
                    for index in batch
                    for sample in range(sampling.n)
                ]
                self._write([prompts[index] for index in batch], rows, sampling)
                for row in rows:
                    results[row.prompt][row.sample] = self._completion(row, weights_version)
        return [[one for one in of_prompt if one is not None] for of_prompt in results]

    def _check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        if sampling.max_tokens < 1 or sampling.n < 1 or sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
            raise EngineError(
                f"sampling: {sampling} makes no sense", action="max_tokens, n >= 1; top_k >= 0; 0 < top_p <= 1"
            )
        if not 0 <= sampling.temperature < float("inf"):
            raise EngineError(f"sampling.temperature is {sampling.temperature}", action="give a finite number >= 0")
        longest, vocabulary = self._network.facts.max_positions, self._network.facts.vocab_size
        for index, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise EngineError(f"prompt {index} is empty", action="begin it with at least one token")
            if longest and len(prompt) >= longest:
                raise EngineError(
                    f"prompt {index} has {len(prompt)} tokens, and the model was made for {longest}: no room to answer",
                    action="shorten it",
                )
            if min(prompt) < 0 or max(prompt) >= vocabulary:
                raise EngineError(
                    f"prompt {index} holds an id outside the vocabulary of {vocabulary}",
                    action="use the tokenizer that belongs to the model",
                )

    def _room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        longest = self._network.facts.max_positions
        return min(sampling.max_tokens, longest - len(prompt)) if longest else sampling.max_tokens

    def _batches(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        batches: list[list[int]] = []
        width = 0
        for index in order:
            if not batches or (len(batches[-1]) + 1) * sampling.n * (width + sampling.max_tokens) > self._tokens:
                batches.append([])
                width = len(prompts[index])
            batches[-1].append(index)
        return batches

    # --- one batch ----------------------------------------------------------------------------------------------------

    def _write(self, prompts: Sequence[Sequence[int]], rows: list[_Row], sampling: Sampling) -> None:
        cache, mask, logits = self._read(prompts)
        if sampling.n > 1:  # a prompt is read once, whatever the number of its samples
            cache.batch_repeat_interleave(sampling.n)
            mask, logits = mask.repeat_interleave(sampling.n, 0), logits.repeat_interleave(sampling.n, 0)
        padded = not bool(mask.all())
        stop_ids = self._stop_ids if sampling.stop_ids is None else frozenset(sampling.stop_ids)
        alive = rows
        while True:
            tokens = choose(logits, sampling, [row.stream for row in alive])
            logprobs = torch.log_softmax(logits, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            for row, token, logprob in zip(alive, tokens.tolist(), logprobs.tolist(), strict=True):
                self._take(row, token, logprob, stop_ids, sampling)
            going = [i for i, row in enumerate(alive) if not row.stopped and row.room > 0]
            if not going:
                return
            if len(going) < len(alive):
                index = torch.tensor(going, device=self._device)
                cache.batch_select_indices(index)
                alive, tokens, mask = [alive[i] for i in going], tokens[index], mask[index]
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], 1)
            hidden = self._network.hidden(
                tokens.unsqueeze(1),
                positions=mask.sum(1, keepdim=True) - 1,
                attention_mask=mask if padded else None,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = self._network.head.logits(hidden[:, -1])

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Tensor, Tensor]:
        """Read the prompts: the cache, the mask (B, L) of real positions and the logits (B, V) after each."""
        width = max(len(prompt) for prompt in prompts)
        tokens = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros((len(prompts), width), dtype=np.int64)
        for i, prompt in enumerate(prompts):
            tokens[i, width - len(prompt) :] = prompt
            mask[i, width - len(prompt) :] = 1
        real = torch.from_numpy(mask).to(self._device)
        cache = DynamicCache(config=self._network.config)
        out = self._network.hidden(
            torch.from_numpy(tokens).to(self._device),
            positions=(real.cumsum(1) - 1).clamp_min(0),
            attention_mask=real if not bool(real.all()) else None,
            past_key_values=cache,
            use_cache=True,
        )
        return cache, real, self._network.head.logits(out.last_hidden_state[:, -1])

    def _take(self, row: _Row, token: int, logprob: float, stop_ids: frozenset[int], sampling: Sampling) -> None:
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.room -= 1
        if token in stop_ids:
            row.stopped, row.trailing = True, 1
        elif sampling.stop:
            text = self._tokenizer.decode(row.tokens)
            ends = [at for at in (text.find(stop) for stop in sampling.stop) if at >= 0]
            if ends:
                row.stopped, row.text = True, text[: min(ends)]

    def _completion(self, row: _Row, weights_version: int) -> Completion:
        text = row.text
        if text is None:
            text = self._tokenizer.decode(row.tokens[: len(row.tokens) - row.trailing])
        return Completion(
            tokens=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            text=text,
            stop="stop" if row.stopped else "length",
            weights_version=weights_version,
        )
