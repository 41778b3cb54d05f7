"""Whether sampling replays graphs, and what they take of memory."""

from __future__ import annotations

from typing import Literal

from finetooth_hooks import Decision, PlanError
from finetooth_hooks.protocols import HardwareFacts

SETTING = "backend.graphs"

LOGIT_BYTES = 32
"""Memory of a step's graph per logit: the logits, and what choosing a token makes of them, in float64 where
probabilities are told. What the layers make is less."""

MOST_BYTES = 2**30
"""Batches of larger graphs are sampled without."""


def choose_graphs(
    wanted: Literal["auto"] | bool, hardware: HardwareFacts, decoder: Decision, *, samples: bool
) -> Decision | None:
    """The value of `TorchOptions.graphs`; None where there is nothing to decide.

    Args:
        decoder: of `backend.decoder`.
        samples: the method samples.

    Raises:
        PlanError: the recipe asks for graphs, and there are none.
    """
    possible = hardware.device.startswith("cuda")
    why = "" if possible else f"{hardware.label} has no graphs; NVIDIA and AMD GPUs have"
    if possible and decoder.value != "stream":
        why = f"they need decoder: stream, and the layers are computed by {decoder.value}: {decoder.reason}"
    if wanted is True and why:
        raise PlanError(f"{SETTING}=true: {why}", action=f"set {SETTING} to auto or false")
    if why or not samples:
        return None
    if wanted == "auto":
        return Decision(SETTING, False, "not measured on a GPU yet; true may sample a small model several times faster")
    return Decision(SETTING, wanted, "the recipe says so")


def graph_bytes(positions: int, vocab_size: int) -> int:
    """Bytes of the graph of a batch, at most.

    Args:
        positions: of the batch; a row has at least two.
    """
    return min(MOST_BYTES, LOGIT_BYTES * vocab_size * (positions // 2))
