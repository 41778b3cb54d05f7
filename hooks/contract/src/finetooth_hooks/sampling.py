"""Sampling: settings, and completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    from finetooth_hooks.data.datum import MediumChunk


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        max_tokens: the most new tokens.
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        n: completions per prompt.
        stop: strings that end a completion; the text ends before, the tokens include it.
        stop_ids: token ids that end a completion, included in its tokens. None: the family's stop tokens; empty: never.
        seed: the same seed gives the same tokens in every batch.
        drawn: return the sampling distribution too: `Completion.drawn_logprobs` and `Completion.kept`. Engines without
            support leave them empty.
        schema: a JSON schema, as JSON, for completions that end by themselves: tokens that cannot lead to it are
            excluded. Without spaces between its parts. None: any text. Capability `schema` of an engine, as for the two
            that follow; at most one of the three.
        regex: the same for a regular expression that the whole text matches, without look-around and backreferences.
        grammar: the same for a context-free grammar, in the form that llguidance reads (Lark's, with the rule `start`).
        min_p: of the tokens that `top_k` and `top_p` left, only those with at least this share of the likeliest one's
            probability, at the temperature; 0 is off. Capability `min_p` of an engine.
        repetition_penalty: divides the positive logit of every token that the prompt or the completion already has, and
            multiplies a negative one, before the temperature (Keskar et al., 2019, arXiv:1909.05858, section 4.1); 1 is
            off. Capability `repetition_penalty` of an engine.
        presence_penalty: subtracted from the logit of every token that the completion has already; 0 is off. Capability
            `additions` of an engine, as for the two that follow.
        frequency_penalty: the same for each time that the completion has it; 0 is off.
        logit_bias: distinct token ids with constants to add to their logits.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    seed: int = 0
    drawn: bool = False
    schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def form(self) -> tuple[str, str] | None:
        """The constraint of a completion: `schema`, `regex` or `grammar`, and its text; None: any text."""
        forms = (("schema", self.schema), ("regex", self.regex), ("grammar", self.grammar))
        return next(((kind, text) for kind, text in forms if text is not None), None)

    @property
    def adds(self) -> bool:
        """Whether there are penalties or biases on logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)

    @property
    def leaves_out(self) -> bool:
        """Whether some tokens are excluded."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def as_it_is(self) -> bool:
        """Whether tokens are sampled from the model's unchanged distribution."""
        plain = self.temperature == 1 and self.repetition_penalty == 1 and self.form is None
        return plain and not self.leaves_out and not self.adds


@dataclass(frozen=True)
class ShownPrompt(Sequence[int]):
    """A prompt with pictures, sounds or videos: a sequence of token ids, with the model's placeholders.

    Attributes:
        tokens: the ids.
        media: index of the first placeholder of each, and the medium, in order.
    """

    tokens: tuple[int, ...]
    media: tuple[tuple[int, MediumChunk], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self.tokens[index]


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        tokens: new token ids, the stop token included.
        logprobs: their log-probabilities under the unscaled model (temperature 1).
        text: decoded, without stop token and stop string.
        stop: why it ended.
        weights_version: optimizer steps done when it was sampled.
        drawn_logprobs: log-probabilities of the tokens under the sampling distribution, at the sampling temperature,
            with the repetition penalty and among the tokens that `top_k`, `top_p`, `min_p` and a schema left; empty
            without `Sampling.drawn`.
        kept: candidate ids of each token; empty without `Sampling.drawn`, or if no token was excluded. If a schema
            allows most of the vocabulary it may list the excluded tokens instead: -1 - id of each.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop: Literal["stop", "length"]
    weights_version: int
    drawn_logprobs: tuple[float, ...] = ()
    kept: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Generated(Sequence[list[Completion]]):
    """Result of `generate`: a sequence with the completions of each prompt, in the prompts' order.

    Attributes:
        completions: `sampling.n` for each prompt.
        flops: floating-point operations that were executed, padding included; 0 if not counted.
    """

    completions: list[list[Completion]]
    flops: float = field(default=0.0, compare=False)

    def __len__(self) -> int:
        return len(self.completions)

    @overload
    def __getitem__(self, place: int) -> list[Completion]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[Completion]]: ...
    def __getitem__(self, place: int | slice) -> list[Completion] | list[list[Completion]]:
        return self.completions[place]
