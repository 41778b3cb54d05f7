"""What REST clients send and get, for validation and for the OpenAPI document. Arrays travel as
`finetooth_wire.wire` writes them, or as nested lists."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from finetooth_toolbox.text.nearest import nearest
from pydantic import BaseModel, ConfigDict, FailFast, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from finetooth_server.keeping.model_ids import LONGEST, PATTERN
from finetooth_server.limits.costs import ROWS

Result = TypeVar("Result")


MOST_FAULTS = 100
"""Faults of a request that are told one by one, and names that one of its objects may have: each takes time to tell."""


class Body(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="wrap")
    @classmethod
    def tell_a_few_faults(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report very many faults of a request as one, and an unknown name before all others."""
        count = len(value) if isinstance(value, dict) else 0
        if count > MOST_FAULTS:
            raise PydanticCustomError(
                "too_many", "{count} names do not belong to {body}", {"count": count, "body": cls.__name__}
            )
        try:
            return handler(value)
        except ValidationError as error:
            count = error.error_count()
            if count <= MOST_FAULTS:
                unknown = [
                    InitErrorDetails(type=cls._unknown(str(fault["loc"][0])), loc=fault["loc"], input=fault["input"])
                    for fault in error.errors(include_url=False)
                    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1
                ]
                if unknown:
                    raise ValidationError.from_exception_data(cls.__name__, unknown) from error
                raise
        raise PydanticCustomError("too_many", "{count} values are wrong", {"count": count})

    @classmethod
    def _unknown(cls, name: str) -> PydanticCustomError:
        near = nearest(name, cls.model_fields)
        action = f"did you mean {near}?" if near else f"known: {', '.join(sorted(cls.model_fields)) or 'none'}"
        return PydanticCustomError("unknown_field", "unknown field ({action})", {"action": action})


class EncodedArray(Body):
    """An array as base64 of its little-endian bytes; bfloat16 is read as the equal float32."""

    dtype: Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "bool"]
    shape: list[int] = Field(max_length=8)
    base64: str


Array = EncodedArray | list[Any]


class NewSession(Body):
    """A model to train."""

    base: str = ""
    """Name of a base model that is served; left out with `checkpoint`."""
    adapter: str | dict[str, Any] | None = None
    """As in a recipe: `{"name": "lora", "rank": 16}`; `"full"` trains everything."""
    optimizer: str | dict[str, Any] | None = None
    """As in a recipe."""
    schedule: str | dict[str, Any] | None = None
    """As in a recipe."""
    train: dict[str, Any] | None = None
    """`seed`, `max_grad_norm`, `max_steps`, `max_length`."""
    strategy: str | dict[str, Any] | None = None
    """How to spread the model over devices: `ddp`, `fsdp-hybrid`, `zero-1` or `zero-2`, by name or with `devices` and
    `replicas`. Others are refused, and all where the server trains each model on one device."""
    checkpoint: str | None = None
    """Begin with this checkpoint, and with the recipe that it was made with."""
    restore_optimizer: bool = True
    """With `checkpoint`: take the optimizer's state too, not only the weights. If not, `optimizer`, `schedule` and
    `train` may be others than those of the checkpoint."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Kept with the session; for the client's own use."""
    id: str | None = Field(default=None, pattern=PATTERN, min_length=8, max_length=LONGEST)
    """Chosen by the client, so that a request that is sent twice makes one session."""


class Data(Body):
    """Data of a call."""

    data: Annotated[list[dict[str, Any]], FailFast(), Field(max_length=ROWS)]
    """Each with `tokens` (or `input`, a list of chunks), `targets` (for each token the one after it: the server shifts
    nothing), and optionally `mask`, `fields`, `scalars`, `group`, `positions`, `parents`, `id`."""


class Forward(Data):
    """Arguments of `forward`."""

    loss: str | dict[str, Any] | None = None
    """A loss of the catalog, by name or with its options."""
    role: Literal["policy", "reference"] = "policy"
    """`reference` is the policy without its adapter."""
    returns: list[Literal["logprobs", "entropy", "hidden", "logits"]] = ["logprobs"]
    """Outputs to return."""
    positions: list[Array] | None = None
    """For each datum the positions at which `logits` and `hidden` are returned; default is all."""
    normalizer: Literal["step", "sum"] | dict[str, float] | None = None
    """Totals of the whole step, for a step that is split over several calls; `sum` leaves a plain sum."""
    keep: bool = True
    """Keep a handle for `backward`."""


class ForwardBackward(Data):
    """Arguments of `forward_backward`."""

    loss: str | dict[str, Any]
    """A loss of the catalog, by name or with its options."""
    normalizer: Literal["step", "sum"] | dict[str, float] | None = None
    """As for `forward`."""


class HandleBody(Body):
    """What `forward` returned."""

    id: int
    weights_version: int


class Backward(Body):
    """Arguments of `backward`."""

    handle: HandleBody | int
    """Of a forward since the last step."""
    grads: list[Array] | None = None
    """dL/dlogprob for each datum; default is the gradient of the forward's loss."""
    normalizer: Literal["step", "sum"] | dict[str, float] | None = None
    """As for `forward`; not together with `grads`."""


class Settings(Body):
    """Numbers for one step in place of the session's."""

    learning_rate: float | None = None
    max_grad_norm: float | None = None
    optimizer: dict[str, float | list[float]] = Field(default_factory=dict)
    """Options of the optimizer by name: `betas`, `eps`, `weight_decay`."""


class Step(Body):
    """Arguments of `step`."""

    settings: Settings | None = None
    metrics: dict[str, float] | None = None
    """What a schedule that watches a metric may read."""


class Nothing(Body):
    """No arguments, or no result."""


