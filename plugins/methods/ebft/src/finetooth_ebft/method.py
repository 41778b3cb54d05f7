"""The method `ebft`, structured: answers to prompts, by any sampler, against the row's reference answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.errors import DataError
from finetooth_hooks.plan import Pick
from finetooth_hooks.reports import Prepared
from finetooth_hooks.rollouts import Rollout
from finetooth_methods.reference import ROLE as FEATURES
from finetooth_rollouts.advantages import AdvantagesFn, Floats, group_relative, groups_of, leave_one_out, rewards_of
from finetooth_rollouts.asking import for_sampled
from finetooth_rollouts.method import RolloutMethod, surrogate_loss
from finetooth_rollouts.options import RolloutOptions
from finetooth_toolbox.combined_losses import combined
from pydantic import Field, model_validator

from finetooth_ebft.bounds import BoundedSampler
from finetooth_ebft.features import Pooling, judged, pooled, whitener

BEFORE_REWARDS = ("dynamic_sampling", "replay_groups", "reroll_groups")
"""Options that choose groups by rewards when they are drawn, before features are known."""


ADVANTAGES: Mapping[str, AdvantagesFn] = {
    "rloo": leave_one_out,
    "group_norm": group_relative,
    "reinforce": rewards_of,  # the reward itself, without a baseline
}


class EbftOptions(RolloutOptions):
    """Options of `ebft`. The feature network is `reference`: the policy without its adapter, a frozen copy, or another
    model."""

    mode: Literal["structured"] = "structured"
    """Whole answers to prompts. Blocks along a document are the method `ebft_strided`."""
    reference_column: str = Field(default="answer", min_length=1)
    """Column of a row with the reference answer, as text."""
    rewards: list[Pick] = Field(default_factory=list)
    """Rewards that are added to that of the features; usually none."""
    feature_layers: list[Annotated[float, Field(ge=0, le=1)]] = Field(default=[0.25, 0.5, 0.75], min_length=1)
    """Depths at which the network's states are read, as fractions: 0 is the embeddings, 1 the last layer. States of
    each are divided by their length, and stand side by side."""
    embed_method: Pooling = "last_token"
    """What of a sequence's states is its feature: those of the last token, their mean, the mean over the answer, or
    those a quarter, half and three quarters of the way side by side."""
    use_whitening: bool = False
    """Whether features are whitened by those of the batch's answers, so that no direction outweighs the others. Over
    few answers it says little: their number, `train.batch_size` times `num_generations`, should be well above 8."""
    alignment_coef: float = Field(default=1.0, ge=0)
    """Weight of the cosine to the reference answer's feature."""
    diversity_coef: float = Field(default=1.0, ge=0)
    """What likeness to the other answers of a group costs. With 2 answers a group, 0 is advised."""
    adaptive_max_tokens: bool = True
    """Whether an answer may have `gt_length_multiplier` times as many tokens as its reference answer, rounded up, and
    `max_completion_length` at most."""
    gt_length_multiplier: float = Field(default=1.5, ge=0.1)
    """See `adaptive_max_tokens`."""
    advantage_estimator: str = Field(default="rloo", pattern="^(rloo|group_norm|reinforce)$")
    """From rewards to advantages: against the mean of the group's others, over the group's deviation, or the reward
    itself."""
    rl_coef: float = Field(default=1.0, ge=0)
    """Weight of the policy gradient."""
    ce_coef: float = Field(default=0.0, ge=0)
    """Weight of cross entropy on the reference answer. 0.03 is balanced, 0.1 outweighs the features."""

    @model_validator(mode="after")
    def _of_features(self) -> EbftOptions:
        if self.num_generations == 1 and self.advantage_estimator != "reinforce":
            raise ValueError(
                f"num_generations is 1, and {self.advantage_estimator} compares the answers to a prompt: give 2 or "
                "more, or set advantage_estimator to reinforce"
            )
        early = [name for name in BEFORE_REWARDS if getattr(self, name)]
        if early:
            raise ValueError(f"{early[0]} looks at rewards before the features are known: leave it out")
        if self.environment is not None:
            raise ValueError("an episode has no reference answer: leave environment out")
        if self.partial_rollouts and self.adaptive_max_tokens:
            raise ValueError(
                "adaptive_max_tokens bounds whole answers, and partial_rollouts writes them in stretches: set one of "
                "them to false or 0"
            )
        if not self.alignment_coef and not self.diversity_coef and not self.rewards:
            raise ValueError("alignment_coef and diversity_coef are both 0, so nothing is rewarded: raise one")
        narrowed = self.top_p < 1 or self.top_k or self.min_p or self.repetition_penalty != 1
        if self.ce_coef and narrowed:
            raise ValueError(
                "ce_coef trains reference answers, which are not drawn: leave top_p, top_k, min_p and "
                "repetition_penalty out, or set ce_coef to 0"
            )
        return self


def build(options: EbftOptions, context: Context) -> Ebft:
    """Builder of `ebft`."""
    return Ebft(options, context)


