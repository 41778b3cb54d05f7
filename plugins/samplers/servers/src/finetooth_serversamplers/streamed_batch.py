"""A running batch at a server: each sample is a separate request with streamed tokens."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.continuous import Written
from finetooth_hooks.models import Tokenizer
from finetooth_hooks.sampling import ShownPrompt

from finetooth_serversamplers.bodies import completion_body
from finetooth_serversamplers.wire import AGAIN, Wire

PATIENCE = 0.05
"""Seconds that a step waits for a token; other calls wait for the step."""


@dataclass(frozen=True)
class ServedText:
    """Settings for reading a server's answers.

    Attributes:
        stop_ids: of the renderer.
        vocabulary: number of token ids.
    """

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    vocabulary: int


class LoadedAdapter(HeldAdapter):
    """An adapter at the server, or its base.

    Attributes:
        name: the server's name for it.
    """

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass
class _Answer:
    """A sample that is being written."""

    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: str = ""


class StreamedBatch:
    """See `finetooth_hooks.continuous.RunningBatch`. It accepts any number of requests, since the server has its own
    queue.

    Args:
        base: name of the model whose weights are the engine's own.
    """

    owner = ""

    def __init__(self, wire: Wire, text: ServedText, base: str) -> None:
        self._wire, self._text, self._base = wire, text, base
        self._told: SimpleQueue[Written | Exception] = SimpleQueue()
        self._writer = _Writer(wire, text, self._told)
        self._under_way: dict[int, dict[int, Future[None]]] = {}
        self._requests = 0
        weakref.finalize(self, _give_up, self._under_way)  # also if the batch is abandoned

    def add(
        self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: HeldAdapter | None = None
    ) -> int:
        if isinstance(prompt, ShownPrompt) and prompt.media:
            raise EngineError(
                "backend vllm: a prompt holds an image, a sound or a video, and the backend sends only text",
                action="ask in text",
            )
        if adapter is not None and not isinstance(adapter, LoadedAdapter):
            raise EngineError("backend vllm: another engine holds this adapter", action="let this engine hold it")
        number, self._requests = self._requests, self._requests + 1
        name = self._base if adapter is None else adapter.name
        begun = self._under_way[number] = {}
        for sample in range(sampling.n):
            body = completion_body(name, prompt, sampling, self._text.stop_ids, first + sample)
            begun[sample] = self._wire.begin(self._writer.write(number, sample, body, sampling))
        return number

    def cancel(self, request: int) -> None:
        for future in self._under_way.pop(request, {}).values():
            future.cancel()

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def waiting(self) -> int:
        return 0

    def step(self) -> list[Written]:
        """Tokens since the last step; empty if none come for a moment.

        Raises:
            EngineError: a request failed. All requests are cancelled.
        """
        written: list[Written] = []
        while self._under_way:
            try:
                event = self._told.get(block=not written, timeout=PATIENCE)
            except Empty:
                break
            if isinstance(event, Exception):
                self.close()
                raise event
            begun = self._under_way.get(event.request)
            if begun is None:
                continue  # it was cancelled
            written.append(event)
            if event.completion is not None:
                del begun[event.sample]
                if not begun:
                    del self._under_way[event.request]
        return written

    def close(self) -> None:
        """Cancel running requests."""
        _give_up(self._under_way)


def _give_up(under_way: dict[int, dict[int, Future[None]]]) -> None:
    for begun in under_way.values():
        for future in begun.values():
            future.cancel()
    under_way.clear()


class _Writer:
    """Reads the streams of samples. It holds no reference to the batch, which may be released earlier."""

    def __init__(self, wire: Wire, text: ServedText, queue: SimpleQueue[Written | Exception]) -> None:
        self._wire, self._text, self._told = wire, text, queue

    async def write(self, request: int, sample: int, body: Mapping[str, Any], sampling: Sampling) -> None:
        """Report the tokens of a sample. The last token is reported with the complete sample, so each waits for the
        next."""
        stop_ids = self._text.stop_ids if sampling.stop_ids is None else sampling.stop_ids
        answer, sent = _Answer(stop_ids, sampling.stop), 0
        try:
            async for chunk in self._wire.chunks("/v1/completions", body):
                self._take(answer, chunk, body)
                while sent < len(answer.tokens) - 1:
                    self._told.put(Written(request, sample, answer.tokens[sent], answer.logprobs[sent]))
                    sent += 1
            whole = self._whole(answer)
            self._told.put(Written(request, sample, whole.tokens[-1], whole.logprobs[-1], whole))
        except Exception as error:
            self._told.put(error)

    def _take(self, answer: _Answer, chunk: Any, body: Mapping[str, Any]) -> None:
        wrong = self._wire.asking.wrong
        try:
            if chunk["model"] != body["model"]:
                raise wrong(f"answered with the model {chunk['model']!r}, asked for {body['model']!r}", AGAIN)
            for choice in chunk["choices"]:  # the last chunk with usage numbers has none
                tokens = choice.get("token_ids")
                if tokens is None and choice.get("text"):
                    raise wrong("returns no token ids", "take vLLM 0.10.2 or later")
                scores = (choice.get("logprobs") or {}).get("token_logprobs") or []
                if len(scores) != len(tokens or ()):
                    raise wrong(f"gave {len(scores)} log-probabilities for {len(tokens or ())} tokens", AGAIN)
                answer.tokens += tokens or ()
                answer.logprobs += (min(0.0, float(score)) for score in scores)
                answer.ended = str(choice.get("finish_reason") or answer.ended)
        except (KeyError, TypeError, ValueError) as error:
            raise wrong(f"sent a chunk that cannot be read: {type(error).__name__}: {error}", AGAIN) from error
        size = self._text.vocabulary
        if any(not isinstance(token, int) or not 0 <= token < size for token in answer.tokens):
            raise wrong(f"gave a token id outside the vocabulary of {size}: it has another model", "set backend.model")
        if not all(map(math.isfinite, answer.logprobs)):
            raise wrong("gave an invalid log-probability", AGAIN)

    def _whole(self, answer: _Answer) -> Completion:
        if answer.ended not in ("stop", "length") or not answer.tokens:
            why = answer.ended or "without a reason"
            raise self._wire.asking.wrong(f"ended an answer of {len(answer.tokens)} tokens: {why}", AGAIN)
        by_id = answer.ended == "stop" and answer.tokens[-1] in answer.stop_ids
        text = self._text.tokenizer.decode(answer.tokens[:-1] if by_id else answer.tokens)
        end = min((at for stop in answer.stops if (at := text.find(stop)) >= 0), default=len(text))
        return Completion(
            tuple(answer.tokens),
            tuple(answer.logprobs),
            text[:end],
            "stop" if answer.ended == "stop" else "length",
            weights_version=0,
        )
