"""The method `ebft_strided` samples blocks along a document together, and compares them with the document's own
tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from finetooth_hooks import Engine, Options, Pick, Prepared, StepReport
from finetooth_hooks.capabilities import METHOD
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.engine import RoleModel
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Method
from finetooth_hooks.rollouts import Prompt, Rollout
from finetooth_hooks.sampling import Sampling
from finetooth_methods.batched import BatchedMethod, train_step
from finetooth_methods.reference import ROLE as FEATURES
from finetooth_methods.reference import Reference, ReferenceOptions, ReferencePolicy
from finetooth_rollouts.checked_sampler import CheckedSampler
from finetooth_rollouts.data import among_kept, most_kept
from finetooth_rollouts.health import Health
from finetooth_toolbox.combined_losses import combined
from numpy.typing import NDArray
from pydantic import Field, model_validator

from finetooth_ebft.features import Pooling, judged, pooled, whitener
from finetooth_ebft.healthy import healthy
from finetooth_ebft.method import ADVANTAGES, alone


class StridedOptions(Options):
    """Options of `ebft_strided`. The feature network is `reference`: the policy without its adapter, a frozen copy, or
    another model."""

    stride: int = Field(default=8, ge=1)
    """Tokens from the start of one block to the start of the next."""
    context_length: int = Field(default=8, ge=1)
    """Fewest tokens of the document before the first block. A block reads all of the document before it, so its
    log-probabilities are those of the model that is used later."""
    generate_max_len: int = Field(default=8, ge=1)
    """Tokens of a block, which is compared with as many tokens of the document."""
    n_samples_per_prompt: int = Field(default=4, ge=1)
    """Sampled versions of each block."""
    min_completion_prefix: int = Field(default=0, ge=0)
    """Tokens that train before the first block, if the row has a prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of sampling, and of the trained policy. The cross entropy uses it too, so the default is 1, at which
    a model is measured; others take 0.6."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens whose probabilities add up to this, and train the policy over that set; 1
    is all."""
    feature_layers: list[Annotated[float, Field(ge=0, le=1)]] = Field(default=[0.25, 0.5, 0.75], min_length=1)
    """As in `ebft`."""
    embed_method: Pooling = "last_token"
    """As in `ebft`, over the tokens of a block."""
    use_whitening: bool = False
    """As in `ebft`, over the blocks of a batch."""
    alignment_coef: float = Field(default=1.0, ge=0)
    """Weight of the cosine similarity to the document's feature."""
    diversity_coef: float = Field(default=1.0, ge=0)
    """Penalty for similarity to the other versions of the block."""
    advantage_estimator: Literal["rloo", "group_norm", "reinforce"] = "rloo"
    """As in `ebft`, also with one version of a block."""
    rl_coef: float = Field(default=1.0, ge=0)
    """Weight of the policy gradient: the mean of -A log p over all sampled tokens."""
    ce_coef: float = Field(default=0.0, ge=0)
    """Weight of the cross entropy on the rows' own tokens. 0.03 is balanced."""
    reference: Reference = Field(default_factory=ReferenceOptions)
    """The feature network."""
    sampler: Pick = "engine"
    """Samples the blocks."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        return alone(given, "n_samples_per_prompt")

    @model_validator(mode="after")
    def _compares(self) -> StridedOptions:
        if self.n_samples_per_prompt == 1 and self.advantage_estimator != "reinforce":
            raise ValueError(
                f"n_samples_per_prompt is 1, and {self.advantage_estimator} compares versions of a block: give 2 or "
                "more, or set advantage_estimator to reinforce"
            )
        if self.ce_coef and self.top_p < 1:
            raise ValueError("ce_coef trains on tokens that nothing samples: leave top_p out, or set ce_coef to 0")
        return self


@dataclass(frozen=True)
class Block:
    """A place in a document where tokens are sampled.

    Attributes:
        row: index of the document in the batch.
        anchor: number of the document's tokens before it.
        rollouts: its sampled versions.
    """

    row: int
    anchor: int
    rollouts: tuple[Rollout, ...]


class Strided(BatchedMethod):
    """Energy-based fine-tuning (arXiv:2603.12248) in strides: a step samples blocks along the documents of a batch,
    then reads and trains all blocks of a document in one pass, as a tree (`Datum.parents`)."""

    def __init__(self, options: StridedOptions, context: Context) -> None:
        parts = [(context.loss("surrogate", setting="method"), options.rl_coef)]
        if options.ce_coef:
            parts.append((context.loss("cross_entropy", setting="method"), options.ce_coef))
        super().__init__(context, replace(combined(parts), temperature=options.temperature))
        self._options, self._reference = options, ReferencePolicy(options.reference)
        self._rows: Method = context.build("method", {"name": "sft"}, setting="method")
        self._sampler = CheckedSampler.of(context, options.sampler)
        self._needs = tuple(f"hidden:{float(depth)}" for depth in options.feature_layers)
        self._health = Health(context, healthy(options.feature_layers, options.embed_method, options.use_whitening))

    @property
    def capabilities(self) -> frozenset[str]:
        """`own_engine`, if its sampler uses the engine."""
        return self._sampler.capabilities & frozenset(METHOD)

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """The feature network."""
        return self._reference.roles

    def prepare(self) -> Prepared:
        """Read and tokenise the rows, as `sft` does.

        Raises:
            DataError: no row is long enough for a block.
        """
        prepared, options = self._rows.prepare(), self._options
        data = [datum for datum in self._rows.data if anchors(datum, options)]
        short = len(self._rows.data) - len(data)
        if not data:
            raise DataError(
                self._rows.data[0].id,
                f"no row has {options.context_length} tokens followed by {options.generate_max_len} tokens that train",
                action="give longer rows, or lower method.generate_max_len or method.context_length",
            )
        if short:
            self._context.note(
                f"{short} rows are too short for a block of {options.generate_max_len} tokens; the run leaves them out"
            )
        batches = self.begin(data)
        return Prepared(batches.total_steps, batches.steps_per_epoch, prepared.report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch of documents."""
        batches = self._begun()
        for indices in batches:
            rows = [self._data[i] for i in indices]
            blocks, flops = self._drawn(engine, rows, batches.step)
            trees = [tree(row, [b for b in blocks if b.row == i]) for i, row in enumerate(rows)]
            advantages, metrics = self._judged(engine, trees, rows, blocks)
            data = self._taught(trees, rows, blocks, advantages)
            report = train_step(engine, data, self._loss, batches.epoch)
            self._reference.follow(engine, report.step)
            report = replace(report, metrics={**report.metrics, **metrics}, flops=report.flops + flops)
            self._health.watch(report)
            yield report

    def _drawn(self, engine: Engine, rows: Sequence[Datum], step: int) -> tuple[list[Block], float]:
        """Blocks along the rows, all sampled together, and the number of floating-point operations."""
        options = self._options
        seed = int(self._context.generator("blocks", step).integers(2**31))
        n = options.n_samples_per_prompt
        length = options.generate_max_len
        sampling = Sampling(length, options.temperature, top_p=options.top_p, n=n, stop_ids=(), seed=seed)
        places = [(i, anchor) for i, row in enumerate(rows) for anchor in anchors(row, options)]
        prompts = [
            Prompt(rows[i].id, f"{rows[i].id}@{step}.{i}.{a}", tuple(map(int, tokens_of(rows[i])[:a])))
            for i, a in places
        ]
        sampled = self._sampler.sample(engine, prompts, sampling)
        drawn = [tuple(sampled.rollouts[at : at + n]) for at in range(0, len(sampled.rollouts), n)]
        return [Block(i, a, of) for (i, a), of in zip(places, drawn, strict=True)], sampled.flops

    def _judged(
        self, engine: Engine, trees: Sequence[Datum], rows: Sequence[Datum], blocks: Sequence[Block]
    ) -> tuple[list[float], dict[str, float]]:
        """The advantage of each version of each block, and metrics."""
        options, length = self._options, self._options.generate_max_len
        outputs = engine.forward(list(trees), role=FEATURES, returns=self._needs, train=False).outputs
        sampled, references, at = [], [], [len(row) + 1 for row in rows]

        def feature(row: int, first: int) -> NDArray[np.float64]:
            states = [outputs[row][name][first : first + length] for name in self._needs]
            return pooled(states, options.embed_method, 0)

        for block in blocks:
            references.append(feature(block.row, block.anchor))
            for _ in block.rollouts:
                sampled.append(feature(block.row, at[block.row] + 1))  # after the token that it continues
                at[block.row] += length + 1
        features, truths = np.stack(sampled), np.stack(references)
        if options.use_whitening:
            white = whitener(features)
            features, truths = features @ white, truths @ white
        groups = np.split(features, len(blocks))
        rewards, metrics = judged(groups, truths, alignment=options.alignment_coef, diversity=options.diversity_coef)
        scored = [replace(r, reward=float(reward)) for r, reward in zip(
            (r for block in blocks for r in block.rollouts), np.concatenate(rewards), strict=True)]  # fmt: skip
        advantages = np.asarray(ADVANTAGES[options.advantage_estimator](scored), dtype=np.float64)
        return advantages.tolist(), {**metrics, "ebft/advantages_std": float(advantages.std())}

    def _taught(
        self, trees: Sequence[Datum], rows: Sequence[Datum], blocks: Sequence[Block], advantages: Sequence[float]
    ) -> list[Datum]:
        """The trees with the fields of the loss."""
        length, given = self._options.generate_max_len, iter(advantages)
        each, data = 1.0 / (len(advantages) * length), []
        most = most_kept(rollout for block in blocks for rollout in block.rollouts)
        for i, (datum, row) in enumerate(zip(trees, rows, strict=True)):
            own = [rollout for block in blocks if block.row == i for rollout in block.rollouts]
            policy, gain = np.zeros(len(datum)), np.zeros(len(datum))
            firsts = [len(row) + 1 + place * (length + 1) for place in range(len(own))]
            for first in firsts:
                policy[first : first + length], gain[first : first + length] = each, next(given)
            targets, kept = among_kept(datum.targets, [*zip(firsts, own, strict=True)], most)
            counted = np.zeros(len(datum))
            if self._options.ce_coef:
                counted[: len(row)] = row.fields.get("weights", row.mask)
            fields = {"token_weights": policy, "advantages": gain, "weights": counted, **kept}
            data.append(replace(datum, targets=targets, mask=(policy != 0) | (counted != 0), fields=fields))
        return data


