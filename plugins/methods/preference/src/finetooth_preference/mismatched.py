"""Answers to other prompts, with which KTO estimates the KL from the policy to the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks import Datum, Engine


def mismatched(data: Sequence[Datum], max_length: int) -> list[Datum]:
    """Each prompt with the answer of the datum before it, the first with the last one's (Ethayarajh et al., 2024,
    arXiv:2402.01306, section 4.1): the same answers, other prompts.

    Args:
        max_length: positions; longer sequences are cut, or left out if the answer would be lost or an image would be
            cut.
    """
    mixed = []
    for place, datum in enumerate(data):
        end = _answer(datum)
        prompt = _tokens(datum)[:end]
        other = data[place - 1]
        begin = _answer(other)
        tokens = np.concatenate([prompt, _tokens(other)[begin:]])[: max_length + 1]
        trained = np.concatenate([np.zeros(len(prompt)), other.mask[begin - 1 :].astype(np.float64)])[: len(tokens)]
        media = [
            (start, medium) for start, medium in datum.media if start < end
        ]  # media of a prompt stay with the prompt
        media += [(start + end - begin, medium) for start, medium in other.media if start >= begin]
        whole = all(start + medium.length < len(tokens) for start, medium in media)  # no medium is cut
        if trained[1:].any() and whole:
            mixed.append(Datum.from_tokens(tokens, trained, id=f"{datum.id}~{other.id}", media=media))
    return mixed


def kl_estimate(engine: Engine, data: Sequence[Datum], max_length: int) -> float:
    """max(0, mean over mismatched pairs of log pi(y'|x) - log pi_ref(y'|x)), in nats; 0 for a single datum."""
    if len(data) < 2:
        return 0.0
    others = mismatched(data, max_length)
    if not others:
        return 0.0
    policy, known = engine.logprobs(others), engine.logprobs(others, role="reference")
    ratios = [float(a.sum(dtype=np.float64) - b.sum(dtype=np.float64)) for a, b in zip(policy, known, strict=True)]
    return max(0.0, float(np.mean(ratios)))


def _tokens(datum: Datum) -> np.ndarray:
    return np.append(datum.placeholder_tokens, datum.targets[-1])


def _answer(datum: Datum) -> int:
    """Index of the first trained token."""
    return int(np.argmax(datum.mask)) + 1
