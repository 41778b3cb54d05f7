"""Plans a run whose engine is at a server, and connects to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from finetooth_hooks import Context, Decision, MemoryEstimate, Options, PlanError, RecipeError
from finetooth_hooks.protocols import BackendPlan, EngineRequest, PlanRequest
from finetooth_toolbox.text.environment import expand
from pydantic import Field

if TYPE_CHECKING:
    from finetooth_remotebackend.engine import RemoteEngine

KEYS = {"rest": "FT_API_KEY", "tinker": "TINKER_API_KEY"}
"""Variable that holds the API key, by protocol."""


class RemoteOptions(Options):
    """Options of the backend `remote`."""

    url: str
    """URL of the server, as `ft serve` prints it."""
    base: str = ""
    """The server's name for the base model. Default: the recipe's `model`. The tokenizer and the model's shape are read
    here, from `model`, so both must be the same model."""
    protocol: Literal["auto", "rest", "tinker"] = "auto"
    """The server's protocol: `rest` is that of a finetooth server, `tinker` the Tinker protocol (needs the package
    `tinker`); `auto` asks the server."""
    key: str = ""
    """The API key, as `${NAME}` of an environment variable. Default: `FT_API_KEY`, or `TINKER_API_KEY` for the Tinker
    protocol, if it is set. A literal key is refused, since recipes are copied into run folders."""
    patience: float = Field(default=300.0, gt=0)
    """Seconds for which a request is retried if the server cannot be reached."""
    certificate: str = ""
    """Certificate file of the server, if the system does not trust it."""


def build(options: RemoteOptions, context: Context) -> RemoteBackend:
    """The backend.

    Raises:
        RecipeError: the URL is none, or a secret stands in the recipe.
    """
    try:
        parts = urlsplit(options.url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise RecipeError("backend.url", "it is not an http or https URL", action="give one, http://127.0.0.1:8420")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError("backend.url", "it holds more than host, port and path", action="give keys by FT_API_KEY")
    if options.key and not (options.key.startswith("${") and options.key.endswith("}")):
        raise RecipeError("backend.key", "it is not the name of a variable", action="write key: ${FT_API_KEY}")
    return RemoteBackend(options, context)


class RemoteBackend:
    """See `finetooth_hooks.protocols.Backend`."""

    def __init__(self, options: RemoteOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._url = options.url.rstrip("/")

    def plan(self, request: PlanRequest) -> BackendPlan:
        """Load nothing: the server decides precision, micro-batches and memory.

        Raises:
            PlanError: the recipe changes the base, which the server loads, or data have segments.
        """
        if request.data.segmented:
            raise PlanError("backend: remote engines take no packed data", action="leave packing to the server")
        if request.base.quantizer is not None:
            raise PlanError(
                "quantization: the base of a remote engine is loaded at the server",
                action="remove quantization; the server decides how it holds the base",
            )
        if request.base.facts.new_tokens or "rope_scaling" in request.base.model.contents:
            setting = "model.added_tokens" if request.base.facts.new_tokens else "model.loader.rope_scaling"
            raise PlanError(
                f"{setting}: the base of a remote engine is loaded at the server, as it is there",
                action="leave it out, or train on this machine",
            )
        wanted = request.train
        train = replace(
            wanted,
            precision=wanted.precision or "server",
            micro_batch_tokens=wanted.micro_batch_tokens or max(1, request.data.longest),
            gradient_checkpointing=bool(wanted.gradient_checkpointing),
        )
        theirs = [
            f"{name}={value}"
            for name in ("precision", "micro_batch_tokens", "gradient_checkpointing")
            if (value := getattr(wanted, name)) is not None
        ]
        why = "the model is there; losses, schedule and tokens are computed here"
        left = f"; the recipe's train.{', train.'.join(theirs)} is not sent" if theirs else ""
        decisions = (
            Decision("hardware", self._url, why),
            Decision("train.precision", "the server's", f"it was started with it{left}"),
        )
        return BackendPlan(train, decisions, MemoryEstimate({}), cost="the steps are done at a server")

    def engine(self, request: EngineRequest) -> RemoteEngine:
        """Connect, and make the model.

        Raises:
            UserError: the server refuses it, or does not offer what the recipe asks for.
            EngineError: it cannot be reached.
        """
        from finetooth_remotebackend.connection import Connection
        from finetooth_remotebackend.engine import RemoteEngine
        from finetooth_remotebackend.rest import RestTrainer
        from finetooth_remotebackend.trainer import Trainer

        options, plan = self._options, request.plan
        model = plan.recipe["model"]
        base = options.base or str(model["name"] if isinstance(model, Mapping) else model)
        connection = Connection(self._url, self._key("rest"), options.patience, options.certificate)
        trainer: Trainer
        if self._speaks_rest(connection):
            sections = {kind: self._pick(plan.picks, plan.options, kind) for kind in ("adapter", "optimizer")}
            train = {"seed": plan.train.seed, "max_length": plan.train.max_length}
            trainer = RestTrainer(connection, base, {**sections, "train": train})
        else:
            from finetooth_remotebackend.tinker import TinkerTrainer

            trainer = TinkerTrainer(self._url, self._key("tinker"), base, request, self._context.note)
        return RemoteEngine(request, trainer, self._url)

    def _speaks_rest(self, connection: Any) -> bool:
        """The protocol of a server: `tinker` if it has no finetooth route for models."""
        if self._options.protocol != "auto":
            return self._options.protocol == "rest"
        return bool(connection.offers("/v1/models"))

    def _key(self, protocol: str) -> str | None:
        if self._options.key:
            return expand(self._options.key, "backend.key")
        return os.environ.get(KEYS[protocol]) or None

    @staticmethod
    def _pick(picks: Mapping[str, str], options: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, Any]:
        """A section for the server, with every option, so that the server's defaults decide nothing."""
        return {"name": picks[kind], **options.get(kind, {})}
