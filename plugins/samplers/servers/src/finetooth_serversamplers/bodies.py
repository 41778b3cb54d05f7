"""Bodies of requests for completions from vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetooth_hooks import Sampling

from finetooth_serversamplers.completions import seed_of, structured


def completion_body(
    model: str, prompt: Sequence[int], sampling: Sampling, stop_ids: Sequence[int], sample: int
) -> dict[str, Any]:
    """One sample of a prompt of token ids. The body sets every sampling parameter, so that no default of the server or
    of the model's `generation_config.json` applies.

    Args:
        stop_ids: those that end an answer if `sampling` has none.
        sample: its number; with the sampling's seed it gives the sample's seed.
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
        "ignore_eos": True,  # the end tokens are set above
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
