"""The method `ebft`, structured: compares sampled answers to prompts with the rows' reference answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.data.examples import Conversation, Message, Task
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.environments import Observation
from finetooth_hooks.errors import DataError
from finetooth_hooks.plan import Pick
from finetooth_hooks.reports import Prepared
from finetooth_hooks.rollouts import Rollout
from finetooth_methods.reference import ROLE as FEATURES
from finetooth_rollouts.advantages import (
    AdvantagesFn,
    Floats,
    group_relative,
    groups_of,
    last_of_episodes,
    leave_one_out,
    rewards_of,
)
from finetooth_rollouts.asking import for_sampled
from finetooth_rollouts.health import Health
from finetooth_rollouts.method import RolloutMethod, surrogate_loss
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.prompts import later_turns, messages_of
from finetooth_rollouts.sequences import Sequences
from finetooth_toolbox.combined_losses import combined
from finetooth_toolbox.messages.asked import as_asked
from pydantic import Field, model_validator

from finetooth_ebft.bounds import BoundedSampler
from finetooth_ebft.features import Pooling, judged, pooled, whitener
from finetooth_ebft.healthy import healthy

CONVERSATION = "conversation"
"""The environment with rows that have a reference answer to each turn."""
BEFORE_REWARDS = ("dynamic_sampling", "replay_groups", "reroll_groups")
"""Options that choose groups by rewards during sampling, when features are unknown."""


ADVANTAGES: Mapping[str, AdvantagesFn] = {
    "rloo": leave_one_out,
    "group_norm": group_relative,
    "reinforce": rewards_of,  # the reward itself, without a baseline
}


def alone(given: Any, count: str) -> Any:
    """The given options, with the estimator `reinforce` if they set none and `count` is 1."""
    single = isinstance(given, Mapping) and given.get(count) == 1
    return {"advantage_estimator": "reinforce", **given} if single else given


class EbftOptions(RolloutOptions):
    """Options of `ebft`. The feature network is `reference`: the policy without its adapter, a frozen copy, or another
    model."""

    mode: Literal["structured", "strided"] = "structured"
    """`structured`: whole answers to prompts. For blocks along a document use the method `ebft_strided`; `strided` is
    refused here."""
    reference_column: str = Field(default="answer", min_length=1)
    """Column of the row that holds the reference answer, as text; with `environment: conversation` that of the first
    turn."""
    environment: Pick | None = None
    """`conversation`, for rows read with `format: {name: task, turns: sequential}`: the model writes all of the
    assistant's turns, each after its own earlier ones, and the whole is compared with the whole reference. Left out, an
    answer is one turn."""
    rewards: list[Pick] = Field(default_factory=list)
    """Rewards to add to the reward of the features; usually none."""
    reasoning_column: str = ""
    """Column of a row with the reasoning before its reference answer, which the renderer writes as the family does:
    `reasoning` with `format: {name: task, turns: last, reasoning: reasoning}`. It may be empty in a row; without the
    option, references have none."""
    feature_layers: list[Annotated[float, Field(ge=0, le=1)]] = Field(default=[0.25, 0.5, 0.75], min_length=1)
    """Depths at which hidden states are read, as fractions: 0 is the embeddings, 1 the last layer. The states of each
    depth are divided by their norm and concatenated."""
    embed_method: Pooling = "last_token"
    """Which states form a sequence's feature: those of the last token, their mean, the mean over the answer, or those
    at a quarter, half and three quarters of the way, concatenated."""
    use_whitening: bool = False
    """Whether to whiten features with those of the batch's answers, so that no direction dominates. Few answers give a
    poor estimate: `train.batch_size` times `num_generations` should be well above 8."""
    alignment_coef: float = Field(default=1.0, ge=0)
    """Weight of the cosine similarity to the reference answer's feature."""
    diversity_coef: float = Field(default=1.0, ge=0)
    """Penalty for similarity to the other answers of the group. With 2 answers in a group, 0 is advised."""
    adaptive_max_tokens: bool = True
    """Whether an answer's limit is `gt_length_multiplier` times the tokens of its reference answer, rounded up, and at
    most `max_completion_length`."""
    gt_length_multiplier: float = Field(default=1.5, ge=0.1)
    """See `adaptive_max_tokens`."""
    advantage_estimator: str = Field(default="rloo", pattern="^(rloo|group_norm|reinforce)$")
    """How rewards become advantages: minus the mean of the group's other answers, divided by the group's deviation, or
    the reward itself. With only one answer to a prompt the default is `reinforce`."""
    rl_coef: float = Field(default=1.0, ge=0)
    """Weight of the policy gradient."""
    ce_coef: float = Field(default=0.0, ge=0)
    """Weight of the cross entropy on the reference answer. 0.03 is balanced, 0.1 outweighs the features."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        return alone(given, "num_generations")

    @model_validator(mode="after")
    def _of_features(self) -> EbftOptions:
        if self.mode != "structured":
            raise ValueError("mode is strided, which is the method ebft_strided: set method.name to it, without mode")
        if self.num_generations == 1 and self.advantage_estimator != "reinforce":
            raise ValueError(
                f"num_generations is 1, and {self.advantage_estimator} compares the answers to a prompt: give 2 or "
                "more, or set advantage_estimator to reinforce"
            )
        early = [name for name in BEFORE_REWARDS if getattr(self, name)]
        if early:
            raise ValueError(f"{early[0]} needs the rewards before the features that give them are known: leave it out")
        played = self.environment if isinstance(self.environment, str | None) else str(self.environment.get("name"))
        if played is not None and played.rpartition(":")[2] != CONVERSATION:
            raise ValueError(
                f"episodes of {played} have no reference answers: leave environment out, or set it to "
                f"{CONVERSATION} if the rows are conversations"
            )
        if self.partial_rollouts and self.adaptive_max_tokens:
            raise ValueError(
                "adaptive_max_tokens bounds whole answers, and partial_rollouts writes an answer in parts: leave "
                "one of them out"
            )
        if not self.alignment_coef and not self.diversity_coef and not self.rewards:
            raise ValueError("alignment_coef and diversity_coef are both 0, so nothing is rewarded: raise one")
        narrowed = self.top_p < 1 or self.top_k or self.min_p or self.repetition_penalty != 1 or self.guided
        if self.ce_coef and narrowed:
            raise ValueError(
                "ce_coef trains on reference answers, which nothing samples: leave top_p, top_k, min_p, "
                "repetition_penalty and guided out, or set ce_coef to 0"
            )
        return self


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
        self._health = Health(context, healthy(options.feature_layers, options.embed_method, options.use_whitening))
        self._drops = self._drops and not options.ce_coef  # an answer without an advantage still has a reference
        self._needs = tuple(f"hidden:{float(depth)}" for depth in options.feature_layers)
        self._references: dict[str, Sequence[Rollout]] = {}

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """The feature network."""
        return self._reference.roles

    def prepare(self) -> Prepared:
        """Read prompts and reference answers.

        Raises:
            DataError: a row has no reference answer.
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
            later = later_turns(task) if self._ebft.environment is not None else []
            thought = task.columns.get(self._ebft.reasoning_column) if self._ebft.reasoning_column else ""
            turns = [
                (shown, said, (*self.context.tokenizer.encode(said), *ends[:1]))
                for shown, said in [(messages_of(task), answer), *later[: self._ebft.max_turns - 1]]
            ]
            if thought:
                turns[0] = (
                    *turns[0][:2],
                    reasoned(self.context, id_, task, Message("assistant", answer, str(thought))),
                )
            whole = references(self.context, id_, turns, task.tools)
            most, longest = self.context.facts.max_positions, max(len(of.prompt) + len(of.tokens) for of in whole)
            if most and longest > most:
                raise DataError(
                    id_,
                    f"{longest} tokens of the prompt and the reference answer are more than the {most} that the model "
                    "reads",
                    action="shorten or remove the row",
                )
            self._references[id_] = whole
            if self._ebft.adaptive_max_tokens:
                longest = max(len(tokens) for *_, tokens in turns)
                self._bounds[id_] = math.ceil(self._ebft.gt_length_multiplier * longest)
        return prepared

    def with_advantages(self, engine: Engine, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], dict[str, float]]:
        """Computes rewards from the features of answers and reference answers, and advantages from them."""
        options, whole = self._ebft, last_of_episodes(rollouts)
        groups = groups_of(whole)
        sampled = self._features(engine, whole)
        references = self._features(engine, [self._references[whole[group.start].id][-1] for group in groups])
        if options.use_whitening:
            white = whitener(sampled)
            sampled, references = sampled @ white, references @ white
        rewards, watched = judged(
            [sampled[group] for group in groups], references, alignment=options.alignment_coef,
            diversity=options.diversity_coef,
        )  # fmt: skip
        scored, given = [], iter(zip(whole, np.concatenate(rewards).tolist(), strict=True))
        last, reward = next(given)
        for rollout in rollouts:  # rollouts of an episode share one reward
            summed = reward + (rollout.reward or 0.0)
            scored.append(replace(rollout, reward=summed, rewards={**rollout.rewards, "features": reward}))
            if rollout is last:
                last, reward = next(given, (last, reward))
        weighed, metrics = super().with_advantages(engine, scored)
        metrics |= watched
        spread = [rollout.advantages[0] for rollout in weighed if rollout.advantages]
        return weighed, {**metrics, "ebft/advantages_std": float(np.std(spread)) if spread else 0.0}

    def _features(self, engine: Engine, answers: Sequence[Rollout]) -> Floats:
        """Features of answers after their prompts, (n, D')."""
        data = [_read(f"features:{i}", (*of.prompt, *of.tokens)) for i, of in enumerate(answers)]
        outputs = engine.forward(data, role=FEATURES, returns=self._needs, train=False).outputs
        return np.stack([
            pooled([states[name] for name in self._needs], self._ebft.embed_method, len(of.prompt))
            for states, of in zip(outputs, answers, strict=True)
        ])  # fmt: skip

    def training_data(self, engine: Engine, rollouts: Sequence[Rollout], weights: Sequence[float]) -> list[Datum]:
        """The answers, followed by the reference answer of each group if it trains too."""
        data = super().training_data(engine, rollouts, weights)
        if not self._ebft.ce_coef:
            return data
        none = [replace(of, fields={**of.fields, "weights": np.zeros(len(of))}) for of in data]
        firsts = [rollouts[group.start] for group in groups_of(rollouts)]
        said = [of for first in firsts for of in self._references[first.id]]
        return none + [_reference_datum(of, data[0].fields) for of in said]


