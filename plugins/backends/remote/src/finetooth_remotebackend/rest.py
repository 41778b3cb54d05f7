"""A model at a finetooth server, over REST."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from finetooth_hooks import Backward, Datum, EngineError, Generated, Sampling, Stepped, UserError
from finetooth_hooks.engine import StepSettings
from finetooth_wire import wire
from numpy.typing import NDArray

from finetooth_remotebackend.connection import WAIT, Connection
from finetooth_remotebackend.trainer import Json, ModelSizes


class RestTrainer:
    """See `trainer.Trainer`.

    Args:
        base: name under which the server offers the base model.
        sections: of the recipe: `adapter`, `optimizer`, `train`.
    """

    protocol = "rest"

    def __init__(self, connection: Connection, base: str, sections: Mapping[str, Any]) -> None:
        self._connection, self._base, self._sections = connection, base, sections
        self._session = secrets.token_hex(16)

    def create(self) -> ModelSizes:
        served = [model["name"] for model in self._connection.request("GET", "/v1/models")]
        if self._base not in served:
            raise UserError(
                f"{self._connection.url} does not serve {self._base!r}",
                action=f"set backend.base to one of {', '.join(served)}",
            )
        body = {**self._sections, "id": self._session, "base": self._base}
        made = self._connection.request("POST", "/v1/sessions", body, {"wait": WAIT})
        result = self._connection.result(made)
        return ModelSizes(result["parameters"], result["trained"])

    def score(self, data: Sequence[Datum]) -> tuple[list[NDArray[Any]], int]:
        result = self._call("forward", {"data": _wire_data(data), "returns": ["logprobs"]})
        return [wire.decode_array(of["logprobs"], "logprobs") for of in result["outputs"]], result["handle"]["id"]

    def backward(self, number: int, data: Sequence[Datum], grads: Sequence[NDArray[np.float32]]) -> Backward:
        sent = {"handle": number, "grads": [wire.encode_array(np.asarray(gradient, np.float32)) for gradient in grads]}
        return wire.decode_backward(self._call("backward", sent))

    def step(self, number: int, settings: StepSettings) -> Stepped:
        return wire.decode_stepped(self._call("step", {"settings": wire.encode_step_settings(settings)}))

    def zero_grad(self) -> None:
        self._call("zero_grad", {})

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, version: int) -> Generated:
        sent = {"prompts": [list(map(int, prompt)) for prompt in prompts], "sampling": wire.encode_sampling(sampling)}
        return wire.decode_generated(self._call("generate", sent))

    def logprobs(self, data: Sequence[Datum], role: str) -> list[NDArray[np.float32]]:
        result = self._call("logprobs", {"data": _wire_data(data), "role": role})
        return [wire.decode_array(array, "logprobs") for array in result["logprobs"]]

    def save(self, name: str) -> Json:
        return {"checkpoint": self._call("save", {"name": name, "kind": "state"})["checkpoint"]}

    def load(self, kept: Json, *, optimizer: bool) -> None:
        self._call("load", {"checkpoint": kept["checkpoint"], "optimizer": optimizer})

    def export(self, name: str, path: Path) -> Json:
        checkpoint = self._call("save", {"name": name, "kind": "weights"})["checkpoint"]
        files = self._connection.request("GET", f"/v1/checkpoints/{checkpoint}/files")
        for file in files:
            named = PurePosixPath(file["name"])
            if named.is_absolute() or ".." in named.parts:
                raise EngineError(f"{self._connection.url} sent a file name {file['name']!r} that leads elsewhere")
            self._connection.download(f"/v1/checkpoints/{checkpoint}/files/{named}", path / named)
            if (path / named).stat().st_size != file["size"]:
                raise EngineError(f"{self._connection.url}: {named} came in parts", action="run ft resume")
        return {"checkpoint": checkpoint}

    def close(self) -> None:
        self._connection.forget(f"/v1/sessions/{self._session}")

    def _call(self, operation: str, body: Mapping[str, Any]) -> Any:
        return self._connection.call(self._session, operation, body)


def _wire_data(data: Sequence[Datum]) -> list[Any]:
    return [wire.encode_datum(datum) for datum in data]
