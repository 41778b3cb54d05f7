"""Models that clients train: created, restored after a restart, moved to disk when others need memory.

To restore a model, the server builds its engine again, loads the last snapshot, and replays the log from there. The
engine's numbers depend only on its calls, so the result is bit-identical.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from finetooth_hooks import CommandContext, Engine, FinetoothError, UserError
from finetooth_wire import json_parts
from sqlalchemy import Row, select, update

from finetooth_server.collector import collect
from finetooth_server.encryption.vault import Vault
from finetooth_server.keeping.checkpoints import STATE, WEIGHTS, Checkpoints
from finetooth_server.keeping.model_ids import folder_name
from finetooth_server.keeping.records import DONE, FAILED, Records, models
from finetooth_server.live import LiveModel, made_model, state_copied
from finetooth_server.log import Due, Log
from finetooth_server.operations import OPERATIONS, execute, handle_number
from finetooth_server.ranks.engine import RankedEngine
from finetooth_server.sections import ranks_of
from finetooth_server.settings import Settings

CREATE, SAVE, LOAD = "create", "save", "load"


class Models:
    """The models of a server. Only the writer's thread builds or changes one."""

    def __init__(
        self,
        context: CommandContext,
        settings: Settings,
        records: Records,
        log: Log,
        checkpoints: Checkpoints,
        vault: Vault,
    ) -> None:
        self._context, self._settings, self._records, self._log = context, settings, records, log
        self._checkpoints, self._vault = checkpoints, vault
        self._folder = settings.folder / "snapshots"
        self._live: dict[str, LiveModel] = {}
        self.busy: set[str] = set()  # models of running calls, which stay in memory
        self.asked: Callable[[], bool] = lambda: False  # before every micro-batch and token

    # --- in memory ----------------------------------------------------------------------------------------------------

    def live(self, id_: str) -> LiveModel:
        """The model in memory, restored if necessary.

        Raises:
            FinetoothError: its engine cannot be built, or its snapshot cannot be read.
        """
        model = self._live.get(id_)
        if model is None:
            with self._records.read() as connection:
                row = connection.execute(select(models).where(models.c.id == id_)).one()
            self._make_room()
            model = self._brought_back(row)
            self._live[id_] = model
        model.used = time.monotonic()
        self._drop_old_handles(model)
        return model

    def in_memory(self, id_: str) -> LiveModel | None:
        """The model if it is in memory."""
        return self._live.get(id_)

    def forget(self, id_: str) -> None:
        """Drop a model from memory if its state differs from the log: the next call restores it."""
        if (model := self._live.pop(id_, None)) is not None:
            _end_ranks(model)

    def remove(self, id_: str) -> None:
        """Remove a closed model's engine and snapshots; its checkpoints stay."""
        self.forget(id_)
        self._vault.remove(self._folder / folder_name(id_))

    @property
    def held(self) -> int:
        """Engines in memory."""
        return len(self._live)

    def sweep(self) -> None:
        """Remove snapshots of closed models; checkpoints stay. Called first."""
        with self._records.read() as connection:
            open_ = connection.scalars(select(models.c.id).where(models.c.closed.is_(False)))
            open_folders = {folder_name(id_) for id_ in open_}
        for folder in self._folder.glob("*"):
            if folder.name not in open_folders:
                self._vault.remove(folder)

    def snapshot(self, model: LiveModel, copied: Callable[[], None] | None = None) -> None:
        """Write a snapshot of a model, from which replays start.

        Args:
            copied: called when the engine is no longer needed; None: nobody waits for it, and no copy is made.
        """
        with self._records.read() as connection:
            row = connection.execute(select(models).where(models.c.id == model.id)).one()
        if row.snapshot >= model.applied:
            return
        self.write_snapshot(model, model.applied, copied)
        marks = snapshot_marks(model.applied, row.stepped)
        with self._records.write() as connection:
            connection.execute(update(models).where(models.c.id == model.id).values(marks))
        self.snapshot_stands(model, marks["replay"])

    def write_snapshot(self, model: LiveModel, seq: int, copied: Callable[[], None] | None = None) -> None:
        """The files of a snapshot that holds the effect of call `seq`; see `snapshot`."""
        with self._vault.writing(self._folder / folder_name(model.id) / str(seq)) as folder:
            if copied is None:
                model.engine.save(folder)
                return
            write = state_copied(model.engine, folder)
            copied()
            write()

    def snapshot_stands(self, model: LiveModel, replay: int) -> None:
        """Remove snapshots older than the recorded one at `model.applied`."""
        model.computed = 0.0
        for old in (self._folder / folder_name(model.id)).iterdir():
            if old.name != str(model.applied):
                self._vault.remove(old)
        self._log.forget(model.id, replay)

    # --- building -----------------------------------------------------------------------------------------------------

    def create(
        self, id_: str, recipe: Mapping[str, Any], checkpoint: Mapping[str, Any] | None, tenant: str
    ) -> LiveModel:
        """A new model, from its base or from a checkpoint."""
        self._make_room()
        model = self._built(id_, recipe)
        if checkpoint is not None:
            self.load(model, checkpoint, tenant)
        self._live[id_] = model
        return model

    def load(
        self, model: LiveModel, arguments: Mapping[str, Any], tenant: str, recipe: Mapping[str, Any] | None = None
    ) -> None:
        """Load the state of a checkpoint, or with `optimizer: false` only its weights, with a new optimizer.

        Args:
            recipe: of a trained model; None for a new one.

        Raises:
            UserError: it does not fit, or holds no state.
        """
        checkpoint = self._checkpoints.readable(tenant, str(arguments.get("checkpoint")))
        if arguments.get("optimizer", True):
            with self._checkpoints.reading(checkpoint, STATE) as folder:
                model.engine.load(folder)
        else:
            fresh = model if recipe is None else self._built(model.id, recipe)
            with self._checkpoints.reading(checkpoint, WEIGHTS) as folder:
                fresh.engine.restore(folder)
            if fresh is not model:
                _end_ranks(model)
            model.engine, model.ranks = fresh.engine, fresh.ranks
        model.handles.clear()

    def _built(self, id_: str, recipe: Mapping[str, Any]) -> LiveModel:
        ranks: Any = None  # it has the methods that a service needs
        if ranks_of(recipe) > 1:
            silence = self._settings.limits.rank_silence
            command, scratch = self._settings.own_command, self._vault.scratch
            scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            ranks = RankedEngine(command, recipe, lambda: self.asked(), silence, scratch)
        engine: Engine = self._context.engine(recipe) if ranks is None else ranks
        missing = sorted({"full_state", "handles"} - engine.capabilities)
        if missing:
            raise UserError(
                f"the engine lacks {', '.join(missing)}, which a service needs", action="choose another backend"
            )
        if "interrupt" in engine.capabilities:
            engine.interrupt_when(lambda: self.asked())
        model = made_model(self._context, id_, recipe, engine, ranks, lambda: self.asked())
        model.used = time.monotonic()
        return model

    def _brought_back(self, row: Row[Any]) -> LiveModel:
        """The model's state after the last call marked as applied."""
        model = self._built(row.id, json.loads(row.recipe))
        if row.snapshot >= 0:
            with self._vault.reading(self._folder / folder_name(row.id) / str(row.snapshot)) as folder:
                model.engine.load(folder)
        model.applied = row.snapshot
        accumulated = _Accumulated()
        for call in self._log.between(row.id, row.replay, row.applied):
            self._again(model, row, call, accumulated)
        model.applied = row.applied
        return model

    def _again(self, model: LiveModel, row: Row[Any], call: Due, accumulated: _Accumulated) -> None:
        """Replay a call of the log, unless the engine in memory has seen it."""
        covered = call.seq <= row.snapshot
        if call.operation == "step" and not covered and call.state == FAILED and call.begun and call.arguments:
            with suppress(FinetoothError):  # it fails again, with the same effects
                execute(model, "step", json_parts.loads(call.arguments)["arguments"], call.seq)
        if call.state != DONE:
            return
        arguments = json_parts.loads(call.arguments)["arguments"] if call.arguments else {}
        if covered:
            arguments = accumulated.placed(call, arguments)
        if call.operation == "forward":
            if arguments.get("keep") is not False:
                execute(model, "forward", arguments, call.seq)
                model.since[call.seq] = time.monotonic()
        elif covered:
            if call.operation == "backward":  # its handle was used
                model.handles.pop(handle_number(arguments), None)
        elif call.operation == CREATE:
            if arguments.get("load"):
                self.load(model, arguments["load"], row.tenant)
        elif call.operation == LOAD:
            self.load(model, arguments, row.tenant, json.loads(row.recipe))
        elif call.operation in OPERATIONS and OPERATIONS[call.operation].changes:
            execute(model, call.operation, arguments, call.seq)

    # --- room ---------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Move the least recently used models to disk."""
        while len(self._live.keys() - self.busy) + len(self.busy) > max(1, self._settings.limits.live, len(self.busy)):
            oldest = min((m for m in self._live.values() if m.id not in self.busy), key=lambda model: model.used)
            with suppress(FinetoothError):  # its state is incomplete; the log has it
                self.snapshot(oldest)
            self.forget(oldest.id)
            del oldest
            collect()

    def _drop_old_handles(self, model: LiveModel) -> None:
        limit = time.monotonic() - self._settings.limits.handle
        for number in [number for number in model.handles if model.since.get(number, limit) < limit]:
            handle = model.handles.pop(number)
            model.since.pop(number, None)
            if "release" in model.engine.capabilities:
                model.engine.release(handle)

    def close(self) -> None:
        """Snapshot every model in memory, so that the next start needs no replay."""
        for model in self._live.values():
            with suppress(FinetoothError):
                self.snapshot(model)
        for id_ in [*self._live]:
            self.forget(id_)


