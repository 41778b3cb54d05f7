"""The engine whose model is at a server. Losses and the schedule are computed here."""

from __future__ import annotations

import json
import secrets
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import (
    Backward,
    Datum,
    EngineError,
    EngineInfo,
    Forward,
    Generated,
    Handle,
    LossSpec,
    Sampling,
    Stepped,
    UserError,
)
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.engine import Counts, StepSettings
from finetooth_hooks.protocols import EngineRequest
from finetooth_hooks.sampling import ShownPrompt
from finetooth_steps.data_checks import check_gradients
from finetooth_wire import wire
from numpy.typing import NDArray

from finetooth_remotebackend.capabilities import CAPABILITIES
from finetooth_remotebackend.local_loss import Evaluated, evaluate
from finetooth_remotebackend.trainer import Trainer

REMOTE = "remote.json"
"""File of a checkpoint or an artifact that names its copy at the server."""


@dataclass(frozen=True)
class Pending:
    """A forward that may get a backward.

    Attributes:
        number: of the forward at the server.
        outputs: that the loss read.
    """

    data: tuple[Datum, ...]
    number: int
    version: int
    spec: LossSpec | None
    outputs: Mapping[str, Sequence[NDArray[Any]]]
    counts: Counts | None


class RemoteEngine(EngineBase):
    """See `finetooth_hooks.engine.Engine`. `logprobs` is the only output; a loss that reads others is refused by the
    plan. The weights and the optimizer's state stay at the server: `save` keeps them there and writes their place."""

    def __init__(self, request: EngineRequest, trainer: Trainer, url: str) -> None:
        self._request, self._trainer, self._url = request, trainer, url
        made = trainer.create()
        weakref.finalize(self, trainer.close)  # also when Python ends: a tenant may have only so many models
        self._version = 0
        self._total: int | None = request.plan.total_steps
        self._loss_states: dict[str, Mapping[str, Any]] = {}
        self._pending: dict[int, Pending] = {}
        self._handles = 0
        self._loss = 0.0
        self._info = EngineInfo(
            framework="torch",
            device=url,
            precision=str(request.plan.train.precision),
            parameters=made.parameters or request.base.model.parameters,
            trained=made.trained,
            max_length=request.base.facts.max_positions,
            environment={"server": url, "protocol": trainer.protocol},
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def capabilities(self) -> frozenset[str]:
        return CAPABILITIES if self._request.trains.can_disable else CAPABILITIES - {"reference"}

    @property
    def weights_version(self) -> int:
        return self._version

    # --- evaluate and differentiate -----------------------------------------------------------------------------------

    def forward(
        self,
        data: Sequence[Datum],
        loss: LossSpec | None = None,
        *,
        role: str = "policy",
        returns: Collection[str] = ("logprobs",),
        normalizer: Counts | None = None,
        train: bool = True,
    ) -> Forward:
        others = sorted(set(returns) - {"logprobs"})
        if others:
            raise EngineError(f"a remote engine returns logprobs, not {', '.join(others)}", action="ask for logprobs")
        data = tuple(data)
        trains = train and role == "policy"
        number = -1
        if trains:
            logprobs, number = self._trainer.score(data)
        else:
            logprobs = list(self._trainer.logprobs(data, role))
        outputs: dict[str, Sequence[NDArray[Any]]] = {"logprobs": logprobs}
        evaluated = None
        if loss is not None:
            for other in sorted(loss.roles):
                outputs[f"logprobs@{other}"] = self._trainer.logprobs(data, other)
            evaluated = self._evaluated(loss, data, outputs, normalizer)
        handle = None
        if trains:
            self._handles += 1
            handle = Handle(self._handles, self._version)
            self._pending[handle.id] = Pending(data, number, self._version, loss, outputs, normalizer)
        return _report(data, logprobs if "logprobs" in returns else None, evaluated, handle)

    def backward(
        self,
        handle: Handle,
        grads: Sequence[NDArray[np.floating[Any]]] | None = None,
        *,
        normalizer: Counts | None = None,
    ) -> Backward:
        pending = self._pending.get(handle.id)
        if pending is None or handle.weights_version != self._version:
            raise EngineError(
                f"backward: handle {handle.id} is unknown, was used, or is from before a step",
                action="call forward again for its backward",
            )
        if grads is None:
            grads = self._slopes(pending, normalizer)
        elif normalizer is not None:
            raise EngineError("backward: gradients that are given are not normalised again", action="pass only one")
        check_gradients(pending.data, grads)
        arrays = [np.asarray(gradient, dtype=np.float32) for gradient in grads]
        result = self._trainer.backward(pending.number, pending.data, arrays)
        del self._pending[handle.id]
        return result

    def _slopes(self, pending: Pending, normalizer: Counts | None) -> Sequence[NDArray[Any]]:
        if pending.spec is None:
            raise EngineError(
                "backward: its forward had no loss and no gradients are given",
                action="give forward a loss, or backward the gradients",
            )
        evaluated = self._evaluated(pending.spec, pending.data, pending.outputs, normalizer or pending.counts)
        self._loss_states[pending.spec.name] = evaluated.state
        self._loss += evaluated.totals.loss
        return evaluated.grads

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        result = self.forward(data, loss, normalizer=normalizer)
        assert result.handle is not None
        done = self.backward(result.handle)
        fields = {name: getattr(result, name) for name in result.__dataclass_fields__}
        return Forward(**{**fields, "handle": None, "flops": done.flops})

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        return self._trainer.logprobs(data, role)

    def zero_grad(self) -> None:
        self._trainer.zero_grad()
        self._loss = 0.0

    # --- update -------------------------------------------------------------------------------------------------------

    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        if settings is not None:
            raise EngineError("a remote engine takes no settings with a step", action="set them in the recipe")
        schedule, optimizer = self._request.updates.schedule, self._request.updates.optimizer
        rate = optimizer.learning_rate * schedule.factor(self._version, self._total)
        chosen = StepSettings(learning_rate=rate, max_grad_norm=self._request.plan.train.max_grad_norm)
        stepped = self._trainer.step(self._version + 1, chosen)
        self._version = stepped.step
        self._pending.clear()
        schedule.observe({"loss": self._loss, **(metrics or {})})
        self._loss = 0.0
        return stepped

    def set_total_steps(self, total: int | None) -> None:
        self._total = total

    # --- sample -------------------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        if any(isinstance(prompt, ShownPrompt) for prompt in prompts):
            raise EngineError("generate: a prompt holds an image, which is not sent", action="ask in text")
        return self._trainer.generate(prompts, sampling, self._version)

    # --- keep ---------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        reference = self._trainer.save(self._name("state"))
        states = {name: {k: _encoded(v) for k, v in of.items()} for name, of in self._loss_states.items()}
        schedule = dict(self._request.updates.schedule.state())
        self._write(path, {"kept": reference, "losses": states, "schedule": schedule, "loss": self._loss})

    def load(self, path: Path) -> None:
        record = self._read(path)
        if "schedule" not in record:
            raise UserError(f"{path}: it is an artifact, not a state", action="give a checkpoint")
        self._trainer.load(record["kept"], optimizer=True)
        self._loss_states = {n: {k: _decoded(v) for k, v in of.items()} for n, of in record["losses"].items()}
        self._request.updates.schedule.restore(record["schedule"])
        self._version, self._loss = record["step"], record["loss"]
        self._pending.clear()

    def export(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        reference = self._trainer.export(self._name("artifact"), path)
        self._write(path, {"kept": reference})

    def restore(self, path: Path) -> None:
        self._trainer.load(self._read(path)["kept"], optimizer=False)
        self._pending.clear()

    def _name(self, kind: str) -> str:
        """A unique name for a checkpoint at the server."""
        return f"{kind}-{self._version}-{secrets.token_hex(4)}"

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        about = {"url": self._url, "protocol": self._trainer.protocol, "step": self._version}
        (path / REMOTE).write_text(json.dumps({**about, **content}, indent=2) + "\n", encoding="utf-8")

    def _read(self, path: Path) -> Mapping[str, Any]:
        """
        Raises:
            UserError: no remote engine wrote it, or one with another protocol.
        """
        try:
            record = json.loads((path / REMOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: no {REMOTE} that can be read: weights from here cannot be sent to a server",
                action="use it with a backend that computes here",
            ) from error
        if record["protocol"] != self._trainer.protocol:
            raise UserError(f"{path}: it is kept at {record['url']}", action=f"set backend.url to {record['url']}")
        return wire.mapping(record, str(path))

    def _evaluated(
        self,
        spec: LossSpec,
        data: Sequence[Datum],
        outputs: Mapping[str, Sequence[NDArray[Any]]],
        counts: Counts | None,
    ) -> Evaluated:
        state = self._loss_states.get(spec.name)
        return evaluate(spec, data, outputs, counts=counts, state=state, step=self._version)


def _report(
    data: Sequence[Datum], logprobs: Sequence[NDArray[Any]] | None, evaluated: Evaluated | None, handle: Handle | None
) -> Forward:
    tokens = sum(len(datum) for datum in data)
    totals = None if evaluated is None else evaluated.totals
    return Forward(
        outputs=tuple({} if logprobs is None else {"logprobs": logprobs[n]} for n in range(len(data))),
        loss=None if totals is None else totals.loss,
        components={} if totals is None else totals.components,
        metrics={} if totals is None else totals.metrics,
        tokens=tokens,
        padded=tokens,
        targets=sum(int(datum.mask.sum()) for datum in data),
        handle=handle,
        totals=None if totals is None else totals.plain,
    )


def _encoded(value: Any) -> Any:
    return wire.encode_array(value) if isinstance(value, np.ndarray) else value


def _decoded(value: Any) -> Any:
    return wire.decode_array(value, "a loss's state") if isinstance(value, Mapping) else value
