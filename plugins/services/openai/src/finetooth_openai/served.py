"""Models by name: served base models and runs, and the caller's checkpoints."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.errors import UserError
from finetooth_hooks.faces import FaceCaller, FaceService, StackPart
from finetooth_saving.run_folder import opening_of
from finetooth_toolbox.messages.openings import NONE, Opening
from finetooth_toolbox.text.nearest import nearest
from finetooth_toolbox.text.stacked_names import is_stack, parts_of

from finetooth_openai.faults import Fault


@dataclass(frozen=True)
class Model:
    """The model behind a name.

    Attributes:
        base: the served base model or run.
        checkpoint: id of weights over it; None: none.
        stack: adapters whose weighted sum is over it; empty: none.
        created: seconds since 1970.
        context: with tokenizer and renderer.
        opening: default first messages of its conversations.
    """

    name: str
    base: str
    checkpoint: str | None
    created: int
    context: Context
    stack: tuple[StackPart, ...] = ()
    opening: Opening = NONE

    @property
    def summed(self) -> bool:
        """Whether it is a sum or a scaled adapter."""
        return len(self.stack) > 1 or any(part.weight != 1.0 for part in self.stack)

    def json(self) -> dict[str, Any]:
        """Its entry in the list of models."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "finetooth", "root": self.base}


class Models:
    """The names of a service. Contexts are kept by base model."""

    def __init__(self, service: FaceService) -> None:
        self._service, self._begun = service, int(time.time())
        self._contexts: dict[str, Context] = {}
        self._openings: dict[str, Opening] = {}
        self._lock = threading.Lock()

    def all(self, caller: FaceCaller) -> list[Model]:
        """Bases first, then adapters of the command line, then the caller's checkpoints, oldest first. A checkpoint is
        listed by its name if that is unique, else by its id."""
        models = [Model(base, base, None, self._begun, self._context(base), (), self._opening(base))
                 for base in self._service.served]  # fmt: skip
        for name, base in self._service.adapters.items():
            stack = (StackPart(adapter=name),)
            models.append(Model(name, base, None, self._begun, self._context(base), stack, self._opening(name)))
        known = [
            checkpoint for checkpoint in self._service.checkpoints(caller) if checkpoint["base"] in self._service.served
        ]
        names = Counter([*self._service.served, *self._service.adapters, *(checkpoint["name"] for checkpoint in known)])
        for checkpoint in known:
            name = checkpoint["name"] if names[checkpoint["name"]] == 1 else checkpoint["id"]
            base = checkpoint["base"]
            models.append(
                Model(
                    name,
                    base,
                    checkpoint["id"],
                    int(checkpoint["created"]),
                    self._context(base),
                    (),
                    self._opening(base),
                )
            )
        return models

    def find(self, caller: FaceCaller, name: str) -> Model:
        """The model that a name means to the caller. A checkpoint's id is always one of its names, and so is the last
        part of a path if it is unique: `mine` is the run `runs/mine`, as for commands. `first+second*0.5` is a sum of
        adapters and checkpoints on one base.

        Raises:
            Fault: no model (404); suggests a similar name.
            UserError: an invalid sum.
        """
        known = self.all(caller)
        for model in known:
            if name in (model.name, model.checkpoint):
                return model
        if is_stack(name):
            return self._stack(name, known)
        ending = [model for model in known if model.name.rstrip("/").rpartition("/")[2] == name]
        if len(ending) == 1:
            return ending[0]
        near = nearest(name, [model.name for model in known])
        raise Fault(
            f"no model {name!r}",
            action=f"did you mean {near}?" if near else "list the models that there are",
            status=404,
            param="model",
            code="model_not_found",
        )

    def _stack(self, name: str, known: Sequence[Model]) -> Model:
        """The model of a sum of adapters, by its name.

        Raises:
            UserError: a part is unknown or not an adapter, or they have different bases.
        """
        by_name = {key: model for model in known for key in (model.name, model.checkpoint) if key}
        weighted = [(by_name[part], weight) for part, weight in parts_of(name, by_name.__contains__, setting="model")]
        first = weighted[0][0]
        for model, _ in weighted:
            if model.checkpoint is None and not model.stack:
                raise UserError(
                    f"model {name}: {model.name} is not an adapter", action="stack adapters and checkpoints"
                )
            if model.base != first.base:
                raise UserError(
                    f"model {name}: {first.name} adds to {first.base}, and {model.name} to {model.base}",
                    action="stack adapters of one base",
                )
        stack = tuple(
            StackPart(adapter="" if model.checkpoint else model.name, checkpoint=model.checkpoint or "", weight=weight)
            for model, weight in weighted
        )
        return Model(name, first.base, None, self._begun, first.context, stack, weighted[0][0].opening)

    def _opening(self, name: str) -> Opening:
        """The common beginning of a model's or adapter's training rows, read once."""
        if name not in self._openings:
            model = self._service.served.get(name, {"model": name})["model"]
            self._openings[name] = opening_of(model if isinstance(model, str) else model["name"])
        return self._openings[name]

    def _context(self, base: str) -> Context:
        with self._lock:
            if base not in self._contexts:
                context = self._service.context.context(self._service.served[base])
                _ = context.tokenizer, context.facts  # inside the lock, so that two calls do not read it at once
                self._contexts[base] = context
            return self._contexts[base]