class _Accumulated:
    """Counts the examples accumulated in a step before a forward was first computed.

    The snapshot also holds calls after that forward. Without the count, the forward's examples would get other places
    in the step, and so other dropout masks.
    """

    def __init__(self) -> None:
        self._count = 0
        self._forwards: dict[int, int] = {}

    def placed(self, call: Due, arguments: dict[str, Any]) -> dict[str, Any]:
        """Count a call covered by the snapshot; return its arguments, and give a forward's examples their places."""
        data = arguments.get("data") or ()
        if call.operation == "forward":
            self._forwards[call.seq] = len(data)
            return {
                **arguments,
                "data": [
                    datum if datum.get("place") is not None else {**datum, "place": self._count + at}
                    for at, datum in enumerate(data)
                ],
            }
        if call.operation == "forward_backward":
            self._count += len(data)
        elif call.operation == "backward":
            self._count += self._forwards.get(handle_number(arguments), 0)
        elif call.operation in ("step", "zero_grad"):
            self._count = 0
        return arguments


def _end_ranks(model: LiveModel) -> None:
    if model.ranks is not None:
        model.ranks.end()


def snapshot_marks(seq: int, stepped: int) -> dict[str, int]:
    """Database columns of a snapshot with the effect of call `seq`: forwards since the last step before it may still
    get their backward, and are recomputed for that."""
    return {"snapshot": seq, "replay": min(seq, stepped) + 1}
