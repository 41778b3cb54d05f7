"""Executes the log. Only one thing at a time uses engines: a part of a training call, or a token for all running
samplings. `scheduling` chooses the turns; calls of one model run in the order of their numbers."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from finetooth_hooks import FinetoothError, Interrupted, UserError
from finetooth_wire import json_parts
from sqlalchemy import Row, select

from finetooth_server.audit import Audit
from finetooth_server.batches.scheduling import Running, Scheduler
from finetooth_server.batches.streams import Streams
from finetooth_server.batches.turns import SamplingTurns
from finetooth_server.calls import category_of, in_turn
from finetooth_server.collector import collect
from finetooth_server.faults import DiskFull
from finetooth_server.keeping.checkpoints import Checkpoints
from finetooth_server.keeping.records import Records, models
from finetooth_server.live import LiveModel
from finetooth_server.log import CANCELLED, Due, Log
from finetooth_server.models import CREATE, LOAD, SAVE, Models, snapshot_marks
from finetooth_server.operations import execute
from finetooth_server.ranks.engine import RankLost
from finetooth_server.sampling import Samplers, open_sampler
from finetooth_server.settings import Settings

LOGGER = logging.getLogger("finetooth.server")

CLOSED = "the model was closed (make another one)"

ENDS_HANDLES = ("step", CREATE, LOAD)
"""Operations after which no earlier forward can get a backward."""


MAKING = 2.0
"""Factor on the charge for making a model: it runs in one part, and blocks the processor's caches and the interpreter
for all others. So a tenant that opens and closes models all the time gets a third."""


ALONE = 3.0
"""Seconds at a server's start for calls that ran when an earlier one ended: each runs alone, so that if it ends this
server too, no other call is suspected. After that the rest run with all others."""


class Writer:
    """Executes the log. Call `wake` after every submission."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        log: Log,
        registry: Models,
        pool: Samplers,
        checkpoints: Checkpoints,
        audit: Audit,
        streams: Streams,
    ) -> None:
        self._settings, self._records, self._log = settings, records, log
        self._models, self._pool, self._checkpoints, self._audit = registry, pool, checkpoints, audit
        self._streams = streams
        self._turns = SamplingTurns(settings, records, log, pool, checkpoints, audit, streams)
        self._bell = threading.Condition()
        self._scheduler = Scheduler(
            settings.limits, self._execute_due, self._turns, registry.busy, pause=self._pause, ring=self._ring
        )
        registry.asked = self._scheduler.asked
        self._woken: dict[str, None] = {}  # queues to check
        self._closed: set[str] = set()
        self._sampling = False
        self._ending = self._idle = False
        self._thread = threading.Thread(target=self._work, name="finetooth-writer", daemon=True)
        self._cancelled: set[str] = set()
        self.broken = ""

    def start(self) -> None:
        """Start, with unfinished calls of an earlier server first."""
        self._woken.update(dict.fromkeys(self._log.queues()))
        self._sampling = True
        self._thread.start()

    def wake(self, queue: str | None) -> None:
        """Announce a call in this model's queue; None: a sampling call."""
        with self._bell:
            if queue is None:
                self._sampling = True
            else:
                self._woken[queue] = None
            self._bell.notify()

    def cancel(self, ids: Sequence[str]) -> None:
        """Stop running calls before their next micro-batch or token. The log already knows."""
        with self._bell:
            self._cancelled.update(ids)
            self._sampling = True
            self._bell.notify()

    def close_models(self, queues: Sequence[str]) -> None:
        """Release closed models, and fail the calls that wait for them."""
        with self._bell:
            self._closed.update(queues)
            self._woken.update(dict.fromkeys(queues))
            self._bell.notify()

    def wait_idle(self, seconds: float = 60.0) -> bool:
        """Wait until no call is executed and nothing waits for one; False if that takes longer than `seconds`."""
        with self._bell:
            return self._bell.wait_for(lambda: self._idle and not (self._woken or self._sampling), seconds)

    def stop(self, seconds: float = 60.0) -> None:
        """Leave running calls to the next server, except those that cannot be interrupted; write snapshots, and end."""
        with self._bell:
            self._ending = True
            self._bell.notify()
        self._log.ended.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._try_suspects()
            while True:
                with self._bell:
                    while not (self._anything() or self._ending):
                        self._idle = not len(self._scheduler)
                        self._bell.notify_all()
                        self._bell.wait()
                    self._idle = False
                    if self._ending:
                        break
                    woken, self._woken = self._woken, {}
                    look, self._sampling = self._sampling, False  # before checking: later calls are seen next time
                self._break_off()
                self._look_into(woken)
                if look and self._admits() and not self._turns.busy:
                    self._sampling = True  # these could not be sampled; others wait
                before = self._turns.count
                ended = self._scheduler.turn()
                if ended is not None:
                    self.wake(ended.queue)  # a call may be behind it
                if self._turns.count < before:
                    self._sampling = True  # there is room for waiting calls
            self._scheduler.leave()
            self._turns.close()
            self._models.close()
            self._pool.close()
        except DiskFull as error:
            if not self._ending:
                raise
            self.broken = str(error)
        except BaseException as error:  # the next server executes the rest of the log
            self.broken = f"{type(error).__name__}: {error}"
            raise

    def _try_suspects(self) -> None:
        """See `ALONE`."""
        end = time.monotonic() + ALONE
        for call in in_turn(self._log.suspects()):
            if self._ending or time.monotonic() > end:
                return
            due = None if call.batch else self._log.peek(call.queue)
            if not call.batch and due is None:
                continue  # a call before it comes first
            self._log.isolate(call, True)
            if call.batch:
                self._turns.admit_alone(call)
            else:
                self._scheduler.offer(call.queue, due)
            while not self._ending and time.monotonic() < end:
                self._break_off()
                self._scheduler.turn()  # once more after the end, without waiting for anyone
                if not self._scheduler.wants:
                    if not len(self._scheduler):
                        break
                    with self._bell:
                        self._bell.wait(0.01)  # it writes files
            self._log.isolate(call, False)

    def _break_off(self) -> None:
        """Stop cancelled calls."""
        with self._bell:
            cancelled, self._cancelled = self._cancelled, set()
        self._turns.cancel(cancelled)
        self._scheduler.stop(cancelled)

    def _admits(self) -> bool:
        """See `SamplingTurns.admit`; the time is charged to the tenants of running calls, by their number."""
        begun = time.perf_counter()
        others_wait = self._turns.admit()
        took, calls = time.perf_counter() - begun, self._turns.calls
        for tenant, count in calls.items():
            self._scheduler.charge(tenant, took * count / calls.total())
        return others_wait

    def _pause(self, seconds: float) -> None:
        """Wait for something new to do."""
        with self._bell:
            self._bell.wait_for(lambda: self._news() or self._ending, seconds)

    def _ring(self) -> None:
        """Announce that a call that stepped aside wants a turn."""
        with self._bell:
            self._bell.notify_all()

    def _anything(self) -> bool:
        """Announce new work."""
        return self._news() or self._scheduler.wants

    def _news(self) -> bool:
        """Wait until there is something to check."""
        return bool(self._woken or self._closed or self._cancelled or self._sampling)

    def _look_into(self, woken: Collection[str]) -> None:
        """Update the next calls of changed queues."""
        for queue in woken:
            if not self._scheduler.running(queue):
                self._scheduler.offer(queue, self._log.peek(queue))
        closed = tuple(self._closed)  # atomically: others close queues meanwhile
        unscheduled = [queue for queue in closed if queue not in self._scheduler]
        if not unscheduled:
            return
        before, begun = self._models.held, time.perf_counter()
        for queue in unscheduled:
            self._models.remove(queue)
            self._closed.discard(queue)
        if self._models.held < before:
            collect()
        took = (time.perf_counter() - begun) / len(unscheduled)
        for tenant in self._tenants_of(unscheduled):  # charged to no other tenant
            self._scheduler.charge(tenant, took)

    # --- training -----------------------------------------------------------------------------------------------------

    def _execute_due(self, running: Running) -> None:
        """Execute the next call of a queue, in its lane."""
        queue = running.queue
        call = self._log.next_of(queue)
        if call is None:
            return
        running.call = call.id
        running.weight = MAKING if call.operation == CREATE else 1.0
        begun = time.monotonic()
        content = json_parts.loads(call.arguments or b"")
        row = self._row(queue)
        error = category = ""
        result: Any = None
        model: LiveModel | None = None
        marks = {"applied": call.seq}
        traceless = True
        try:
            if content["refused"]:
                raise UserError(content["refused"])
            if row.closed:
                raise UserError(CLOSED)
            if call.hopeless:
                raise UserError(call.hopeless)
            self._log.begin([call])
            traceless = False
            model, result = self._execute(row, call, content["arguments"], running)  # in its turn, but for a save
            if content["arguments"].get("echo"):
                result = {**result, "echo": content["arguments"]["echo"]}
            if call.operation in ENDS_HANDLES:
                marks["stepped"] = call.seq
            if call.operation == LOAD or (call.operation == CREATE and content["arguments"].get("load")):
                # no replay may need the checkpoint, which may be deleted later
                self._models.write_snapshot(model, call.seq)
                marks.update(snapshot_marks(call.seq, call.seq))
        except Interrupted:
            if running.left:
                self._log.leave([call])
                return
            traceless = True
            error, category = CLOSED if self._row(queue).closed else CANCELLED, "user"
        except RankLost as caught:
            error, category, model = str(caught), "server", None
            marks["closed"] = True
            self._scheduler.come_back(running)
            self._models.forget(queue)
            self.close_models([queue])
        except FinetoothError as caught:
            error, category = str(caught), category_of(caught)
        except Exception as caught:  # a bug: the model continues from the log
            error, category = f"the server failed: {type(caught).__name__}", "server"
            self._report(call, caught)
            self._scheduler.come_back(running)
            self._models.forget(queue)
            model = None
        if error and call.operation == CREATE:
            marks["closed"] = True  # a model without its checkpoint must not be used
        self._log.finish(call, result, error=error, category=category, traceless=traceless, **marks)
        self._streams.end(call.id)
        self._audit.add(
            f"{call.operation} finished",
            tenant=call.tenant,
            model=queue,
            seq=call.seq,
            outcome="failed" if error else "done",
        )
        self._scheduler.come_back(running)
        running.call = ""  # later errors are the server's own
        if model is not None:
            model.applied = call.seq
            model.computed += time.monotonic() - begun - running.rested
            if "snapshot" in marks:
                self._models.snapshot_stands(model, marks["replay"])
            elif model.computed > self._settings.replay:
                self._snapshot(model, running)
        elif error:
            self._applied(queue, call.seq)

    def _tenants_of(self, queues: Collection[str]) -> list[str]:
        """The tenant of each, without those whose records were pruned."""
        with self._records.read() as connection:
            return list(connection.scalars(select(models.c.tenant).where(models.c.id.in_(queues))))

    def _row(self, queue: str) -> Row[Any]:
        with self._records.read() as connection:
            return connection.execute(select(models).where(models.c.id == queue)).one()

    def _execute(
        self, row: Row[Any], call: Due, arguments: Mapping[str, Any], running: Running
    ) -> tuple[LiveModel, Any]:
        recipe = json.loads(row.recipe)
        if call.operation == CREATE:
            model = self._models.create(row.id, recipe, arguments.get("load"), row.tenant)
            info = model.engine.info
            return model, {"model": row.id, "parameters": info.parameters, "trained": info.trained}
        model = self._models.live(row.id)
        if call.operation == LOAD:
            self._models.load(model, arguments, row.tenant, recipe)
            return model, {"checkpoint": arguments.get("checkpoint")}
        if call.operation == SAVE:
            return model, self._save(row, recipe, model, arguments, call.id, running)
        model.written = partial(self._stream_token, running)
        result = execute(model, call.operation, arguments, call.seq)
        if call.seq in model.handles:
            model.since[call.seq] = time.monotonic()
        return model, result

    def _stream_token(self, running: Running, completion: int, token: int, logprob: float) -> None:
        self._streams.write(running.call, completion, token, logprob)
        self._streams.ring(running.call)

    def _save(
        self,
        row: Row[Any],
        recipe: Mapping[str, Any],
        model: LiveModel,
        arguments: Mapping[str, Any],
        call: str,
        running: Running,
    ) -> Any:
        """Write a checkpoint as soon as its content is copied, while calls of others run."""
        saved = self._checkpoints.save(
            model.engine,
            tenant=row.tenant,
            model=row.id,
            model_name=row.name or "",
            base=row.base,
            recipe=recipe,
            kind=arguments.get("kind") or "state",
            name=str(arguments.get("name")),
            call=call,
            overwrite=bool(arguments.get("overwrite")),
            ttl=arguments.get("ttl"),
            metadata=arguments.get("metadata"),
            copied=partial(self._scheduler.step_aside, running),
        )
        sampler = arguments.get("sampler")
        if sampler:
            open_sampler(self._records, sampler, row.tenant, row.session, row.base, saved.id)
        return {"checkpoint": saved.id, "name": saved.name, "kind": saved.kind, "size": saved.size, "sampler": sampler}

    def _applied(self, queue: str, seq: int) -> None:
        """Mark a call that failed before its model was ready as seen by the engine in memory."""
        model = self._models.in_memory(queue)
        if model is not None:
            model.applied = seq

    def _snapshot(self, model: LiveModel, running: Running) -> None:
        try:
            self._models.snapshot(model, partial(self._scheduler.step_aside, running))
        except FinetoothError:
            model.computed = 0.0  # its state is incomplete after a failed step; the log has all
        finally:
            self._scheduler.come_back(running)

    def _report(self, call: Due, error: Exception) -> None:
        """Write an internal error to the server's log, never to the client."""
        LOGGER.error("%s %s failed", call.operation, call.id, exc_info=error)
