"""What each tool takes; the docstrings are what an assistant reads."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Pick = str | dict[str, Any]


class Arguments(BaseModel):
    """Unknown names are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Message(Arguments):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Row(Arguments):
    """One training example, in one of three forms: `messages`; `prompt` with `completion`; `tokens`."""

    messages: list[Message] | None = None
    """A conversation. The assistant's messages train, everything else is context."""
    prompt: str | None = None
    """A raw text, without chat markup, that the completion follows. It does not train."""
    completion: str | None = None
    """Raw text that trains, an end-of-text token after it; a blank between prompt and completion must stand in one."""
    tokens: list[int] | None = None
    """Token ids, at least 2; each predicts the next one."""
    weights: list[float] | None = None
    """With `tokens`: one number for each token, how much predicting it counts. Default: 1 for all."""
    fields: dict[str, list[float]] | None = None
    """With `tokens`: what a loss reads, such as `advantages` or `old_logprobs`; one number for each token but the
    first."""


class Prompt(Arguments):
    """Where sampling begins, in one of three forms."""

    messages: list[Message] | None = None
    """A conversation; the assistant speaks next."""
    text: str | None = None
    """A raw text to continue, without chat markup."""
    tokens: list[int] | None = None
    """Token ids."""


class Nothing(Arguments):
    """No arguments."""


class NewSession(Arguments):
    """A model to train."""

    base: str = ""
    """Name of a base model, from `list_models`. Left out with `checkpoint`."""
    adapter: Pick | None = None
    """What trains: {"name": "lora", "rank": 16}, or "full" for all weights. Default: the server's choice."""
    optimizer: Pick | None = None
    """Such as {"name": "adamw", "learning_rate": 0.0002}. With LoRA a learning rate of 0.0001 to 0.001 is usual, with
    "full" 0.00001 to 0.0001. Default: the server's choice."""
    schedule: Pick | None = None
    """Of the learning rate: "constant", or with train.max_steps "cosine" or "linear". Default: the server's choice."""
    train: dict[str, Any] | None = None
    """`seed` (whole number), `max_grad_norm` (clip the gradient's L2 norm, 0 is off), `max_steps`, `max_length` (tokens
    of the longest row)."""
    checkpoint: str | None = None
    """Id of a checkpoint to begin with, in place of a base model."""
    restore_optimizer: bool = True
    """With `checkpoint`: take the optimizer's state too, to continue as if training had not stopped."""


class OfSession(Arguments):
    """A session."""

    session: str
    """Id that `new_session` gave."""


class Rows(OfSession):
    """Rows of a call."""

    rows: list[Row] = Field(min_length=1)
    """All examples of this call."""


class ForwardBackward(Rows):
    """Arguments of `forward_backward`."""

    loss: Pick = "cross_entropy"
    """A loss by name, or {"name": ..., options}. `cross_entropy` is supervised fine-tuning; `importance_sampling`,
    `ppo`, `cispo` and `dro` read the fields `old_logprobs` and `advantages`."""
    normalizer: Literal["step", "sum"] = "step"
    """`step`: the mean over the weights of this call's rows. `sum`: a plain sum, for a step that is spread over several
    calls."""


class Forward(Rows):
    """Arguments of `forward`."""

    loss: Pick | None = None
    """A loss to evaluate; `backward` then needs no gradients. Default: only score the rows."""


class Backward(OfSession):
    """Arguments of `backward`."""

    handle: int
    """From `forward`, since the last step."""
    grads: list[list[float]] | None = None
    """dL/dlogprob: for each row a number for each token but the first, as `forward` returned logprobs. Default: the
    gradient of the loss that `forward` was given."""


class Step(OfSession):
    """Arguments of `step`."""

    learning_rate: float | None = Field(default=None, gt=0)
    """For this step alone. Default: the session's optimizer and schedule."""
    max_grad_norm: float | None = Field(default=None, ge=0)
    """For this step alone: clip the gradient's L2 norm to this; 0 is off."""


class Logprobs(Rows):
    """Arguments of `logprobs`."""

    role: Literal["policy", "reference"] = "policy"
    """`reference` is the model without its adapter: how it was before training."""


class Generate(OfSession):
    """Arguments of `generate`."""

    prompts: list[Prompt] = Field(min_length=1)
    """Each is sampled by itself."""
    max_tokens: int = Field(default=64, ge=1, le=4096)
    """New tokens of each completion, at most."""
    temperature: float = Field(default=0.7, ge=0)
    """0 takes the likeliest token always."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the likeliest tokens that hold this share together."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Of these, sample among those that have at least this share of the likeliest one's probability; 0 is all."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    """Above 1, what stands in the prompt or the completion already is less likely to come again; 1 is off."""
    n: int = Field(default=1, ge=1, le=64)
    """Completions of each prompt."""
    seed: int = 0
    """The same seed gives the same completions."""
    stop: list[str] = Field(default_factory=list, max_length=16)
    """Texts that end a completion, in addition to the model's own end of an answer."""


class Save(OfSession):
    """Arguments of `save`."""

    name: str
    """Letters, digits, '.', '_' and '-'; not used before in this session."""
    kind: Literal["state", "weights"] = "state"
    """`state` is everything that trains, to continue later, and the weights; `weights` is the artifact alone."""
    overwrite: bool = False
    """Replace a checkpoint of this name."""


class Load(OfSession):
    """Arguments of `load`."""

    checkpoint: str
    """Id of a checkpoint of the same base and adapter."""
    optimizer: bool = True
    """Take everything that trains, not only the weights."""


class ListCheckpoints(Arguments):
    """Arguments of `list_checkpoints`."""

    session: str | None = None
    """Only those of this session."""


class OfCheckpoint(Arguments):
    """A checkpoint."""

    checkpoint: str
    """Its id."""


class OfCall(Arguments):
    """A call that was not finished."""

    call: str
    """The id that came with `state: queued`."""


class OfRun(Arguments):
    """One run of a recipe."""

    run: str
    """Its name, as list_runs has it."""


class StartRun(Arguments):
    """A run to begin."""

    recipe: str
    """Name of a recipe's file in the server's folder, `recipe.yaml`."""
    name: str
    """What the run will be called; no run may be called so yet."""
    overrides: list[str] = []
    """Settings that replace those of the recipe, as `train.max_steps=10`."""
