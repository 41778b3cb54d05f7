"""Bodies of requests. An unsupported field is refused by name; none is ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from finetooth_hooks import Sampling
from finetooth_toolbox.text.nearest import nearest
from finetooth_wire.bounds import brief
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from finetooth_openai.faults import Fault

LONGEST = 1024
"""Most tokens of an answer if the request names no limit."""

NO_CHOICE = "how often the model calls tools is its own to choose here"

LONGEST_SCHEMA = 65_536
"""Characters of a JSON schema."""

LONGEST_NAME = 1000
"""Most characters of a model's name: a sum of adapters names each."""

LONGEST_STOP = 1000
"""Characters of a text that ends an answer."""

MOST_BIASES = 1024
"""Most tokens in a request's `logit_bias`."""

MOST_MESSAGES = 2**14
"""Messages of a chat."""

MOST_TOOLS = 1024
"""Tools of a chat."""

Body = TypeVar("Body", bound="RequestBase")

Bias = Annotated[float, Field(ge=-100, le=100)]


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None


class Call(BaseModel):
    """A call of a tool that the assistant made before."""

    model_config = ConfigDict(extra="allow")
    id: str = ""
    type: Literal["function"] = "function"
    function: dict[str, Any]


class ChatMessage(BaseModel):
    """A message."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    audio: Any = None
    annotations: list[Any] | None = None
    function_call: Any = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool | None = None


class Schema(BaseModel):
    """`response_format.json_schema`."""

    model_config = ConfigDict(extra="forbid")
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The format of an answer."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema")
        return self

    @property
    def schema_text(self) -> str | None:
        """The JSON schema; None: any text."""
        if self.type == "text":
            return None
        return json.dumps({"type": "object"} if self.json_schema is None else self.json_schema.schema_)


class RequestBase(BaseModel):
    """Fields of all requests."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=LONGEST_NAME)
    user: str | None = None

    @property
    def longest(self) -> int | None:
        """Tokens of an answer, at most; None leaves it to the server."""
        return None

    @property
    def top(self) -> int:
        """How many of the likeliest tokens to return at each place."""
        return 0

    @property
    def seeded(self) -> bool:
        """Whether the client chose the seed."""
        return False

    def sampling(self, max_tokens: int) -> Sampling:
        """The sampling settings; None for a request without text."""
        return Sampling(max_tokens=0)

    def check(self) -> None:
        """Check that the server supports the request.

        Raises:
            Fault: it does not.
        """


