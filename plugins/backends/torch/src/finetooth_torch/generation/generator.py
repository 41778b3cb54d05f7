"""Batched sampling: prompts of similar length form a batch, and finished rows leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.compute.held import HeldAdapter, Stack
from finetooth_hooks.data.examples import CALLED
from finetooth_hooks.protocols import LowRank, Tokenizer
from finetooth_hooks.sampling import ShownPrompt
from finetooth_kernels.memory import BLOCKS, Arena, Blocks, lasting
from finetooth_modelfiles.schemas import Schemas
from finetooth_steps.data_checks import check_prompts
from finetooth_steps.kept_prompts import Keeping, KeptPrompts
from finetooth_steps.sampling import check_sampling, row_streams
from torch import Tensor, nn

from finetooth_torch.decoder.bodies import StreamBody, TransformersBody
from finetooth_torch.generation.cached_step import (
    Decoding,
    PackedLayers,
    StreamDecoding,
    TransformersDecoding,
)
from finetooth_torch.generation.packed_layers import PackedLinear, can_pack
from finetooth_torch.generation.row_adapters import Given, RowAdapters, TorchHeldAdapter, adapted_body, hold
from finetooth_torch.generation.rows_in_progress import Row, Writing
from finetooth_torch.heads.repetition import Additions, SeenIds
from finetooth_torch.network import Network
from finetooth_torch.planning.row_sharing import scaled_by_length
from finetooth_torch.precision import result_dtype

WORTH_PACKING = 8
"""New tokens per row above which packing the weights costs less than it saves."""


@dataclass(frozen=True)
class Weights:
    """The network during one call or one running batch.

    Attributes:
        layers: of the stream decoder; None without one.
        head: called instead of the head's module; None: the module itself.
        body: the model's own code, without the decoder.
        rows: tells the body which adapter each row has; None if it needs none.
        adapters: rows may have adapters that the engine holds.
    """

    layers: PackedLayers | None
    head: Callable[[Tensor], Tensor] | None
    body: TransformersBody
    rows: RowAdapters | None = None
    adapters: bool = False


class Generator:
    """Samples from a network.

    Args:
        stop_ids: end a completion unless the sampling settings have others.
        tokens: most positions of one batch: prompts, each once for all its samples, and completions. A single row may
            take more.

    Attributes:
        kept: prompts that earlier calls read.
        running: batches that requests join.
        check_asked: raises if the engine's caller asks it to stop.
    """

    def __init__(
        self, network: Network, tokenizer: Tokenizer, stop_ids: Sequence[int], *, device: torch.device, tokens: int
    ) -> None:
        self._network, self._tokenizer = network, tokenizer
        self._stop_ids, self._device, self._tokens = frozenset(stop_ids), device, tokens
        self._schemas = Schemas(tokenizer)
        self._scaling, self._unchanged = scaled_by_length(getattr(network.config, "to_dict", dict)())
        self.check_asked: Callable[[], None] = lambda: None
        self.kept = KeptPrompts()
        self.running: WeakSet[Any] = WeakSet()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, weights_version: int
    ) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in their order.

        Raises:
            EngineError: an empty prompt, one longer than the model's positions, an id outside the vocabulary, or
                invalid sampling settings.
        """
        self.check(prompts, sampling)
        streams = row_streams(prompts, sampling)
        results: list[list[Completion | None]] = [[None] * sampling.n for _ in prompts]
        self.prepare()
        with torch.no_grad():
            weights = self.weights(sampling.max_tokens)
            call = frozenset(np.asarray(prompt, dtype=np.int64).tobytes() for prompt in prompts)
            for batch, samples in self._waves(prompts, sampling):
                rows = [
                    self.row(index, sample, prompts[index], sampling, streams[index][sample])
                    for index in batch
                    for sample in samples
                ]
                taken = sum(len(prompts[index]) for index in batch) + sum(row.room for row in rows)
                writing = self.writing([prompts[index] for index in batch], rows, weights, taken=taken, call=call)
                self.check_asked()
                writing.begin()
                while writing.rows:
                    self.check_asked()
                    writing.step()
                self._network.sampled(*writing.computed(rows))
                for row in rows:
                    results[row.prompt][row.sample] = row.completion(self._tokenizer, weights_version)
        return [[completion for completion in of_prompt if completion is not None] for of_prompt in results]

    def check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Check prompts and sampling settings.

        Raises:
            EngineError: as `generate` says.
        """
        check_sampling(sampling, self._network.facts.vocab_size)
        self._schemas.check(sampling, self._ends(sampling))
        facts = self._network.facts
        check_prompts(
            prompts, vocab_size=facts.vocab_size, max_positions=facts.max_positions, check_shown=self._check_shown
        )
        self._check_angles(prompts)

    def _check_angles(self, prompts: Sequence[Sequence[int]]) -> None:
        """
        Raises:
            EngineError: the rotary angles of all keys change with each new token.
        """
        same = self._unchanged
        for index, prompt in enumerate(prompts):
            if len(prompt) == same or (self._scaling == "dynamic" and len(prompt) > same):
                raise EngineError(
                    f"prompt {index} has {len(prompt)} tokens, and from {same} positions on the rotary angles of this "
                    f"model ({self._scaling}) change with the length of a row, which sampling does not follow",
                    action=f"shorten it to less than {same} tokens",
                )

    def _check_shown(self, index: int, prompt: ShownPrompt) -> None:
        """
        Raises:
            EngineError: the model reads only text, or the prompt ends within an image or sound.
        """
        if not self._network.reads_media or not isinstance(self._network.body, TransformersBody):
            kind = CALLED[prompt.media[0][1].kind]
            raise EngineError(f"prompt {index} holds {kind}, which the model cannot read", action="ask in text")
        start, chunk = prompt.media[-1]
        if start + len(chunk) >= len(prompt):
            raise EngineError(f"prompt {index} ends with {CALLED[chunk.kind]}", action="let text follow it")

    def room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Tokens that a completion may get."""
        longest, same = self._network.facts.max_positions, self._unchanged
        longest = same if len(prompt) < same else longest  # beyond that the angles of earlier tokens would change
        return min(sampling.max_tokens, longest - len(prompt)) if longest else sampling.max_tokens

    def _waves(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[tuple[list[int], range]]:
        """Batches of prompts with their samples. A prompt whose samples do not fit into one batch is read again for
        each part of them."""
        for batch in self._batches(prompts, sampling):
            first = prompts[batch[0]]
            if len(batch) > 1 or self.cells(first, sampling) <= self._tokens:
                yield batch, range(sampling.n)
                continue
            fit = max(1, (self._tokens - len(first)) // self.room(first, sampling))
            waves = -(-sampling.n // fit)
            for wave in range(waves):
                yield batch, range(wave * sampling.n // waves, (wave + 1) * sampling.n // waves)

    def _batches(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Group prompts of similar length, longest first, into few batches of nearly equal size. A prompt that does not
        fit with all its samples is alone."""
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        cells = [self.cells(prompts[i], sampling) for i in order]
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

    def cells(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Positions that the prompt and its completions may take."""
        return len(prompt) + sampling.n * self.room(prompt, sampling)

    # --- parts of a batch ---------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Turn dropout off; training turns it on again. Raises what `check_asked` does."""
        self.check_asked()
        self._network.train(False)

    def row(
        self, prompt: int, sample: int, tokens: Sequence[int], sampling: Sampling, stream: np.random.Generator
    ) -> Row:
        """A new completion of `tokens`; `prompt` and `sample` are its indices."""
        stop_ids = self._ends(sampling)
        schema = self._schemas.begin(sampling.form, stop_ids)
        seen = None if sampling.repetition_penalty == 1 else SeenIds(tokens)
        bias, once, each = sampling.logit_bias, sampling.presence_penalty, sampling.frequency_penalty
        additions = Additions(bias, once, each) if sampling.adds else None
        return Row(prompt, sample, sampling, stop_ids, stream, self.room(tokens, sampling), schema, seen, additions)

    def _ends(self, sampling: Sampling) -> frozenset[int]:
        return self._stop_ids if sampling.stop_ids is None else frozenset(sampling.stop_ids)

    def hold(self, path: Path | Stack | None) -> TorchHeldAdapter | None:
        """See `Engine.hold`."""
        self._network.train(False)  # an adapter with dropout is not only a low-rank product
        return hold(self._network, self._network.adapter, path)

    def check_held(self, adapter: HeldAdapter | None) -> Given:
        """The adapter of a request.

        Raises:
            EngineError: another engine holds the adapter.
        """
        if adapter is None or (isinstance(adapter, TorchHeldAdapter) and adapter.network is self._network):
            return adapter
        raise EngineError("a running batch: the engine does not hold this adapter", action="give one that it held")

    def weights(self, most: int, *, adapters: bool = False) -> Weights:
        """The network for rows of up to `most` tokens, valid until its weights change.

        Args:
            adapters: rows may have adapters that the engine holds.
        """
        BLOCKS.forget()  # sampling does not need them, and packed weights take memory
        with lasting(Arena(Blocks(large_pages=True))):
            return self._packed_weights(most, adapters)

    def _packed_weights(self, most: int, adapters: bool) -> Weights:
        body, head, compute = self._network.body, self._network.head.parts(), self._network.compute
        pack = adapters or most >= WORTH_PACKING
        packed = None if head is None else self._packed_head(head, pack)
        own = self._network.transformers
        if isinstance(body, StreamBody):
            layers = PackedLayers(body.decoder, compute, pack=pack, adapters=adapters)
            return Weights(layers=layers, head=packed, body=own, adapters=adapters)
        if not adapters:
            return Weights(layers=None, head=packed, body=own)
        rows = RowAdapters()
        body_of_rows = adapted_body(self._network, self._network.adapter, rows)
        return Weights(layers=None, head=packed, body=body_of_rows, rows=rows, adapters=True)

    def _packed_head(self, parts: LowRank, pack: bool) -> Callable[[Tensor], Tensor] | None:
        """Computes the head's linear output; None: the head itself."""
        own = self._packed_base(parts.base, pack)
        if own is None or parts.a is None or parts.b is None:
            return own
        narrow = parts.base.weight.dtype
        wide = result_dtype(narrow)
        a_dr = (parts.scale * parts.a.detach()).to(narrow).t()
        b_rv = parts.b.detach().to(narrow).to(wide, copy=True).t()
        return lambda hidden_nd: own(hidden_nd).add_((hidden_nd @ a_dr).to(wide) @ b_rv)

    def _packed_base(self, head: nn.Linear, pack: bool) -> Callable[[Tensor], Tensor] | None:
        dtype, compute = result_dtype(head.weight.dtype), self._network.compute
        if self._device.type == "cpu":
            if not (pack and can_pack(head.weight.dtype, "cpu")):
                return None
            return PackedLinear(head.weight, head.bias, dtype, compute.packed_linear)
        own = None if compute.packed_head is None else compute.packed_head(head.weight, head.bias)
        return None if own is None else partial(own, dtype=dtype)

    def writing(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[Row], weights: Weights, adapters: Sequence[Given] = (),
        *, owners: Sequence[str] = (), taken: int = 0, call: frozenset[bytes] | None = None,
    ) -> Writing:  # fmt: skip
        """A batch of rows.

        Args:
            prompts: longest first.
            rows: equally many of each prompt, next to each other.
            adapters: of the prompts; the weights must support them. Without any, the engine's own.
            owners: of the prompts; see `RunningBatch`.
            taken: positions of rows that belong to no running batch.
            call: prompts of the whole call, as int64; see `KeptPrompts.find`.
        """
        free = max(0, self._tokens - taken - sum(batch.taken for batch in self.running))
        self.kept.fit(free)
        given, whose = adapters or (None,) * len(prompts), owners or ("",) * len(prompts)
        keeping = Keeping(self.kept, list(zip(prompts, given, whose, strict=True)), free, call)
        network, device = self._network, self._device
        samples = len(rows) // len(prompts)
        decoding: Decoding
        if weights.layers is None:
            same = not self._scaling and not any(isinstance(prompt, ShownPrompt) for prompt in prompts)
            decoding = TransformersDecoding(
                weights.body, network.config, prompts, samples,
                device=device, adapters=given, rows=weights.rows, keeping=keeping if same else None,
            )  # fmt: skip
        else:
            room = max(row.room for row in rows)
            decoding = StreamDecoding(
                weights.layers, network.facts, prompts, samples, room,
                device=device, keeping=keeping, adapters=given,
            )  # fmt: skip
        return Writing(
            decoding, rows, lambda hidden: network.head.logits(hidden, weights.head), self._tokenizer, device=device,
            compute=network.compute,
        )  # fmt: skip