class SamplingBody(Body):
    """How to sample."""

    max_tokens: int = Field(default=128, ge=1, le=2**20)
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: list[tuple[int, float]] = Field(default_factory=list, max_length=1024)
    n: int = Field(default=1, ge=1, le=1024)
    stop: list[str] = Field(default_factory=list, max_length=64)
    stop_ids: list[int] | None = Field(default=None, max_length=4096)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)


class Generate(Body):
    """Arguments of `generate`."""

    prompts: list[Array]
    """Token ids of each prompt."""
    sampling: SamplingBody = SamplingBody()


class Logprobs(Data):
    """Arguments of `logprobs`."""

    role: Literal["policy", "reference"] = "policy"
    """`reference` is the policy without its adapter."""
    top_k: int = Field(default=0, ge=0, le=1024)
    """Also the likeliest tokens at each position."""


class Save(Body):
    """Arguments of `save`."""

    name: str
    kind: Literal["state", "weights"] = "state"
    """`state` is everything that trains; `weights` is enough to sample from."""
    overwrite: bool = False
    ttl: float | None = Field(default=None, gt=0, lt=1e9)
    """Seconds after which it may be removed."""


class Load(Body):
    """Arguments of `load`."""

    checkpoint: str
    """Id of a checkpoint of any of the tenant's sessions."""
    optimizer: bool = True
    """Take everything that trains; false takes the weights alone, and the optimizer starts fresh."""


class NewSampler(Body):
    """Weights to sample from."""

    base: str = ""
    checkpoint: str | None = None


class Sample(Body):
    """One prompt, sampled in one batch with those of other clients."""

    prompt: Array
    sampling: SamplingBody = SamplingBody()
    seeded: bool = False
    """`sampling.seed` was chosen, and the same one gives the same tokens."""
    prompt_logprobs: bool = False


class ComponentTotal(BaseModel):
    """Of a loss's component, before it is divided."""

    total: float | str
    per: Literal["weights", "tokens", "sequences", "groups", "none"]
    weight: float


class MetricTotal(BaseModel):
    """Of a metric, before means are taken."""

    total: float | str
    count: float | str
    reduce: Literal["mean", "sum", "max", "min"]


class TotalsBody(BaseModel):
    """See `finetooth_hooks.LossTotals`; a number that is not finite is a text."""

    loss: str
    contributions: dict[str, ComponentTotal]
    metrics: dict[str, MetricTotal]


class ForwardResult(BaseModel):
    """Result of `forward` and `forward_backward`; see `finetooth_hooks.engine.Forward`."""

    outputs: list[dict[str, EncodedArray]]
    loss: float | None
    components: dict[str, float]
    metrics: dict[str, float]
    tokens: int
    padded: int
    targets: int
    micro_batches: int
    handle: HandleBody | None
    flops: float
    totals: TotalsBody | None


class BackwardResult(BaseModel):
    """Result of `backward`."""

    grad_norm: float | str
    overflow: bool
    flops: float


class StepResult(BaseModel):
    """Result of `step`."""

    step: int
    learning_rate: float
    grad_norm: float | str
    skipped: bool


class CompletionBody(BaseModel):
    """One completion."""

    tokens: list[int]
    logprobs: list[float]
    text: str
    stop: Literal["stop", "length"]
    weights_version: int


class GenerateResult(BaseModel):
    """Completions by prompt."""

    completions: list[list[CompletionBody]]
    flops: float = 0.0


class SampleResult(BaseModel):
    """Completions of one prompt."""

    completions: list[CompletionBody]
    prompt_logprobs: EncodedArray | None = None


class LogprobsResult(BaseModel):
    """Log-probabilities by datum."""

    logprobs: list[EncodedArray]
    top_tokens: list[EncodedArray] | None = None
    top_logprobs: list[EncodedArray] | None = None


class SaveResult(BaseModel):
    """A new checkpoint."""

    checkpoint: str
    name: str
    kind: str
    size: int


class LoadResult(BaseModel):
    """What was loaded."""

    checkpoint: str


class MadeResult(BaseModel):
    """A new session's model."""

    model: str
    parameters: int
    trained: int
    echo: dict[str, str] | None = None
    """`strategy`: what is to be said of the one that was asked for."""


class Problem(BaseModel):
    """Why a call failed."""

    category: Literal["user", "server"]
    message: str
    status: int = 500
    """What HTTP calls it: 400 the client's mistake, 500 this server failed, 502 and 504 another one that it asks failed
    or was too late."""


class CallBody(BaseModel, Generic[Result]):
    """A call: done, failed, or still queued (status 202); then ask again at `/v1/calls/{id}`."""

    id: str
    session: str
    seq: int
    operation: str
    state: Literal["queued", "done", "failed"]
    result: Result | None = None
    error: Problem | None = None


class SessionBody(BaseModel):
    """A session."""

    id: str
    base: str
    recipe: dict[str, Any]
    metadata: dict[str, Any]
    created: float
    calls: int
    """Calls that were executed."""
    next_seq: int
    """Number of the next call."""
    closed: bool


class CheckpointBody(BaseModel):
    """A checkpoint."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    session: str = Field(validation_alias="model")
    kind: str
    name: str
    base: str
    created: float
    expires: float | None
    size: int


class SamplerBody(BaseModel):
    """A sampler."""

    id: str
    base: str
    checkpoint: str | None


class ServedModel(BaseModel):
    """A base model that can be trained and sampled here."""

    name: str
    model: str


class LimitsBody(BaseModel):
    """What may be taken, by the names of `finetooth_server.settings.Limits`, and what the tenant takes of it: `models`,
    `sessions`, `queued` calls and `checkpoint_bytes`."""

    limits: dict[str, float]
    used: dict[str, int]


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok", "failing"]
    queued: int
