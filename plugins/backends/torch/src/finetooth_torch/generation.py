"""Sampling, batched: prompts of similar length together, rows leaving as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.protocols import Tokenizer
from torch import Tensor

from finetooth_torch.bodies import StreamBody
from finetooth_torch.decode import Decoding, PackedLayers, StreamDecoding, TransformersDecoding
from finetooth_torch.network import Network
from finetooth_torch.packed import PackedLinear, can_pack
from finetooth_torch.sampling import choose, row_streams, score

WORTH_PACKING = 8
"""Tokens a row may get from which packing the weights costs less than it saves."""

BYTES_OF_LETTER = 4
"""Most tokens that one letter of a stop string can take: UTF-8's bytes, a token each."""

TOKENS_BEFORE = 8
"""Tokens decoded before those that a stop string can take, since a text's first letters may depend on where it
begins."""


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

    @property
    def finished(self) -> bool:
        return self.stopped or self.room == 0


@dataclass(frozen=True)
class _Weights:
    """The network as it is while one call samples.

    Attributes:
        layers: of the stream decoder; None without one.
        head: what to call for the head's module; None for the module itself.
    """

    layers: PackedLayers | None
    head: Callable[[Tensor], Tensor] | None


class Generator:
    """Samples from a network.

    Args:
        stop_ids: end a completion when the sampling does not say otherwise.
        tokens: most positions of one batch: prompts, read once whatever the number of their samples, and the rows'
            completions. One row alone may take more.
    """

    def __init__(
        self, network: Network, tokenizer: Tokenizer, stop_ids: Sequence[int], *, device: torch.device, tokens: int
    ) -> None:
        self._network, self._tokenizer = network, tokenizer
        self._stop_ids, self._device, self._tokens = frozenset(stop_ids), device, tokens
        self.check_asked: Callable[[], None] = lambda: None  # raises if whoever drives the engine wants it to stop

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
            weights = self._weights(sampling)
            for batch, samples in self._waves(prompts, sampling):
                rows = [
                    _Row(index, sample, streams[index][sample], self._room(prompts[index], sampling))
                    for index in batch
                    for sample in samples
                ]
                decoding = self._decoding([prompts[index] for index in batch], len(samples), sampling, weights)
                self._write(decoding, rows, sampling, weights)
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

    def _waves(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[tuple[list[int], range]]:
        """Prompts that are written together, and which of their samples: all of them, but for a prompt whose samples do
        not fit into a batch of its own, which is read anew for each wave of them."""
        for batch in self._batches(prompts, sampling):
            first = prompts[batch[0]]
            if len(batch) > 1 or self._cells(first, sampling) <= self._tokens:
                yield batch, range(sampling.n)
                continue
            fit = max(1, (self._tokens - len(first)) // self._room(first, sampling))
            waves = -(-sampling.n // fit)
            for wave in range(waves):
                yield batch, range(wave * sampling.n // waves, (wave + 1) * sampling.n // waves)

    def _batches(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Prompts of similar length together, longest first; as few batches as fit, of nearly equal size. A prompt that
        does not fit with all its samples stands alone."""
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        cells = [self._cells(prompts[i], sampling) for i in order]
        if not order:
            return []
        count = -(-sum(cells) // self._tokens)
        while True:
            share = sum(cells) / count
            batches: list[list[int]] = [[]]
            filled = done = 0.0
            fits = True
            for index, size in zip(order, cells, strict=True):
                if batches[-1] and done + size / 2 > share * len(batches):
                    batches.append([])
                    filled = 0
                batches[-1].append(index)
                filled, done = filled + size, done + size
                fits = fits and (filled <= self._tokens or len(batches[-1]) == 1)
            if fits:
                return batches
            count += 1

    def _cells(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Positions that the prompt and its completions may take."""
        return len(prompt) + sampling.n * self._room(prompt, sampling)

    # --- one call -----------------------------------------------------------------------------------------------------

    def _weights(self, sampling: Sampling) -> _Weights:
        body, head = self._network.body, self._network.head.plain()
        pack = sampling.max_tokens >= WORTH_PACKING
        packable = pack and head is not None and can_pack(head.weight.dtype, self._device.type)
        return _Weights(
            layers=PackedLayers(body.decoder, pack=pack) if isinstance(body, StreamBody) else None,
            head=PackedLinear(head.weight, head.bias) if packable and head is not None else None,
        )

    def _decoding(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling, weights: _Weights
    ) -> Decoding:
        network, device = self._network, self._device
        if weights.layers is None:
            return TransformersDecoding(network.transformers, network.config, prompts, samples, device=device)
        room = max(self._room(prompt, sampling) for prompt in prompts)
        return StreamDecoding(weights.layers, network.facts, prompts, samples, room, device=device)

    # --- one batch ----------------------------------------------------------------------------------------------------

    def _write(self, decoding: Decoding, rows: Sequence[_Row], sampling: Sampling, weights: _Weights) -> None:
        stop_ids = self._stop_ids if sampling.stop_ids is None else frozenset(sampling.stop_ids)
        self.check_asked()
        hidden = decoding.read()
        held = list(rows)  # by row of the decoding; one that finished may stay for a while
        going = list(range(len(held)))
        while True:
            writing = [held[i] for i in going]
            if len(going) < len(held):
                hidden = hidden[torch.tensor(going, device=self._device)]
            logits = self._network.head.logits(hidden, weights.head)
            tokens = choose(logits, sampling, [row.stream for row in writing])
            logprobs = score(logits, tokens)
            for row, token, logprob in zip(writing, tokens.tolist(), logprobs.tolist(), strict=True):
                self._take(row, token, logprob, stop_ids, sampling)
            if any(row.finished for row in writing):
                held = [held[i] for i in decoding.retire([row.finished for row in held])]
                going = [i for i, row in enumerate(held) if not row.finished]
                if not going:
                    return
            self.check_asked()
            hidden = decoding.advance(torch.tensor([row.tokens[-1] for row in held], device=self._device))

    def _take(self, row: _Row, token: int, logprob: float, stop_ids: frozenset[int], sampling: Sampling) -> None:
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.room -= 1
        if token in stop_ids:
            row.stopped, row.trailing = True, 1
        elif sampling.stop:
            self._look_for_stop(row, sampling.stop)

    def _look_for_stop(self, row: _Row, stops: Sequence[str]) -> None:
        """End the row if its newest token completed a stop string: first among the last tokens, then in the text."""
        reach = BYTES_OF_LETTER * max(len(stop) for stop in stops) + TOKENS_BEFORE
        if len(row.tokens) > reach:
            tail = self._tokenizer.decode(row.tokens[-reach:])
            if not any(stop in tail for stop in stops):
                return
        text = self._tokenizer.decode(row.tokens)
        ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
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
