"""The toy: embedding, causal mean, one tanh layer, head; forward and hand-derived backward in float64.

With tokens x_1..x_N, matrices E (V, D), W (D, D), H (V, D) and vectors b (D,), c (V,):

    e_t = E[x_t]
    m_t = e_t + (e_1 + ... + e_t) / t
    h_t = tanh(W m_t + b)
    z_t = H h_t + c,   logp_t = z_t - logsumexp(z_t)

Every matrix is base + delta; only the deltas train, and the base alone is the reference. With a scalar head, a vector v
(D,) and a number u among the deltas, the value of a position is v . h_t + u.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MATRICES = ("E", "W", "H")


@dataclass(frozen=True)
class Pass:
    """What a forward pass keeps for its backward: one row per position.

    Attributes:
        factor: (N, V) by what the logits were multiplied before `logp` was taken of them.
    """

    tokens: NDArray[np.int64]
    mixed: Array
    hidden: Array
    logp: Array
    factor: Array


@dataclass
class Toy:
    """Weights and arithmetic.

    Attributes:
        base: E, W, H, b, c; frozen.
        delta: E, W, H; what trains. Empty: the base alone.
    """

    base: Mapping[str, Array]
    delta: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def random(cls, seed: int, vocab: int, width: int) -> Toy:
        """Weights from a seed."""
        rng = np.random.default_rng(seed)
        shapes = {"E": (vocab, width), "W": (width, width), "H": (vocab, width), "b": (width,), "c": (vocab,)}
        return cls({name: rng.normal(size=shape) * 0.5 for name, shape in shapes.items()})

    def weight(self, name: str, reference: bool = False) -> Array:
        """A matrix as it computes."""
        base = self.base[name]
        return base if reference or name not in self.delta else base + self.delta[name]

    def forward(self, tokens: NDArray[np.int64], reference: bool = False, penalty: float = 1.0) -> Pass:
        """Log-probabilities (N, V) of the next token at each of N positions, under a repetition penalty."""
        embedded = self.weight("E", reference)[tokens]
        mixed = embedded + np.cumsum(embedded, axis=0) / np.arange(1, len(tokens) + 1)[:, None]
        hidden = np.tanh(mixed @ self.weight("W", reference).T + self.base["b"])
        logits = hidden @ self.weight("H", reference).T + self.base["c"]
        factor = np.ones_like(logits)
        for n in range(len(tokens)):
            penalise(factor[n], logits[n], tokens[: n + 1], penalty)
        logits = logits * factor
        peak = logits.max(axis=1, keepdims=True)
        logp = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
        return Pass(tokens, mixed, hidden, logp, factor)

    def values(self, done: Pass) -> Array:
        """(N,) what the head says of each position."""
        return done.hidden @ self.delta["v"] + self.delta["u"]

    def backward(self, done: Pass, grad_logits: Array, grad_values: Array | None = None) -> dict[str, Array]:
        """Gradients of the deltas from dL/dz (N, V), and dL/dvalue (N,) where there is a head."""
        grad_logits = grad_logits * done.factor
        grads = {"H": grad_logits.T @ done.hidden}
        grad_hidden = grad_logits @ self.weight("H")
        if grad_values is not None:
            grads["v"], grads["u"] = grad_values @ done.hidden, grad_values.sum(keepdims=True)
            grad_hidden = grad_hidden + grad_values[:, None] * self.delta["v"]
        grad_pre = grad_hidden * (1.0 - done.hidden**2)
        grads["W"] = grad_pre.T @ done.mixed
        grad_mixed = grad_pre @ self.weight("W")
        scaled = grad_mixed / np.arange(1, len(done.tokens) + 1)[:, None]
        grad_embedded = grad_mixed + np.cumsum(scaled[::-1], axis=0)[::-1]
        grads["E"] = np.zeros_like(self.base["E"])
        np.add.at(grads["E"], done.tokens, grad_embedded)
        return grads


def penalise(factor: Array, logits: Array, there: Sequence[int] | NDArray[np.int64], penalty: float) -> None:
    """Write to the factor (V,) of logits (V,): those of tokens that are there are divided by the penalty, those below 0
    multiplied by it (Keskar et al. 2019, section 4.1)."""
    of = np.unique(there)
    factor[of] = np.where(logits[of] > 0, 1 / penalty, penalty)


def gather(done: Pass, targets: NDArray[np.int64]) -> Array:
    """(N,) or (N, K) log-probabilities of targets."""
    index = targets if targets.ndim == 2 else targets[:, None]
    picked = np.take_along_axis(done.logp, index, axis=1)
    return picked if targets.ndim == 2 else picked[:, 0]


def new_head(generator: np.random.Generator, width: int) -> dict[str, Array]:
    """Deltas of a new head."""
    return {"v": generator.normal(scale=0.3, size=width), "u": np.zeros(1)}


def last_true(mask: NDArray[np.bool_]) -> int:
    """The last position that counts; 0 where none does."""
    return int(np.flatnonzero(mask)[-1]) if mask.any() else 0


def head_output(name: str, done: Pass, toy: Toy, mask: NDArray[np.bool_]) -> Array:
    """`values` (N,), or `scores` ()."""
    values = np.where(mask, toy.values(done), 0.0)
    return values if name == "values" else np.asarray(values[last_true(mask)])


def entropy(done: Pass) -> Array:
    """(N,) entropy in nats."""
    return -(np.exp(done.logp) * done.logp).sum(axis=1)


def grad_of_targets(done: Pass, targets: NDArray[np.int64], grad: Array) -> Array:
    """dL/dz from dL/dlogprob: sum over targets k of g_k (onehot_k - p)."""
    index = targets if targets.ndim == 2 else targets[:, None]
    values = grad if grad.ndim == 2 else grad[:, None]
    result = -np.exp(done.logp) * values.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    np.add.at(result, (rows, index), values)
    return result


def grad_of_entropy(done: Pass, grad: Array) -> Array:
    """dL/dz from dL/dentropy: -p (logp + entropy) times g."""
    return -np.exp(done.logp) * (done.logp + entropy(done)[:, None]) * grad[:, None]