def tokens_of(row: Datum) -> NDArray[np.int64]:
    """(S,) all tokens of a row, the last target included."""
    return np.append(row.tokens, row.targets[-1])


def anchors(row: Datum, options: StridedOptions) -> range:
    """Starts of blocks: every `stride` tokens, from `context_length` on and after the untrained beginning, while the
    row still has enough tokens for the comparison."""
    trains = np.flatnonzero(row.mask)
    first = max(options.context_length, (int(trains[0]) + 1 if trains.size else 0) + options.min_completion_prefix)
    last = int(trains[-1]) + 2 if trains.size else 0
    return range(first, last - options.generate_max_len + 1, options.stride)


def tree(row: Datum, blocks: Sequence[Block]) -> Datum:
    """A row's tokens, followed by every version of every block as a branch from the token before it. A branch repeats
    that token, so that each version predicts its own first token."""
    document = tokens_of(row)
    inputs, targets, parents = [document], [np.append(document[1:], document[-1])], [np.arange(len(document)) - 1]
    at = len(document)
    for block in blocks:
        for rollout in block.rollouts:
            drawn = np.array([document[block.anchor - 1], *rollout.tokens], dtype=np.int64)
            inputs.append(drawn)
            targets.append(np.append(drawn[1:], drawn[-1]))
            parents.append(np.append(block.anchor - 2, at + np.arange(len(rollout.tokens))))
            at += len(drawn)
    tokens = np.concatenate(inputs)
    shape: Any = tokens.shape
    return Datum(
        (TokenChunk(tokens),), np.concatenate(targets), mask=np.ones(shape, dtype=np.bool_),
        parents=np.concatenate(parents), id=row.id,
    )  # fmt: skip