class Ebft(RolloutMethod):
    """Energy-based fine-tuning (arXiv:2603.12248) over whole answers."""

    def __init__(self, options: EbftOptions, context: Context) -> None:
        policy = surrogate_loss(options, context)
        parts = [(policy, options.rl_coef)]
        if options.ce_coef:
            parts.append((context.loss("cross_entropy", setting="method"), options.ce_coef))
        loss = combined(parts)
        super().__init__(options, context, ADVANTAGES[options.advantage_estimator], loss=for_sampled(loss, options))
        self._ebft = options
        self.sampler = bounded = BoundedSampler.around(self.sampler, context)
        self._bounds = bounded.most
        self._drops = self._drops and not options.ce_coef  # an answer without an advantage has a reference all the same
        self._needs = tuple(f"hidden:{float(depth)}" for depth in options.feature_layers)
        self._answers: dict[str, tuple[int, ...]] = {}

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """The feature network."""
        return self._reference.roles

    def prepare(self) -> Prepared:
        """Read prompts and reference answers.

        Raises:
            DataError: a row without a reference answer.
        """
        prepared = super().prepare()
        column, own = self._ebft.reference_column, self._ebft.stop_ids
        ends = self.context.renderer.stop_ids if own is None else own
        for id_, task in self._prompts.tasks.items():
            answer = task.columns.get(column)
            if not isinstance(answer, str) or not answer:
                columns = ", ".join(sorted(task.columns)) or "no other column than the prompt"
                raise DataError(
                    id_,
                    f"the column {column!r} holds no reference answer; the row has {columns}",
                    action="give every row one as text, or name its column in method.reference_column",
                )
            tokens = (*self.context.tokenizer.encode(answer), *ends[:1])
            most, prompt = self.context.facts.max_positions, len(self._prompts.by_id[id_])
            if most and prompt + len(tokens) > most:
                raise DataError(
                    id_,
                    f"{prompt} tokens of the prompt and {len(tokens)} of the reference answer are more than the {most} "
                    "that the model reads",
                    action="shorten or remove the row",
                )
            self._answers[id_] = tokens
        if self._ebft.adaptive_max_tokens:
            bounds = {id_: math.ceil(self._ebft.gt_length_multiplier * len(of)) for id_, of in self._answers.items()}
            self._bounds.update(bounds)
        return prepared

    def with_advantages(self, engine: Engine, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], dict[str, float]]:
        """Rewards by the features of answers and reference answers, and advantages from them."""
        options, groups = self._ebft, groups_of(rollouts)
        firsts = [rollouts[group.start] for group in groups]
        sampled = self._features(engine, [(rollout.prompt, rollout.tokens) for rollout in rollouts])
        references = self._features(engine, [(rollout.prompt, self._answers[rollout.id]) for rollout in firsts])
        if options.use_whitening:
            white = whitener(sampled)
            sampled, references = sampled @ white, references @ white
        scored = list(rollouts)
        rewards, watched = judged(
            [sampled[group] for group in groups], references, alignment=options.alignment_coef,
            diversity=options.diversity_coef,
        )  # fmt: skip
        for i, reward in enumerate(np.concatenate(rewards).tolist()):
            whole = reward + (rollouts[i].reward or 0.0)
            scored[i] = replace(rollouts[i], reward=whole, rewards={**rollouts[i].rewards, "features": reward})
        weighed, metrics = super().with_advantages(engine, scored)
        metrics |= watched
        spread = [rollout.advantages[0] for rollout in weighed if rollout.advantages]
        return weighed, {**metrics, "ebft/advantages_std": float(np.std(spread)) if spread else 0.0}

    def _features(self, engine: Engine, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Floats:
        """(n, D') features of answers behind their prompts."""
        data = [_read(f"features:{i}", (*prompt, *answer)) for i, (prompt, answer) in enumerate(pairs)]
        outputs = engine.forward(data, role=FEATURES, returns=self._needs, train=False).outputs
        return np.stack([
            pooled([of[name] for name in self._needs], self._ebft.embed_method, len(prompt))
            for of, (prompt, _) in zip(outputs, pairs, strict=True)
        ])  # fmt: skip

    def training_data(self, engine: Engine, rollouts: Sequence[Rollout], weights: Sequence[float]) -> list[Datum]:
        """The answers, and behind them the reference answer of each group where it trains too."""
        data = super().training_data(engine, rollouts, weights)
        if not self._ebft.ce_coef:
            return data
        none = [replace(of, fields={**of.fields, "weights": np.zeros(len(of))}) for of in data]
        firsts = [rollouts[group.start] for group in groups_of(rollouts)]
        return none + [self._reference_datum(first, data[0].fields) for first in firsts]

    def _reference_datum(self, rollout: Rollout, fields: Mapping[str, object]) -> Datum:
        """The reference answer behind the prompt: cross entropy counts it, the policy gradient does not."""
        answer = self._answers[rollout.id]
        tokens = np.array([*rollout.prompt, *answer], dtype=np.int64)
        trains = np.arange(len(tokens) - 1) >= len(rollout.prompt) - 1
        return Datum(
            (TokenChunk(tokens[:-1]),), tokens[1:], mask=trains,
            fields={**{name: np.zeros(len(trains)) for name in fields}, "weights": trains.astype(np.float64)},
            id=f"{rollout.id}:reference",
        )  # fmt: skip


def _read(name: str, tokens: Sequence[int]) -> Datum:
    """Tokens that are read to the last one; what they predict is not asked."""
    ids = np.array(tokens, dtype=np.int64)
    return Datum((TokenChunk(ids),), ids, mask=np.ones(len(ids), dtype=np.bool_), id=name)
