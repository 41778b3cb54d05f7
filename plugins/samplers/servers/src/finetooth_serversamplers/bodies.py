"""Requests for completions, as vLLM takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetooth_hooks import Sampling

from finetooth_serversamplers.completions import seed_of, structured


def completion_body(
    model: str, prompt: Sequence[int], sampling: Sampling, stop_ids: Sequence[int], sample: int
) -> dict[str, Any]:
    """One sample of a prompt of token ids. Everything that decides it is said, so that no default of the server or of
    the model's `generation_config.json` does.

    Args:
        stop_ids: those that end an answer where `sampling` names none.
        sample: its number, from which and the sampling's seed its own seed is made.
    """
    ends = stop_ids if sampling.stop_ids is None else sampling.stop_ids
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "n": 1,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": seed_of(sampling.seed, sample),
        "stop": list(sampling.stop),
        "stop_token_ids": list(ends),
        "ignore_eos": True,  # what ends an answer stands above
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): added for token, added in sampling.logit_bias}
    if sampling.form is not None:
        body["structured_outputs"] = structured(*sampling.form)
    return body
