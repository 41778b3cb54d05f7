"""Computes log-probabilities from hidden states with the model's head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from finetooth_hooks.protocols import Head, LowRank
from finetooth_kernels.contract import DEFAULT_CHUNK_BYTES, ids_checked
from finetooth_kernels.decoder import FindLowRank
from finetooth_kernels.linear_logprob import foresees
from finetooth_torchshared.plain_modules import is_hooked, is_plain
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finetooth_torch.compute import TORCH, Compute
from finetooth_torch.heads.repetition import Repetition
from finetooth_torch.precision import result_dtype

BUFFERS_OF_REPETITION = 4
"""Number of additional arrays, each of the size of a chunk's logits, that a repetition penalty needs."""


class Projection:
    """The head of a model.

    The operation `linear_logprob` computes a plain linear head, with a low-rank addition if an adapter makes one. Any
    other module (with DoRA, quantised) is called in chunks of rows, each recomputed in the backward pass: the numbers
    are the same, and only one chunk's logits exist at a time. With a repetition penalty every head is called in smaller
    chunks, since the penalty needs a table of previous tokens as large as the logits.

    Args:
        find: returns the head's module; called each time, since an adapter may be switched off in between.
        facts: with the family's scale and softcap.
        vocab_size: rows of the head.
        compute: computes the log-probabilities.
        chunk_bytes: bound on the logits of a plain head that are held at once, counted in float32. Other heads keep
            several arrays of that size, so they use the default.
        low_rank: returns the adapter's low-rank form of the head.
    """

    def __init__(
        self, find: Callable[[], nn.Module], facts: Head, vocab_size: int, compute: Compute = TORCH,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES, low_rank: FindLowRank = lambda module: None,
    ) -> None:  # fmt: skip
        self._linear_logprob, self._expects = compute.linear_logprob, compute.expects
        self._adds, self._low_rank = compute.adds, low_rank
        self._find, self._facts, self._chunk_bytes = find, facts, chunk_bytes
        self._rows = max(1, min(chunk_bytes, DEFAULT_CHUNK_BYTES) // (4 * vocab_size))

    def parts(self) -> LowRank | None:
        """The head if it is a plain linear module, with what an adapter adds to its product; None for any other."""
        module = self._find()
        if is_plain(module):
            return LowRank(module)
        part = self._low_rank(module)
        if part is None or not is_plain(part.base) or is_hooked(module) or part.magnitude is not None:
            return None
        return part if part.a is None or self._adds else None

    def foresees(self, targets: Tensor) -> bool:
        """Whether `scores` uses the expected gradients of targets (S, T) or (S, T, K): then it computes the logits of a
        trained head once."""
        parts = self.parts()
        if parts is None or not self._expects:
            return False
        weight, bias = parts.base.weight, parts.base.bias
        return foresees(
            weight.dtype,
            1 if targets.dim() == 2 else targets.shape[-1],
            trains_bias=bias is not None and bias.requires_grad,
        )

    def logits(self, hidden: Tensor, linear: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(..., D) to (..., V), float32 (float64 stays), scale and softcap applied.

        Args:
            linear: called instead of the module, with `hidden` in the dtype of the head's weight.
        """
        module = self._find()
        parameter = next(module.parameters(), None)
        if parameter is not None and (linear is not None or is_plain(module)):
            hidden = hidden.to(parameter.dtype)
        logits: Tensor = module(hidden) if linear is None else linear(hidden)
        logits = logits.to(result_dtype(hidden.dtype))
        if self._facts.scale != 1.0:
            logits = logits * self._facts.scale
        if self._facts.softcap is not None:
            logits = self._facts.softcap * torch.tanh(logits / self._facts.softcap)
        return logits

    def scores(
        self,
        hidden_md: Tensor,
        targets: Tensor,
        *,
        entropy: bool,
        expected: Tensor | None = None,
        temperature: float = 1.0,
        repetition: Repetition | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the targets and the entropy.

        Args:
            hidden_md: (M, D), the states before the targets that count.
            targets: (M,) or (M, K).
            expected: in the shape of the targets: numbers proportional to the coming gradients of the
                log-probabilities, if known.
            temperature: the logits are divided by it.
            repetition: a penalty on the logits, applied before.

        Returns:
            logprobs in the shape of the targets, and the entropy (M,) if asked for; float32 (float64 stays).
        """
        head = self.parts()
        if head is not None and repetition is None:
            weight = head.base.weight
            hidden_md = hidden_md.to(weight.dtype)
            added = {} if head.a is None else {"added": _added(head, hidden_md)}
            with ids_checked():  # checked by the engine, on the host
                result = self._linear_logprob(
                    hidden_md,
                    weight,
                    targets,
                    **added,
                    bias_v=head.base.bias,
                    scale=self._facts.scale,
                    softcap=self._facts.softcap,
                    temperature=temperature,
                    entropy=entropy,
                    expected=expected,
                    chunk_bytes=self._chunk_bytes,
                )
            return result.logprobs, result.entropy
        parts = []
        rows = self._rows if repetition is None else max(1, self._rows // BUFFERS_OF_REPETITION)
        for start in range(0, hidden_md.shape[0], rows):
            repeated = None if repetition is None else partial(repetition.apply, start=start)
            chunk = hidden_md[start : start + rows], targets[start : start + rows], temperature, repeated
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._score_chunk, *chunk, use_reentrant=False))
            else:
                parts.append(self._score_chunk(*chunk))
        if not parts:
            dtype = result_dtype(hidden_md.dtype)
            logprobs, none = hidden_md.new_zeros(targets.shape, dtype=dtype), hidden_md.new_zeros(0, dtype=dtype)
            return logprobs + 0.0 * hidden_md.sum(), none if entropy else None
        logprobs = torch.cat([part[0] for part in parts])
        return logprobs, torch.cat([part[1] for part in parts]) if entropy else None

    def _score_chunk(
        self, hidden_md: Tensor, targets_mk: Tensor, temperature: float, repeated: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        logits = self.logits(hidden_md)
        if repeated is not None:
            logits = repeated(logits)
        log_p = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
        columns = targets_mk if targets_mk.dim() == 2 else targets_mk.unsqueeze(1)
        taken = log_p.gather(1, columns)
        # a vocabulary entry switched off has log p = -inf and p = 0; it adds nothing to the entropy
        entropy = -(log_p.exp() * log_p.clamp_min(-1000.0)).sum(-1)
        return (taken if targets_mk.dim() == 2 else taken.squeeze(1)), entropy


def _added(head: LowRank, hidden_md: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to the product of a head: rows (M, R) and a weight (V, R), in the dtype of the hidden states."""
    assert head.a is not None and head.b is not None
    rows_md = hidden_md if head.dropout is None else head.dropout(hidden_md)
    return rows_md @ (head.scale * head.a).to(hidden_md.dtype).t(), head.b.to(hidden_md.dtype)
