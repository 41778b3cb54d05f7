"""Plans an engine whose model is at a running vLLM server, and checks the server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from finetooth_hooks import Context, Decision, EngineError, MemoryEstimate, PlanError, Sampling
from finetooth_hooks.protocols import BackendPlan, EngineRequest, PlanRequest
from pydantic import Field

from finetooth_serversamplers.asking import Asking, Server, ServerGone
from finetooth_serversamplers.bodies import completion_body
from finetooth_serversamplers.serving import ServerOptions, key, offered_base, scaled

if TYPE_CHECKING:
    from finetooth_serversamplers.engine import VllmEngine

LOOK = 20.0
"""Seconds within which a server must list its models."""


class VllmBackendOptions(ServerOptions):
    """Options of the backend `vllm`. The recipe's `model` is the same model: its tokenizer and its template are read
    here, and the server reads and writes token ids."""

    timeout: float = Field(default=120.0, gt=0)
    """Seconds in which the next token of an answer must come."""
    requests: int = Field(default=256, ge=1)
    """Number of requests at a time; each writes one answer. The server has its own queue."""


class VllmBackend:
    """See `finetooth_hooks.protocols.Backend`.

    Raises:
        RecipeError: the key's variable is not set.
    """

    def __init__(self, options: VllmBackendOptions, context: Context) -> None:
        self._options = options
        secret = key(options.key_from, "backend.key_from")
        self._asking = Asking("backend vllm", options.url, secret, options.timeout, options.requests)

    def plan(self, request: PlanRequest) -> BackendPlan:
        """Plan without loading a model; the server lists its models.

        Raises:
            PlanError: the recipe trains, the server is unreachable, or it has another model.
        """
        if request.data.mean_length:
            raise PlanError(
                "backend: vllm answers and trains nothing",
                action="leave backend out to train; to sample rollouts from vLLM, set method.sampler: vllm",
            )
        if request.base.quantizer is not None:
            raise PlanError(
                "quantization: the model is loaded at the vLLM server",
                action="remove quantization here, and set it at the server",
            )
        base = self._base()
        settings = request.train
        train = replace(
            settings,
            precision=settings.precision or "server",
            micro_batch_tokens=settings.micro_batch_tokens or max(1, request.data.longest),
            gradient_checkpointing=bool(settings.gradient_checkpointing),
        )
        decisions = (
            Decision("hardware", self._asking.url, f"{base} is there; tokens and templates are read here"),
            Decision("train.precision", "the server's", "it was started with it"),
        )
        return BackendPlan(train, decisions, MemoryEstimate({}), cost="answers are computed at a server")

    def engine(self, request: EngineRequest) -> VllmEngine:
        """Connect.

        Raises:
            PlanError: the server is unreachable, or has another model.
        """
        from finetooth_serversamplers.engine import VllmEngine

        options = self._options
        return VllmEngine(request, self._asking, self._base(), silence=options.timeout, together=options.requests)

    def _base(self) -> str:
        """Name of the model at the server.

        Raises:
            PlanError: the server is unreachable, lacks the model, or returns scaled log-probabilities.
        """

        async def work(server: Server) -> tuple[str, bool]:
            model = await offered_base(server, self._options.model, "set backend.model")
            return model, await scaled(server, completion_body(model, [0], Sampling(1), (), 0))

        try:
            base, scales = self._asking.within(LOOK).run(work)
        except ServerGone as error:
            raise PlanError(error.problem, action="start it (vllm serve MODEL), or set backend.url") from error
        except EngineError as error:
            raise PlanError(error.problem, action=error.action) from error
        if scales:
            raise PlanError(
                f"{self._asking.called}: {self._asking.url} gives log-probabilities after the temperature, and "
                "clients expect the model's own",
                action="start it without --logprobs-mode processed_logprobs",
            )
        return base
