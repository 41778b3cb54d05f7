"""Options of every method that learns from rollouts; a method adds its own to them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Literal

from finetooth_hooks.options import Options
from finetooth_hooks.plan import Pick
from finetooth_methods.reference import PRECOMPUTED, Reference, ReferenceOptions
from finetooth_modelfiles.schemas import problem_of
from pydantic import Field, model_validator

from finetooth_rollouts.policy_options import PolicyOptions
from finetooth_rollouts.token_weights import LossType

GUIDED = {
    "guided_decoding_regex": "regex",
    "structured_outputs_regex": "regex",
    "guided_regex": "regex",
    "guided_json": "json",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "schema": "json",
}
"""What others call an answer that is held to a form while it is written, and the key of `guided`; TRL and axolotl say
`vllm_` before it."""
ENTROPY_STEERING = frozenset({"entropy_coef_delta", "entropy_coef_min", "entropy_coef_max"})


class GuidedOptions(Options):
    """A form that constrains answers while they are sampled: one of the four."""

    regex: str | None = Field(default=None, min_length=1)
    """A regular expression that matches the whole answer, without look-around and backreferences."""
    json_schema: dict[str, Any] | None = Field(default=None, alias="json")
    """A JSON schema."""
    choice: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """The possible answers."""
    grammar: str | None = Field(default=None, min_length=1)
    """A context-free grammar in Lark's syntax as llguidance reads it, with the rule `start`."""

    @property
    def form(self) -> tuple[str, str]:
        """As `Sampling.form` has it."""
        if self.json_schema is not None:
            return "schema", json.dumps(self.json_schema)
        if self.grammar is not None:
            return "grammar", self.grammar
        escaped = (re.sub(r"[][\\.+*?()|{}^$]", r"\\\g<0>", text) for text in self.choice)
        return "regex", self.regex if self.regex is not None else "|".join(escaped)

    @model_validator(mode="after")
    def _one(self) -> GuidedOptions:
        if [self.regex, self.json_schema, self.choice or None, self.grammar].count(None) != 3:
            raise ValueError("give one of regex, json, choice and grammar")
        problem = problem_of(*self.form)
        if problem:
            raise ValueError(f"answers cannot be held to it: {problem}")
        return self


