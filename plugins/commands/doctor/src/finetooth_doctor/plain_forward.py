"""One forward pass of a model as its own library computes it: no engine, no packing, no kernels, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from finetooth_hooks import Context, Datum
from finetooth_hooks.data.datum import TokenChunk
from numpy.typing import NDArray


def datum_of(tokens: Sequence[int], weights: Sequence[float], id: str = "") -> Datum:
    """What a sequence teaches: every token but the first is a target, with its weight.

    Args:
        tokens: (T,) ids, at least two.
        weights: (T,); that of the first is not used.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    counts = np.asarray(weights, dtype=np.float64)[1:]
    return Datum((TokenChunk(ids[:-1]),), ids[1:], fields={"weights": counts}, id=id)


def plain_logprobs(context: Context, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
    """Log-probabilities of the tokens behind the first, in fp32 on the host, one sequence after the other.

    Args:
        context: of the model; its loader gives the weights.
        sequences: token ids, each of at least two.

    Returns:
        (T - 1,) of each sequence.
    """
    import torch

    model: Any = context.loader.load(context.model.reference, framework="torch", precision="fp32", device="cpu")
    model.eval()
    logprobs = []
    with torch.no_grad():
        for tokens in sequences:
            ids = torch.tensor([list(tokens)])
            logits = model(input_ids=ids).logits[0, :-1].double()
            picked = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            logprobs.append(picked.numpy())
    return logprobs