class Request(RequestBase):
    """Fields of requests for answers."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Field(max_length=64)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Annotated[dict[int, Bias], Field(max_length=MOST_BIASES)] | None = None
    service_tier: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(texts)

    @property
    def longest(self) -> int | None:
        return self.max_tokens

    @property
    def seeded(self) -> bool:
        return self.seed is not None

    @property
    def usage_at_end(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def schema_text(self) -> str | None:
        """The JSON schema of an answer; None: any text."""
        return None

    def sampling(self, max_tokens: int) -> Sampling:
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            n=self.n or 1,
            stop=self.stops,
            seed=self.seed or 0,
            schema=self.schema_text,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple((self.logit_bias or {}).items()),
        )

    def check(self) -> None:
        if any(not stop for stop in self.stops):
            raise Fault("stop: an empty text ends nothing", action="leave it out", param="stop")
        if any(len(stop) > LONGEST_STOP for stop in self.stops):
            raise Fault(f"stop: a text of more than {LONGEST_STOP} characters", action="shorten it", param="stop")
        if self.service_tier not in (None, "auto", "default"):
            raise not_offered("service_tier", "all requests are served alike")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise Fault(f"seed: {self.seed} is not in 0 to 2^63 - 1", action="choose another one", param="seed")


class ChatRequest(Request):
    """`POST /chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: list[str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def top(self) -> int:
        return self.top_logprobs or 0

    @property
    def schema_text(self) -> str | None:
        """The JSON schema of the format, or of a required call."""
        if self.must_call:
            return json.dumps({"anyOf": [call_schema(tool["function"]) for tool in self.must_call]})
        return None if self.response_format is None else self.response_format.schema_text

    @property
    def must_call(self) -> list[dict[str, Any]]:
        """Tools of which the answer must call one; empty if the model may choose."""
        choice = self.tool_choice
        if choice in (None, "auto", "none"):
            return []
        named = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
        if choice != "required" and not isinstance(named, dict):
            raise Fault("tool_choice is none, auto, required, or {type: function, function: {name: TEXT}}",
                        action="write it so", param="tool_choice")  # fmt: skip
        tools = [
            tool
            for tool in self.tools or ()
            if named is None or tool.get("function", {}).get("name") == named.get("name")
        ]
        if not tools:
            raise Fault("tool_choice names a tool that tools lacks", action="name one of tools", param="tool_choice")
        return tools

    def check(self) -> None:
        super().check()
        if self.parallel_tool_calls is False and self.tools and self.tool_choice != "none" and not self.must_call:
            raise not_offered("parallel_tool_calls", NO_CHOICE)
        if self.verbosity not in (None, "medium"):
            raise not_offered("verbosity", "how much it says is the model's own choice")
        if self.modalities not in (None, ["text"]):
            raise not_offered("modalities", "answers are text")
        if self.store:
            raise not_offered("store")
        if self.top and not self.logprobs:
            raise Fault("top_logprobs goes with logprobs", action="set logprobs to true", param="top_logprobs")
        for n, tool in enumerate(self.tools or ()):
            function = tool.get("function")
            if tool.get("type") != "function" or not isinstance(function, dict) or not function.get("name"):
                raise Fault(
                    "a tool is not of the form {type: function, function: {name: TEXT, ...}}",
                    action="write it so",
                    param=f"tools[{n}]",
                )
        self._check_format()

    def _check_format(self) -> None:
        wanted = self.schema_text
        if wanted is None:
            return
        if self.must_call and self.response_format is not None and self.response_format.type != "text":
            raise Fault("an answer is held to a schema, or calls a tool; not both",
                        action="leave out tool_choice, or response_format", param="response_format")  # fmt: skip
        if len(wanted) > LONGEST_SCHEMA:
            raise Fault(f"the schema has {len(wanted):,} characters, {LONGEST_SCHEMA:,} are taken",
                        action="shorten it", param="tools" if self.must_call else "response_format")  # fmt: skip
        if self.tools and self.tool_choice != "none" and not self.must_call:
            raise Fault("an answer is held to a schema, or may call tools; not both",
                        action="leave out tools, or response_format", param="response_format")  # fmt: skip


class CompletionRequest(Request):
    """`POST /completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    return_token_ids: bool | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=1024)] | None = None

    @property
    def top(self) -> int:
        return self.logprobs or 0

    def sampling(self, max_tokens: int) -> Sampling:
        stop_ids = None if self.stop_token_ids is None else tuple(self.stop_token_ids)
        return replace(super().sampling(max_tokens), stop_ids=stop_ids)

    def check(self) -> None:
        super().check()
        if self.stream and self.return_token_ids:
            raise Fault("token ids are not offered in a stream", action="ask without stream", param="return_token_ids")
        for name in ("echo", "suffix"):
            if getattr(self, name):
                raise not_offered(name)
        if self.best_of not in (None, self.n or 1):
            raise not_offered("best_of")
        if not self.prompt:
            raise Fault("prompt: there is none", action="give a text", param="prompt")


class EmbeddingRequest(RequestBase):
    """`POST /embeddings`."""

    input: str | list[str] | list[int] | list[list[int]]
    dimensions: int | None = Field(default=None, ge=1)
    encoding_format: Literal["float", "base64"] | None = None

    def check(self) -> None:
        if not self.input:
            raise Fault("input: there is none", action="give a text", param="input")


def call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a call of a tool."""
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def not_offered(name: str, why: str = "") -> Fault:
    """The error for an unsupported field."""
    return Fault(f"{name} is not offered here{f': {why}' if why else ''}", action="leave it out", param=name,
                 code="unsupported_parameter")  # fmt: skip


def read(kind: type[Body], content: Any) -> Body:
    """A request's body.

    Raises:
        Fault: it does not fit the route; names the first wrong field.
    """
    if not isinstance(content, Mapping):
        raise Fault("the body is not a JSON object", action="send one")
    try:
        body = kind.model_validate(content)
    except ValidationError as error:
        raise fault_of(kind, error) from error
    body.check()
    return body


def fault_of(kind: type[BaseModel], error: ValidationError) -> Fault:
    """The first field that is wrong."""
    problem = error.errors()[0]
    fields = [str(part) for part in problem["loc"]]
    place = brief(".".join(fields), 100)
    if problem["type"] != "extra_forbidden":
        return Fault(f"{place}: {problem['msg']}", action="fix it", param=place)
    near = nearest(place, kind.model_fields) if len(fields) == 1 else None
    meant = f"did you mean {near}?" if near else "leave it out"
    return Fault(f"{place} is not offered here", action=meant, param=place, code="unsupported_parameter")
