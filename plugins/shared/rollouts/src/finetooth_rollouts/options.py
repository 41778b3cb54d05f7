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
    """A form that answers are held to while they are written: one of the four."""

    regex: str | None = Field(default=None, min_length=1)
    """A regular expression that the whole answer matches, without look-around and backreferences."""
    json_schema: dict[str, Any] | None = Field(default=None, alias="json")
    """A JSON schema."""
    choice: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """The answers that there are."""
    grammar: str | None = Field(default=None, min_length=1)
    """A context-free grammar as llguidance reads it: Lark's, with the rule `start`."""

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
    """What is sampled, how it is scored, and what a step makes of it."""

    reference_is_for_kl: ClassVar[bool] = True
    """Whether the reference is asked for nothing but the KL to it."""
    rewards: list[Pick] = Field(default=["exact_match"], min_length=1)
    """What judges answers: names of rewards, or mappings with `name`, its options and perhaps a `weight` (1), a
    `label` that metrics call it by, and `required`. Their weighted sum is the reward; one that says None of an answer
    leaves it out of that sum. An answer is not trained that all leave out, or one that has `required: true`."""
    environment: Pick | None = None
    """What answers the policy and scores it, over several turns: a name, or a mapping with `name`, its options and
    perhaps a `weight` (1). Left out, an answer is one turn. With it, `rewards` judge the last turn too if they
    are given, and else it alone gives the reward."""
    max_turns: int = Field(default=8, ge=1)
    """Turns of the policy in an episode of the environment."""
    environment_timeout: float = Field(default=60.0, gt=0)
    """Seconds that a call of the environment may take."""
    environment_failure: Literal["leave_out", "fail"] | float = "leave_out"
    """What an error or a time-out of the environment makes of a rollout: it is left out and counted, it ends the run,
    or it is trained with this reward."""
    sampler: Pick = "engine"
    """Where rollouts come from."""
    max_logp_difference: float | None = Field(default=None, gt=0)
    """By how much, on average over the tokens of a step, the sampler's log-probabilities may differ from the trainer's;
    beyond it, the sampler has other weights or another distribution, and the run ends before the step. Left out, 0.2
    where the weights that train drew every token, and 1 where earlier ones drew some (`prefetch`, `replay_groups`, a
    sampler whose weights stay as they are, kept rollouts). Below 0.1 is healthy."""
    num_generations: int = Field(default=8, ge=1)
    """Rollouts of each prompt: a group. `train.batch_size` counts prompts."""
    max_completion_length: int = Field(default=256, ge=1)
    """Tokens of an answer at most; with an environment, of a turn."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Strings that end an answer: its text ends before, and what it was trained on includes them. With an environment
    left out, which says itself what ends a turn."""
    stop_ids: list[Annotated[int, Field(ge=0)]] | None = None
    """Token ids that end an answer and are its last token; left out, those of the model's family, and with an empty
    list only `stop` and the length end it. To have more than the family's, name these too."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; the policy is trained at the same one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """The smallest set of tokens that reaches it is drawn from, and the policy is trained among them; 1 is all."""
    top_k: int = Field(default=0, ge=0)
    """So many of the likeliest tokens are drawn from, and the policy is trained among them; 0 is all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Of these, those are drawn from that have at least this share of the likeliest one's probability, and the policy
    is trained among them; 0 is all."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Of every token that stands in the prompt or the answer already, the logit is divided by it where it is positive
    and multiplied with it elsewhere, and so it is in training; 1 is off."""
    guided: GuidedOptions | None = None
    """A form that answers are held to while they are written, with an environment each turn: `regex`, `json`, `choice`
    or `grammar`. Tokens that cannot lead there are not drawn, and the policy is trained among the others. An answer
    ends where nothing more can follow; one that `max_completion_length` or `stop` ends sooner is not whole. Where a
    form allows much, thousands of ids go with each token; `top_k` leaves few. With the samplers `engine`, `vllm` and
    `openai`; servers (vLLM 0.11 and later) compile the form themselves, and need `top_k`."""
    num_iterations: int = Field(default=1, ge=1)
    """How often a batch of rollouts is trained (mu)."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps in which it is trained each time; groups stay whole."""
    loss_type: LossType = "grpo"
    """How tokens are weighted, and for `cispo`, `sapo` and `vespo` also what is made of the ratio."""
    reference: Reference = Field(default_factory=ReferenceOptions)
    """What the policy is held to by `beta`, and whether it follows; a mapping, or only its `policy`."""
    top_entropy_quantile: float = Field(default=1.0, ge=0, le=1)
    """The share of a step's tokens that advantages move, those of the highest entropy (Wang et al., 2025, 2506.01939);
    0.2 is the paper's, and 1 all. The KL holds every token, an entropy bonus those that are left. It takes one more
    pass a step."""
    entropy_target: float | None = Field(default=None, gt=0)
    """Mean entropy of the tokens, in nats, below which a bonus holds it (He et al., 2025, 2505.22312): after a step
    that is not above it the weight of the bonus grows by `entropy_coef_delta`, else it shrinks by as much, and it
    counts only behind a step of the former kind. Begin a little below the `entropy` of the first steps. Left out,
    `entropy_coef` stays."""
    entropy_coef_delta: float = Field(default=0.005, gt=0)
    """How much the weight moves in a step, with `entropy_target`."""
    entropy_coef_min: float = Field(default=0.0, ge=0)
    """The smallest weight, with `entropy_target`."""
    entropy_coef_max: float = Field(default=1.0, gt=0)
    """The largest weight, with `entropy_target`."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether the KL is a part of the loss, or its sum over a rollout (k1) is taken from its reward."""
    mask_truncated_completions: bool = False
    """Whether answers that were cut off are left out of the loss; they count in their groups' advantages."""
    skip_zero_advantage_batches: bool = True
    """Whether a batch of rollouts that teaches nothing, since no advantage differs from 0, is passed over without a
    step, and rollouts without an advantage are left out of the others; the gradients are the same. Not with `beta`,
    `entropy_coef` or `entropy_target`, which such rollouts have a part in; with `top_entropy_quantile` only whole
    batches are, since what the others say counts in its quantile."""
    dynamic_sampling: bool = False
    """Whether groups whose rewards are all equal are dropped, and more prompts sampled until a batch is full (DAPO)."""
    prefetch: int = Field(default=0, ge=0)
    """How many batches of prompts are answered ahead of the one that trains, by the weights of that moment; rewards
    then judge them while the engine trains. 0 is one after the other."""
    max_staleness: int | None = Field(default=None, ge=0)
    """Optimizer steps at most between the weights that draw a token and those that first train on it; left out, what
    `prefetch` comes to. Prompts are answered ahead only as far as it allows."""
    sync_every: int = Field(default=1, ge=1)
    """Optimizer steps from one time that a sampler gets the weights to the next: prompts are answered ahead only at
    multiples of it. A batch that is wanted before, since others were passed over, is answered by the weights of then.
    At most `max_staleness`."""
    partial_rollouts: int = Field(default=0, ge=0)
    """So many tokens of an answer are written at a time where prompts are answered ahead: before each step the answers
    in waiting grow by as many, by the weights of then, and every token keeps the version and the log-probability that
    it was drawn by. So do the turns of an environment's episodes, and a turn that is at its end is answered; the
    environment must be one whose episodes can be played again (`seeded`). 0 writes answers whole."""
    partial_groups: bool = False
    """With `partial_rollouts`, whether a batch is trained without its unfinished groups, if `max_staleness` allows
    it: they are continued, and are trained with the next batch."""
    streaming_groups: int = Field(default=0, ge=0)
    """So many prompts of a batch are answered at a time, and rewards judge their answers while the next are written;
    0 is all of them."""
    replay_groups: int = Field(default=0, ge=0)
    """How many groups of earlier batches are kept, of those whose rewards differ, to take the place of groups whose
    rewards are all equal; each at most once."""
    replay_staleness: int = Field(default=64, ge=1)
    """Optimizer steps at most between the weights that drew a group and those that train it again."""
    reroll_groups: int = Field(default=0, ge=0)
    """How many prompts to which no answer had a reward above 0 are asked again with the prompts of a batch."""
    reroll_start: float = Field(default=0.5, ge=0, lt=1)
    """The share of the run's batches after which they are."""
    keep_rollouts: bool = True
    """Whether they are written into the run folder, for `ft rollouts`."""

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
