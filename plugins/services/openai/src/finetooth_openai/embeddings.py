"""Answers of `/v1/embeddings`: the mean of a text's last hidden states, of length 1."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_wire import wire

from finetooth_openai.asking import PendingRequest
from finetooth_openai.requests import EmbeddingRequest


def embeddings(pending: PendingRequest[EmbeddingRequest], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The answer to a request, a vector per text.

    `dimensions` keeps the first numbers of each and normalises them to length 1, as OpenAI does.
    """
    body, data = pending.body, []
    for index, result in enumerate(results):
        vector = np.asarray(wire.decode_array(result["embedding"], "embedding"), np.float64)[: body.dimensions]
        single = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype("<f4")
        packed = body.encoding_format == "base64"
        numbers = base64.b64encode(single.tobytes()).decode() if packed else single.tolist()
        data.append({"object": "embedding", "index": index, "embedding": numbers})
    read = sum(map(len, pending.prompts))
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}
