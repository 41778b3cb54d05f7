"""`POST /v1/completions` with prompts as token ids, and checks of the answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from finetooth_hooks import Context, Sampling
from finetooth_hooks.rollouts import Prompt, Rollout

from finetooth_serversamplers.asking import Server

LEFT_OUT = -9000.0
"""Log-probabilities below this mean minus infinity: vLLM writes -9999, since JSON has no infinity."""

TOP = 20
"""Largest number of likeliest tokens that servers return (vLLM's default of `--max-logprobs`, OpenAI's bound)."""


@dataclass(frozen=True)
class Completions:
    """Requests for completions.

    Attributes:
        model: the server's name for the weights, which every answer must contain.
        version: of these weights.
        extra: further fields of the request that only some servers know.
        kept: the likeliest tokens in an answer are the set from which each token was sampled.
    """

    context: Context
    model: str
    version: int
    extra: Mapping[str, Any]
    kept: bool = False

    async def rollouts(self, server: Server, prompts: Sequence[Prompt], sampling: Sampling) -> tuple[Rollout, ...]:
        """`sampling.n` of each prompt, in order.

        Raises:
            EngineError: an answer is from another model or prompt, or incomplete.
        """
        requests = [self._of(server, place, prompt, sampling) for place, prompt in enumerate(prompts)]
        return tuple(rollout for of in await server.all(requests) for rollout in of)

    async def _of(self, server: Server, place: int, prompt: Prompt, sampling: Sampling) -> list[Rollout]:
        body = self.body(prompt.tokens, sampling, seed_of(sampling.seed, place))
        answer = await server.post("/v1/completions", body)
        try:
            return self._read(server, prompt, sampling, answer)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise server.asking.wrong(f"gave an answer that cannot be read: {type(error).__name__}: {error}") from error

    def body(self, tokens: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        """The body of a request."""
        fields: dict[str, Any] = {
            "model": self.model,
            "prompt": list(tokens),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            # always all of them: vLLM takes missing ones from the model's generation_config.json
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "n": sampling.n,
            "seed": seed,
            "logprobs": sampling.top_k if self.kept else 0,
            "return_token_ids": True,
            **self.extra,
        }
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if sampling.stop_ids is not None:
            fields["stop_token_ids"] = list(sampling.stop_ids)
        if sampling.form is not None:  # the model's own end is the one that a server lets a form end with
            fields |= {"structured_outputs": structured(*sampling.form), "ignore_eos": False}
        return fields

    def _read(self, server: Server, prompt: Prompt, sampling: Sampling, answer: Any) -> list[Rollout]:
        wrong = server.asking.wrong
        if answer["model"] != self.model:
            raise wrong(f"answered with the model {answer['model']!r}, asked for {self.model!r}")
        choices = sorted(answer["choices"], key=lambda entry: entry["index"])
        if len(choices) != sampling.n:
            raise wrong(f"gave {len(choices)} answers to a prompt, asked for {sampling.n}")
        return [self._rollout(server, prompt, sampling, choice) for choice in choices]

    def _rollout(self, server: Server, prompt: Prompt, sampling: Sampling, choice: Mapping[str, Any]) -> Rollout:
        wrong, tokens = server.asking.wrong, choice.get("token_ids")
        if choice["finish_reason"] not in ("stop", "length"):
            raise wrong(
                f"stopped in the middle of an answer ({choice['finish_reason']}): it was put to sleep or paused, "
                "or another run uses it",
                "give each run a server of its own, then ft resume RUN",
            )
        if tokens is None:
            raise wrong(
                "returns no token ids, so nothing that it samples can be trained",
                "take a server that knows return_token_ids (vLLM since 0.10.2, ft serve openai)",
            )
        read = choice.get("prompt_token_ids")
        if read is not None and tuple(read) != prompt.tokens:
            raise wrong("read other tokens than the prompt's: it adds some of its own")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if logprobs is None or len(logprobs) != len(tokens):
            raise wrong(f"gave {len(logprobs or ())} log-probabilities for {len(tokens)} tokens")
        if not tokens or len(tokens) > sampling.max_tokens:
            raise wrong(f"gave {len(tokens)} tokens, asked for 1 to {sampling.max_tokens}")
        if any(
            not isinstance(logprob, int | float) or not math.isfinite(logprob) or logprob > 1e-3 for logprob in logprobs
        ):
            raise wrong("gave an invalid log-probability")
        size = self.context.facts.vocab_size
        if any(not isinstance(token, int) or not 0 <= token < size for token in tokens):
            raise wrong(f"gave a token id outside the vocabulary of {size}: it has another model")
        ends = set(self.context.renderer.stop_ids if sampling.stop_ids is None else sampling.stop_ids)
        if sampling.form is not None and self.context.tokenizer.eos_id is not None:
            ends.add(self.context.tokenizer.eos_id)
        content_tokens = tokens[:-1] if tokens[-1] in ends else tokens
        text = self.context.tokenizer.decode(list(content_tokens))
        text = text[: min((place for stop in sampling.stop if (place := text.find(stop)) >= 0), default=len(text))]
        outcome: Literal["stop", "length"] = "length" if choice["finish_reason"] == "length" else "stop"
        return Rollout(
            id=prompt.id,
            group=prompt.group,
            prompt=tuple(prompt.tokens),
            tokens=tuple(tokens),
            logprobs=tuple(min(0.0, float(logprob)) for logprob in logprobs),
            versions=(self.version,) * len(tokens),
            text=text,
            outcome=outcome,
            kept=self._allowed_ids(server, tokens, choice) if self.kept else (),
        )

    def _allowed_ids(
        self, server: Server, tokens: Sequence[int], choice: Mapping[str, Any]
    ) -> tuple[tuple[int, ...], ...]:
        """Ids of the sampling set, from the likeliest tokens: excluded ones have minus infinity, or are missing."""
        left = []
        for token, likeliest in zip(tokens, choice["logprobs"]["top_logprobs"], strict=True):
            ids = {_id(name): value for name, value in likeliest.items()}
            ids_left = sorted({id_ for id_, value in ids.items() if value is not None and value > LEFT_OUT} | {token})
            left.append(tuple(ids_left))
        return tuple(left)


def structured(kind: str, text: str) -> dict[str, Any]:
    """The required form of an answer (`Sampling.form`), as vLLM's `structured_outputs`."""
    return {"json": json.loads(text)} if kind == "schema" else {kind: text}


def _id(name: str) -> int:
    """The id in `token_id:17`, vLLM's notation with `return_tokens_as_token_ids`."""
    return int(name.removeprefix("token_id:"))


def seed_of(seed: int, place: int) -> int:
    """The seed of a prompt in a batch, so that equal prompts get different answers."""
    return int.from_bytes(sha256(f"{seed}/{place}".encode()).digest()[:4], "big") >> 1