def references(
    context: Context, id_: str, turns: Sequence[tuple[tuple[Message, ...], str, tuple[int, ...]]], tools: Any
) -> Sequence[Rollout]:
    """The reference answers of a conversation in the form of a policy's episode: one sequence, or a new one for each
    turn whose prompt does not begin with the earlier tokens.

    Args:
        turns: of each turn the shown messages, the answer, and its tokens.
    """
    sequences = Sequences(context.renderer)
    for place, (shown, answer, tokens) in enumerate(turns):
        sequences.see(Observation(shown, tuple(tools) if not place else ()))
        zeros, versions = (0.0,) * len(tokens), (-1,) * len(tokens)
        sequences.wrote(Rollout(id_, id_, sequences.prompt, tokens, zeros, versions, answer, "stop"))
    return sequences.rollouts()


def reasoned(context: Context, id_: str, task: Task, answer: Message) -> tuple[int, ...]:
    """Tokens of an answer with its reasoning, after those of its prompt and up to the end of its turn.

    Raises:
        DataError: the renderer cannot write the answer after its prompt; names the row.
    """
    shown, renderer = messages_of(task), context.renderer
    try:
        row = renderer.render(Conversation((*shown, answer), tuple(task.tools)), train_on="last")
        asked = tuple(renderer.prompt(shown, task.tools))
    except DataError as error:
        raise DataError(id_, error.problem, action=error.action) from None
    written = as_asked(row, asked, context.tokenizer)
    if written is None:
        action = "set data.renderer to one that does, or leave method.reasoning_column out"
        raise DataError(id_, "the renderer cannot write reasoning after its prompt", action=action)
    end = max(place for place, weight in enumerate(written.weights) if weight)
    return written.tokens[len(asked) : end + 1]


def _reference_datum(reference: Rollout, fields: Mapping[str, object]) -> Datum:
    """The prompt with the reference answer: the cross entropy counts it, the policy gradient does not."""
    tokens = np.array([*reference.prompt, *reference.tokens], dtype=np.int64)
    own = np.array(reference.own, dtype=np.bool_) if reference.own else np.ones(len(reference.tokens), dtype=np.bool_)
    trains = np.concatenate([np.zeros(len(reference.prompt) - 1, dtype=np.bool_), own])
    return Datum(
        (TokenChunk(tokens[:-1]),), tokens[1:], mask=trains,
        fields={**{name: np.zeros(len(trains)) for name in fields}, "weights": trains.astype(np.float64)},
        id=f"{reference.id}:reference",
    )  # fmt: skip


def _read(name: str, tokens: Sequence[int]) -> Datum:
    """A datum that reads all tokens; its targets do not matter."""
    ids = np.array(tokens, dtype=np.int64)
    return Datum((TokenChunk(ids),), ids, mask=np.ones(len(ids), dtype=np.bool_), id=name)
