"""Base of the samplers: options, checks of the distribution, and restarts of a server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Context, Options, PlanError, RecipeError, Sampling
from finetooth_hooks.bases import SamplerBase
from finetooth_hooks.rollouts import Prompt
from pydantic import Field

from finetooth_serversamplers.asking import Asking, Server
from finetooth_serversamplers.completions import TOP, Completions


class ServerOptions(Options):
    """Options of every sampler with a server."""

    url: str = "127.0.0.1:8000"
    """URL of the server; `https://` if it uses TLS."""
    model: str = ""
    """The server's name for the model. Default: the only model that it offers."""
    key_from: str = ""
    """Environment variable with the key; empty for none."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds for a batch of rollouts. If the server takes longer, the run ends and can be resumed."""
    requests: int = Field(default=64, ge=1)
    """Number of requests at a time; each has one prompt."""


class ServerSampler(SamplerBase):
    """Requests rollouts from a server.

    Args:
        called: its name in messages.
    """

    capabilities = frozenset[str]()

    def __init__(self, options: ServerOptions, context: Context, called: str) -> None:
        self._context, self._options = context, options
        self._asking = Asking(called, options.url, key(options.key_from), options.timeout, options.requests)
        self._processed: bool | None = None
        self._holds: bool | None = None

    async def base(self, server: Server) -> str:
        """Name of the server's model.

        Raises:
            EngineError: the server lacks the model, or has several and none is named.
        """
        return await offered_base(server, self._options.model, "set model of the sampler")

    async def check(self, server: Server, how: Completions, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Check that the server returns log-probabilities of its sampling distribution.

        A server returns log-probabilities of the unchanged model (`raw`), or of the sampling distribution (`processed`:
        after temperature, top_k, top_p and the others). Requests for the same position at two temperatures show which.
        The tokens that a form allows are among those that the server names.

        Raises:
            PlanError: it returns raw ones, and sampling differs from them; it cannot name all tokens of the sampling
                set; or it does not enforce a form.
        """
        if sampling.as_it_is:
            return
        if (sampling.leaves_out or sampling.form) and not 0 < sampling.top_k <= TOP:
            raise PlanError(
                f"{self._asking.called}: servers name at most {TOP} tokens that sampling keeps",
                action=f"set method.top_k from 1 to {TOP}, also if method.top_p, method.min_p or method.guided is set",
            )
        if sampling.form is not None and self._holds is None:
            self._holds = await holds(server, how.body(prompts[0].tokens, Sampling(8, regex="0{7}"), 0))
        if sampling.form is not None and not self._holds:
            raise PlanError(
                f"{self._asking.called}: {self._asking.url} ignores structured_outputs, so its answers would not "
                "keep to method.guided",
                action="take vLLM 0.11 or later, or leave method.guided out",
            )
        if self._processed is None:
            self._processed = await scaled(server, how.body(prompts[0].tokens, Sampling(1), 0))
        if not self._processed:
            raise PlanError(
                f"{self._asking.called}: {self._asking.url} gives log-probabilities of the unchanged model, not "
                f"of the distribution that it samples from at temperature {sampling.temperature:g}, top_k "
                f"{sampling.top_k}, top_p {sampling.top_p:g}, min_p {sampling.min_p:g} and repetition_penalty "
                f"{sampling.repetition_penalty:g}",
                action="start vLLM with --logprobs-mode processed_logprobs, or set method.temperature to 1 without "
                "top_k, top_p, min_p and repetition_penalty",
            )


async def offered_base(server: Server, wanted: str, action: str) -> str:
    """Name of a server's model, without adapters.

    Args:
        wanted: the name; empty: the only model.
        action: what to do if the model is unknown.

    Raises:
        EngineError: the server lacks the model, or has several and none is named.
    """
    offered = [str(model["id"]) for model in (await server.get("/v1/models"))["data"] if not model.get("parent")]
    if wanted in offered:
        return wanted
    if wanted or len(offered) != 1:
        what = f"does not offer {wanted!r}" if wanted else "offers several models"
        raise server.asking.wrong(f"{what}; it has {', '.join(offered) or 'none'}", action)
    return offered[0]


async def scaled(server: Server, body: Mapping[str, Any]) -> bool:
    """Whether log-probabilities follow the temperature.

    Args:
        body: a request for completions.
    """
    scores = []
    for temperature in (1.0, 0.5):
        request = {**body, "max_tokens": 1, "n": 1, "temperature": temperature, "logprobs": 5}
        answer = await server.post("/v1/completions", request)
        scores.append(answer["choices"][0]["logprobs"]["top_logprobs"][0])
    both = set(scores[0]) & set(scores[1])
    return any(abs(scores[0][token] - scores[1][token]) > 1e-3 for token in both)


async def holds(server: Server, body: Mapping[str, Any]) -> bool:
    """Whether the server enforces a form; servers ignore unknown fields.

    Args:
        body: a request for seven zeros.
    """
    answer = await server.post("/v1/completions", body)
    return str(answer["choices"][0]["text"]).startswith("0" * 7)


def key(variable: str, setting: str = "method.sampler.key_from") -> str:
    """A key from the environment.

    Raises:
        RecipeError: the variable is not set.
    """
    if not variable:
        return ""
    if not os.environ.get(variable):
        raise RecipeError(setting, f"{variable} is not set", action="set it, or leave key_from out")
    return os.environ[variable]