class RolloutOptions(PolicyOptions):
    """Options of sampling, scoring and training on rollouts."""

    reference_is_for_kl: ClassVar[bool] = True
    """Whether the reference is asked for nothing but the KL to it."""
    rewards: list[Pick] = Field(default=["exact_match"], min_length=1)
    """Rewards that score answers: names, or mappings with `name`, its options and perhaps `weight` (1), `label` (its
    name in metrics) and `required`. The reward of an answer is their weighted sum, without those that return None. An
    answer does not train if all return None, or one that has `required: true`."""
    environment: Pick | None = None
    """Answers the policy over several turns and scores it: a name, or a mapping with `name`, its options and perhaps a
    `weight` (1). Left out, an answer is one turn. With an environment, `rewards` also score the last turn if they are
    set; otherwise the reward is the environment's alone."""
    max_turns: int = Field(default=8, ge=1)
    """Most turns of the policy in one episode of the environment."""
    environment_timeout: float = Field(default=60.0, gt=0)
    """Time limit for one call of the environment, in seconds."""
    environment_failure: Literal["leave_out", "fail"] | float = "leave_out"
    """What happens to a rollout if its environment fails or times out: `leave_out` leaves it out and counts it, `fail`
    ends the run, and a number is its reward."""
    sampler: Pick = "engine"
    """Where rollouts come from."""
    max_logp_difference: float | None = Field(default=None, gt=0)
    """Largest allowed difference between the sampler's and the trainer's log-probabilities, as a mean over the tokens
    of a step. Beyond it the run ends before the step, since the sampler has other weights or another distribution.
    Default: 0.2 if the current weights sampled every token, 1 if earlier ones sampled some (`prefetch`,
    `replay_groups`, a sampler with fixed weights, kept rollouts). Below 0.1 is healthy."""
    num_generations: int = Field(default=8, ge=1)
    """Rollouts for each prompt (the group size). `train.batch_size` counts prompts."""
    max_completion_length: int = Field(default=256, ge=1)
    """Most tokens of an answer; with an environment, of a turn."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Strings that end an answer. The answer's text ends before the string; its training tokens include it. Leave it
    out with an environment, which says itself what ends a turn."""
    stop_ids: list[Annotated[int, Field(ge=0)]] | None = None
    """Token ids that end an answer and are its last token. Default: those of the model's family. With an empty list
    only `stop` and the length end an answer. To add ids, list the family's too."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the policy trains at the same one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens whose probabilities add up to this, and train the policy over that set; 1
    is all."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many of the likeliest tokens, and train the policy over them; 0 is all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Of these, sample from tokens with at least this share of the likeliest token's probability, and train the policy
    over them; 0 is all."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """For tokens that occur in the prompt or in the answer so far, divides positive logits by this and multiplies
    others by it, in sampling and in training; 1 is off."""
    guided: GuidedOptions | None = None
    """Constrains answers (with an environment, each turn) to a form while they are sampled: `regex`, `json`, `choice`
    or `grammar`. Forbidden tokens are never sampled, and the policy trains over the allowed ones. An answer ends where
    the form allows nothing more; if `max_completion_length` or `stop` ends it earlier, it is incomplete. If a form
    allows many tokens, thousands of ids are stored with each token; `top_k` leaves few. Works with the samplers
    `engine`, `vllm` and `openai`; servers (vLLM 0.11 and later) compile the form themselves, and need `top_k`."""
    num_iterations: int = Field(default=1, ge=1)
    """How often each batch of rollouts trains (mu)."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps into which each of these passes is divided; groups stay whole."""
    loss_type: LossType = "grpo"
    """How tokens are weighted; for `cispo`, `sapo` and `vespo` also how the ratio enters the loss."""
    reference: Reference = Field(default_factory=ReferenceOptions)
    """The model that `beta` keeps the policy close to, and whether it moves; a mapping, or only its `policy`."""
    top_entropy_quantile: float = Field(default=1.0, ge=0, le=1)
    """Share of a step's tokens that advantages train: those with the highest entropy (Wang et al., 2025,
    arXiv:2506.01939). The paper uses 0.2; 1 is all. The KL applies to every token, an entropy bonus to the selected
    ones. Takes one more forward pass a step."""
    entropy_target: float | None = Field(default=None, gt=0)
    """An entropy bonus keeps the mean entropy of tokens above this, in nats (He et al., 2025, arXiv:2505.22312). After
    a step at or below it the weight of the bonus grows by `entropy_coef_delta`, otherwise it shrinks by as much; the
    bonus applies only right after a step of the first kind. Begin a little below the `entropy` of the first steps. Left
    out, `entropy_coef` stays fixed."""
    entropy_coef_delta: float = Field(default=0.005, gt=0)
    """Change of the bonus's weight in each step, with `entropy_target`."""
    entropy_coef_min: float = Field(default=0.0, ge=0)
    """Smallest weight of the bonus, with `entropy_target`."""
    entropy_coef_max: float = Field(default=1.0, gt=0)
    """Largest weight of the bonus, with `entropy_target`."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether the KL is part of the loss, or a rollout's summed KL (k1) is subtracted from its reward."""
    mask_truncated_completions: bool = False
    """Whether the loss leaves out answers that were cut off; they still count in the advantages of their group."""
    skip_zero_advantage_batches: bool = True
    """Whether to skip the step of a batch whose advantages are all 0, and to leave rollouts without an advantage out of
    other batches; the gradients are the same. Not with `beta`, `entropy_coef` or `entropy_target`, for which such
    rollouts matter. With `top_entropy_quantile` only whole batches are skipped, since all rollouts count in the
    quantile."""
    dynamic_sampling: bool = False
    """Whether to drop groups whose rewards are all equal, and to sample more prompts until the batch is full (DAPO)."""
    prefetch: int = Field(default=0, ge=0)
    """Number of batches to sample ahead of the one that trains, with the weights of that moment. Rewards score them
    while the engine trains. 0 samples and trains in turn."""
    max_staleness: int | None = Field(default=None, ge=0)
    """Most optimizer steps between the weights that sample a token and those that first train on it. Default: what
    `prefetch` amounts to. Sampling runs ahead only as far as this allows."""
    sync_every: int = Field(default=1, ge=1)
    """The sampler gets new weights every so many optimizer steps, and samples ahead only then. A batch that is needed
    earlier, because others were skipped, is sampled with the weights of that moment. At most `max_staleness`."""
    partial_rollouts: int = Field(default=0, ge=0)
    """When sampling ahead, write this many tokens of an answer at a time. Before each step every waiting answer grows
    by as many, with the current weights; every token keeps the version and the log-probability that it was sampled
    with. Turns of an environment's episodes grow the same way, and a finished turn is answered; the environment must be
    able to replay its episodes (`seeded`). 0 writes whole answers."""
    partial_groups: bool = False
    """With `partial_rollouts`: whether a batch trains without its unfinished groups, if `max_staleness` allows it. They
    continue, and train with the next batch."""
    streaming_groups: int = Field(default=0, ge=0)
    """Sample this many prompts of a batch at a time, so that rewards score their answers while the next are sampled; 0
    samples the whole batch at once."""
    replay_groups: int = Field(default=0, ge=0)
    """Number of earlier groups with differing rewards to keep. They replace later groups whose rewards are all equal,
    each at most once."""
    replay_staleness: int = Field(default=64, ge=1)
    """Most optimizer steps between the weights that sampled a group and those that train it again."""
    reroll_groups: int = Field(default=0, ge=0)
    """Number of earlier prompts without any reward above 0 to ask again with each batch."""
    reroll_start: float = Field(default=0.5, ge=0, lt=1)
    """Share of the run's batches after which prompts are asked again."""
    keep_rollouts: bool = True
    """Whether to write rollouts into the run folder, for `ft rollouts`."""

    @property
    def beta_of_loss(self) -> float:
        return self.beta if self.kl_in == "loss" else 0.0

    @property
    def judges(self) -> list[Pick]:
        """What gives the reward: the environment first, if there is one, then the rewards."""
        if self.environment is None:
            return list(self.rewards)
        return [self.environment, *(self.rewards if "rewards" in self.model_fields_set else ())]

    @model_validator(mode="before")
    @classmethod
    def _named_otherwise(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            word = GUIDED.get(str(key).removeprefix("vllm_"))
            if word:
                raise ValueError(f"{key} is called guided here: write guided: {{{word}: ...}}")
        return given

    @model_validator(mode="after")
    def _together(self) -> RolloutOptions:
        if self.loss_type == "luspo" and self.importance_sampling_level != "sequence":
            raise ValueError("loss_type luspo is over sequences: set importance_sampling_level to sequence")
        if self.importance_sampling_level == "sequence" and self.loss_type in ("cispo", "vespo"):
            raise ValueError(f"loss_type {self.loss_type} is over tokens: leave importance_sampling_level out")
        of_loss = {name for name in ("kl", "use_bias_correction_kl") if name in self.model_fields_set}
        if self.beta and self.kl_in == "reward" and of_loss and (self.kl != "k1" or "kl" not in of_loss):
            raise ValueError(
                f"{', '.join(sorted(of_loss))}: the KL is taken from the reward as k1 (kl_in: reward), so leave "
                f"{'them' if len(of_loss) > 1 else 'it'} out, or set kl_in to loss"
            )
        if self.reference.policy == PRECOMPUTED:
            raise ValueError("reference precomputed is for rows that are there before the run, and answers are not")
        if self.reference.sync_every is not None and self.reference_is_for_kl and not self.beta:
            raise ValueError("reference.sync_every moves what beta holds the policy to: set beta too, or leave it out")
        if self.entropy_target is None and self.model_fields_set & ENTROPY_STEERING:
            named = ", ".join(sorted(self.model_fields_set & ENTROPY_STEERING))
            raise ValueError(f"{named}: of a bonus that is steered, so set entropy_target too, or leave it out")
        if self.entropy_target is not None and not (
            self.entropy_coef_min <= self.entropy_coef <= self.entropy_coef_max
        ):
            raise ValueError(
                f"entropy_coef is {self.entropy_coef:g}, not between entropy_coef_min ({self.entropy_coef_min:g}) and "
                f"entropy_coef_max ({self.entropy_coef_max:g})"
            )
        if self.max_staleness is not None and not self.prefetch:
            raise ValueError("max_staleness bounds what is answered ahead: set prefetch too, or leave it out")
        if self.partial_rollouts and not self.prefetch:
            raise ValueError("partial_rollouts is about what is answered ahead: set prefetch too, or leave it out")
        self._check_sync()
        if self.guided is not None and self.partial_rollouts:
            raise ValueError("guided holds answers that are written at once to a form: leave partial_rollouts out")
        if self.partial_groups and not self.partial_rollouts:
            raise ValueError("partial_groups is about answers that are written in parts: set partial_rollouts too")
        if self.environment is not None and (self.stop or self.stop_ids is not None):
            raise ValueError("stop and stop_ids end single answers, and an environment ends its turns: leave them out")
        if self.environment is not None and self.streaming_groups:
            raise ValueError("streaming_groups is for single answers, and an environment plays episodes: leave it out")
        if self.dynamic_sampling and (self.replay_groups or self.reroll_groups):
            raise ValueError("dynamic_sampling fills batches itself: leave replay_groups and reroll_groups out")
        if self.replay_groups and self.num_generations < 2:
            raise ValueError("replay_groups keeps groups whose rewards differ: set num_generations to 2 or more")
        return self

    def _check_sync(self) -> None:
        """
        Raises:
            ValueError: draws that begin every `sync_every` steps cannot serve the steps between.
        """
        if self.sync_every == 1:
            return
        if not self.prefetch or self.partial_rollouts:
            raise ValueError(
                "sync_every is about whole answers that are written ahead: set prefetch and leave partial_rollouts "
                "out, or leave sync_every out"
            )
        reached = self.prefetch * self.num_iterations * self.mini_batches
        for name, most in (("max_staleness", self.max_staleness), ("the steps that prefetch comes to", reached)):
            if most is not None and self.sync_every > most:
                raise ValueError(f"sync_every is {self.sync_every}, above {name} ({most}): lower it, or raise that")
