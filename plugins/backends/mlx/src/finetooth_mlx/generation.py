"""Sampling with mlx-lm's cache: prompts of one length form a batch, and every row has its own random stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import mlx.core as mx
import numpy as np
from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.protocols import TextPart
from finetooth_hooks.sampling import ShownPrompt
from finetooth_modelfiles.schemas import Schemas, SchemaState, drawn_among
from finetooth_steps.data_checks import check_prompts
from finetooth_steps.kept_prompts import Keeping, KeptPrompts
from finetooth_steps.sampling import check_sampling, row_streams
from mlx_lm.models.cache import KVCache
from numpy.typing import NDArray

from finetooth_mlx.cache import make_cache
from finetooth_mlx.network import Network
from finetooth_mlx.planning import GENERATION_BATCHES


@dataclass
class Row:
    """A completion in progress.

    Attributes:
        prompt, sample: its place in the result.
        room: the most tokens that it may get.
        seen: tokens of its prompt and completion; only with a repetition penalty.
        schema: its place in the JSON schema.
        text: decoded text, up to the stop string that ended it.
    """

    prompt: int
    sample: int
    sampling: Sampling
    stream: np.random.Generator
    room: int
    seen: set[int] = field(default_factory=set)
    schema: SchemaState | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)
    kept: list[tuple[int, ...]] = field(default_factory=list)
    text: str | None = None
    stopped: bool = False
    ended_by_token: bool = False

    @property
    def done(self) -> bool:
        """Whether the completion has ended."""
        return self.stopped or len(self.tokens) >= self.room


class Writing:
    """A batch of rows with prompts of one length. A row that has ended stays in the batch until all have ended.

    Args:
        keeping: asked for the prompt of each row, a tuple.

    Attributes:
        rows: including those that have ended.
    """

    def __init__(self, generator: Generator, rows: Sequence[Row], keeping: Keeping) -> None:
        self._network, self._text, self.rows = generator.network, generator.text, list(rows)
        self._cache, self._keeping, self._begun = generator.cache(), keeping, False
        self._next = np.array([prompt for prompt, _, _ in keeping.asked], dtype=np.int32)

    @property
    def done(self) -> bool:
        """Whether all rows have ended."""
        return all(row.done for row in self.rows)

    def step(self) -> list[Row]:
        """Sample the next token of each row; return the rows that got one."""
        logits = self._logits(self._next) if self._begun else self._read()
        total = mx.logsumexp(logits, axis=-1, keepdims=True)
        mx.eval(logits, total, [layer.state for layer in self._cache])
        writing = [row for row in self.rows if not row.done]
        chosen = [
            0 if row.done else self._choose(row, *of)
            for row, *of in zip(self.rows, *map(np.array, (logits, total)), strict=True)
        ]
        self._next = np.array(chosen, dtype=np.int32)[:, None]
        return writing

    def _logits(self, tokens: NDArray[np.int32]) -> mx.array:
        return self._network.logits(self._network.body(mx.array(tokens), cache=self._cache)[:, -1])

    def _read(self) -> mx.array:
        """The logits behind each prompt. Equal prompts of an owner are read once, without what was read before."""
        self._begun, keeping = True, self._keeping
        if not all(type(layer) is KVCache for layer in self._cache):
            return self._logits(self._next)
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(keeping.asked))}
        tokens = np.array([prompt for prompt, _, _ in places], dtype=np.int32)
        logits = self._continue(tokens, replace(keeping, asked=list(places)))
        if len(places) < len(self.rows):
            whose = mx.array([places[prompt] for prompt in keeping.asked])
            logits = logits[whose]
            for layer in self._cache:
                layer.keys, layer.values = layer.keys[whose], layer.values[whose]
        return logits

    def _continue(self, tokens: NDArray[np.int32], keeping: Keeping) -> mx.array:
        """Read what is new of different prompts, and keep them."""
        begun, (rows, count) = keeping.begun(), tokens.shape
        common = min(0 if beginning is None else len(beginning.rows) for beginning in begun)
        if common:
            runs = [(of.read.layers, slice(int(of.rows[0]), int(of.rows[0]) + common)) for of in begun if of]
            for at, layer in enumerate(self._cache):
                layer.keys, layer.values = (
                    mx.stack([layers[2 * at + n][run].transpose(1, 0, 2) for layers, run in runs]) for n in (0, 1)
                )
                layer.offset = common
        logits = self._logits(tokens[:, common:])
        if keeping.makes_room(rows * count, begun):
            both = [
                of[:, :, :count].transpose(0, 2, 1, 3) for layer in self._cache for of in (layer.keys, layer.values)
            ]
            layers = [mx.contiguous(of.flatten(0, 1)) for of in both]
            mx.eval(layers)
            keeping.keep([np.arange(count) + row * count for row in range(rows)], layers)
        return logits

    def _choose(self, row: Row, logits: NDArray[np.float32], total: NDArray[np.float32]) -> int:
        sampling, scores = row.sampling, logits.astype(np.float64)
        if row.seen:
            ids = np.fromiter(row.seen, dtype=np.int64)
            scores[ids] *= np.where(scores[ids] < 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
        if sampling.adds:
            scores += added(row.tokens, sampling, len(scores))
        among: tuple[int, ...] = ()
        if row.schema is not None:
            allowed = row.schema.allowed(len(scores))
            if sampling.drawn and sampling.temperature > 0 and not sampling.leaves_out:
                among = drawn_among(allowed, scores, sampling.temperature)
            scores[~allowed] = -np.inf
        token, drawn, candidates = choose(scores, sampling, row.stream)
        row.tokens.append(token)
        row.logprobs.append(float(logits[token] - total[0]))
        if sampling.drawn:
            row.drawn.append(drawn)
            row.kept.append(among or candidates)
        if row.seen:
            row.seen.add(token)
        self._end(row, token)
        return token

    def _end(self, row: Row, token: int) -> None:
        """Whether the row ends with this token."""
        stops = self._text.stop_ids if row.sampling.stop_ids is None else row.sampling.stop_ids
        row.stopped = row.ended_by_token = token in stops
        if row.sampling.stop and not row.stopped:
            text = self._text.tokenizer.decode(row.tokens)
            ends = [text.index(stop) for stop in row.sampling.stop if stop in text]
            if ends:
                row.text, row.stopped = text[: min(ends)], True
        if row.schema is not None and not row.stopped:
            row.stopped = row.schema.take(token)


class Generator:
    """Samples from a network.

    Args:
        budget: tokens per micro-batch; a sampling batch has about four times as many.
        check_asked: raises if the driver of the engine wants it to stop.
        cache_bits: per number in the cache; 0 is plain.

    Attributes:
        tokens: of a sampling batch.
        kept: prompts that running batches have read.
        running: these batches.
    """

    def __init__(
        self, network: Network, text: TextPart, budget: int, check_asked: Callable[[], None], cache_bits: int = 0
    ) -> None:
        self.network, self.text, self.tokens, self._check_asked = (
            network,
            text,
            GENERATION_BATCHES * budget,
            check_asked,
        )
        self._cache_bits, self.kept, self.running = cache_bits, KeptPrompts(), WeakSet[Any]()
        self._schemas = Schemas(text.tokenizer)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, weights_version: int
    ) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in their order.

        Raises:
            EngineError: a prompt that cannot be completed, or invalid sampling settings.
        """
        self.check(prompts, sampling)
        self.network.train(False)
        streams = row_streams(prompts, sampling)
        rows = [row for i, prompt in enumerate(prompts) for row in self.rows(i, prompt, sampling, streams[i])]
        for batch in self._batches(prompts, rows):
            self._check_asked()
            taken = sum(len(prompts[row.prompt]) + row.room for row in batch)
            self.kept.fit(max(0, self.tokens - taken - sum(running.taken for running in self.running)))
            nothing = Keeping(KeptPrompts(), [(tuple(prompts[row.prompt]), None, "") for row in batch], 0)
            writing = Writing(self, batch, nothing)
            while not writing.done:
                writing.step()
                self._check_asked()
        completions: list[list[Completion]] = [[] for _ in prompts]
        for row in rows:
            completions[row.prompt].append(self.completion(row, weights_version))
        return completions

    def cache(self) -> list[Any]:
        """An empty cache for each layer."""
        return make_cache(self.network.model, self.network.facts.head_dim, self._cache_bits)

    def rows(
        self, number: int, prompt: Sequence[int], sampling: Sampling, streams: Sequence[np.random.Generator]
    ) -> list[Row]:
        """A new row for each sample of a prompt."""
        longest = self.network.facts.max_positions
        room = min(sampling.max_tokens, longest - len(prompt)) if longest else sampling.max_tokens
        seen = set[int]() if sampling.repetition_penalty == 1 else {int(token) for token in prompt}
        made = [Row(number, i, sampling, stream, room, set(seen)) for i, stream in enumerate(streams)]
        for row in made:
            row.schema = self._schemas.begin(sampling.form, self._ends(sampling))
        return made

    def _ends(self, sampling: Sampling) -> frozenset[int]:
        return frozenset(self.text.stop_ids if sampling.stop_ids is None else sampling.stop_ids)

    def _batches(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> Iterator[list[Row]]:
        """As many rows with prompts of one length as fit."""
        by_length: dict[int, list[Row]] = {}
        for row in rows:
            by_length.setdefault(len(prompts[row.prompt]), []).append(row)
        for length, several in sorted(by_length.items(), reverse=True):
            most = max(1, self.tokens // (length + several[0].room))
            yield from (several[at : at + most] for at in range(0, len(several), most))

    def completion(self, row: Row, weights_version: int) -> Completion:
        """What was written."""
        written = row.tokens[:-1] if row.ended_by_token else row.tokens
        text = self.text.tokenizer.decode(written) if row.text is None else row.text
        candidates = tuple(row.kept) if any(row.kept) else ()
        return Completion(
            tuple(row.tokens), tuple(row.logprobs), text, "stop" if row.stopped else "length", weights_version,
            tuple(row.drawn), candidates,
        )  # fmt: skip

    def check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Checks prompts and sampling settings before anything is generated.

        Raises:
            EngineError: see `generate`.
        """
        check_sampling(sampling, self.network.facts.vocab_size)
        self._schemas.check(sampling, self._ends(sampling))
        facts = self.network.facts
        check_prompts(prompts, vocab_size=facts.vocab_size, max_positions=facts.max_positions, check_shown=_check_shown)


def _check_shown(index: int, prompt: ShownPrompt) -> None:
    """
    Raises:
        EngineError: it holds more than text.
    """
    if prompt.media:
        raise EngineError(f"prompt {index} holds more than text", action="ask in text, or set backend: torch")


def added(written: Sequence[int], sampling: Sampling, width: int) -> NDArray[np.float64]:
    """The bias (V,) on the logits after the tokens so far."""
    counts = np.bincount(np.array(written, dtype=np.int64), minlength=width)
    bias = -sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    for token, more in sampling.logit_bias:
        bias[token] += more
    return np.asarray(bias, dtype=np.float64)


def choose(
    scores: NDArray[np.float64], sampling: Sampling, stream: np.random.Generator
) -> tuple[int, float, tuple[int, ...]]:
    """The next token of a row, its log-probability under the sampling distribution, and the candidates (empty if all
    tokens were).

    Temperature applies first, then `top_k`, then `top_p` (Holtzman et al., 2020, arXiv:1904.09751), then `min_p`, a
    share of the likeliest token's probability. Of equally likely tokens the lower id counts as more likely. One uniform
    number picks the token by the inverse of the cumulative distribution.

    Args:
        scores: (V,) logits, up to a constant.
    """
    if sampling.temperature == 0:
        token = int(np.argmax(scores))
        return token, 0.0, (token,)
    tempered = (scores - scores.max()) / sampling.temperature
    order = np.argsort(-tempered, kind="stable") if sampling.leaves_out else np.arange(len(tempered))
    p = np.exp(tempered[order])
    if sampling.top_k:
        p[sampling.top_k :] = 0.0
    if sampling.top_p < 1:
        p = np.where(np.cumsum(p) - p < sampling.top_p * p.sum(), p, 0.0)
    if sampling.min_p:
        p = np.where(p >= sampling.min_p * p[0], p, 0.0)
    total = p.sum()
    place = int(np.searchsorted(np.cumsum(p), stream.random() * total, side="right"))
    place = min(place, int(np.flatnonzero(p)[-1]))  # rounding must not pass the last token with a probability above 0
    candidates = tuple(sorted(int(token) for token in order[p > 0])) if sampling.leaves_out else ()
    return int(order[place]), float(np.log(p[place] / total)), candidates
