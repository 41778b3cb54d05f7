"""Rollouts, from which a policy learns, and their samplers.

A method gets rollouts from a sampler, scores them, gives each an advantage, and trains on per-token weights. Text is
never tokenised again: the sampled tokens train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:  # reports import this module, and are read at every start
    from finetooth_hooks.engine import Engine
    from finetooth_hooks.sampling import Sampling

T = TypeVar("T")

End = Literal["stop", "length", "turns", "error", "timeout"]
"""How a rollout ends, see `Rollout.outcome`."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the policy.

    Attributes:
        id: its source, `train.jsonl:17`.
        group: key that its rollouts share. A row that is used twice in a run has two.
        tokens: token ids.
    """

    id: str
    group: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One sampled sequence.

    A sampler fills the first part, the scoring code the rest. Of an episode of several turns it is all of them, with
    the environment's texts in between, or one of the turns: see `own` and `episode`.

    Attributes:
        id: of the prompt.
        group: of the prompt; rollouts of one group answer the same prompt and stand next to each other.
        prompt: (P,) token ids of what was asked.
        tokens: (T,) sampled token ids, the stop token included.
        logprobs: (T,) log-probability of each of the policy's tokens **under the sampling distribution**: at the
            sampling temperature, with the repetition penalty, and among the tokens that `top_k`, `top_p`, `min_p` and a
            schema left; 0 for others.
        versions: (T,) weights version (optimizer steps done) that sampled each token; -1 for others.
        text: the tokens decoded, without the stop token; of an episode its last turn.
        outcome: how it ended: `stop` by itself, `length` where it was cut off, `turns` at an episode's limit of turns,
            `error` and `timeout` if the environment failed, independent of the policy.
        kept: (T,) candidate ids of each token, if `top_k`, `top_p`, `min_p` or a schema left some out; else empty.
            Negative numbers are -1 - id of the excluded tokens, as in `Completion.kept`.
        rewards: by the name of the reward; None if that one did not score it.
        reward: their weighted sum; None without a score.
        advantages: (T,) of each token; empty while unknown, or if the rollout does not train.
        fields: (T,) numbers of each token by name, for a loss that reads more than advantages: a critic's values.
        own: (T,) whether the policy wrote the token; only such tokens train. Empty: it wrote them all.
        episode: key of its episode, whose rollouts are adjacent and have the same reward; empty without an environment.
        transcript: all tokens decoded, of an episode.
        failure: why the environment failed.
        metrics: what the environment counted.
    """

    id: str
    group: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    text: str
    outcome: End
    kept: tuple[tuple[int, ...], ...] = ()
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    advantages: tuple[float, ...] = ()
    fields: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    own: tuple[bool, ...] = ()
    episode: str = ""
    transcript: str = ""
    failure: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens that the policy wrote."""
        return sum(self.own) if self.own else len(self.tokens)

    def of_policy(self, values: Sequence[T]) -> tuple[T, ...]:
        """The values of the tokens that the policy wrote.

        Args:
            values: (T,).
        """
        return tuple(value for value, own in zip(values, self.own, strict=True) if own) if self.own else tuple(values)

    def __post_init__(self) -> None:
        for name in ("logprobs", "versions", "kept", "advantages", "own"):
            count = len(getattr(self, name))
            if count != len(self.tokens) and not (name in ("kept", "advantages", "own") and count == 0):
                raise ValueError(f"rollout of {self.id!r}: {count} {name} for {len(self.tokens)} tokens")
        for name, values in self.fields.items():
            if len(values) != len(self.tokens):
                raise ValueError(f"rollout of {self.id!r}: {len(values)} {name} for {len(self.tokens)} tokens")


@dataclass(frozen=True)
class Sampled:
    """What a sampler returns.

    Attributes:
        rollouts: `sampling.n` of each prompt, in the prompts' order.
        flops: floating-point operations that were executed here; 0 if not counted.
    """

    rollouts: tuple[Rollout, ...]
    flops: float = 0.0


class Sampler(Protocol):
    """Produces rollouts. A sampler derives from `finetooth_hooks.SamplerBase`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities.SAMPLER`."""
        ...

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """Sample `sampling.n` rollouts of each prompt.

        Args:
            engine: the one that trains.
            sampling: `sampling.seed` decides the tokens: the same prompts, settings, weights and seed give the same.

        Raises:
            EngineError: a prompt or a setting that cannot be sampled.
        """
        ...
