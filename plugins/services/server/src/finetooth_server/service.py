"""The service behind every face: sessions, models, calls, samplers and checkpoints of one tenant. It checks rights and
limits, writes to the log, and does not compute."""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import CommandContext, FinetoothError, Sampling, UserError
from finetooth_wire import wire
from finetooth_wire.bounds import brief
from sqlalchemy import func, insert, select, update

from finetooth_server.audit import Audit, audit_key, has_key
from finetooth_server.batches.scores import NOTHING, ScoreRequest
from finetooth_server.batches.stacks import Stacks
from finetooth_server.batches.streams import Streams
from finetooth_server.client_sessions import ClientSessions, count_of_open
from finetooth_server.collector import collect
from finetooth_server.encryption.values import Values
from finetooth_server.encryption.vault import Vault
from finetooth_server.faults import Conflict, TooMuch, Unknown
from finetooth_server.images import Images
from finetooth_server.keeping.checkpoints import Checkpoint, Checkpoints
from finetooth_server.keeping.folder_lock import make_folder
from finetooth_server.keeping.history import History
from finetooth_server.keeping.model_ids import SAMPLERS, check_id, of_tenant, same_folder
from finetooth_server.keeping.pruning import Pruner, end_sessions
from finetooth_server.keeping.records import QUEUED, Records, calls, models, now, samplers, sessions
from finetooth_server.keys import Caller, Keys
from finetooth_server.limits.costs import Cost, cost_of, cost_of_sampling
from finetooth_server.limits.usage import Usage, usage, write_limits
from finetooth_server.log import REFUSED, Call, Log
from finetooth_server.model_info import ModelInfo, model_info, select_models
from finetooth_server.models import CREATE, LOAD, SAVE, Models
from finetooth_server.operations import OPERATIONS
from finetooth_server.refusals import Refusals
from finetooth_server.sampling import Samplers, batch_key, open_sampler
from finetooth_server.sections import STRATEGY, all_of, continued, described, merged, scale_of
from finetooth_server.settings import Settings
from finetooth_server.tickets import Tickets
from finetooth_server.writer import Writer

LOGGER = logging.getLogger("finetooth.server")

__all__ = ["ModelInfo", "Service"]


class Service(ClientSessions):
    """One server's work.

    Args:
        context: makes engines, losses and tokenizers.

    Raises:
        UserError: the folder or the database cannot be used.
    """

    def __init__(self, context: CommandContext, settings: Settings) -> None:
        make_folder(settings.folder)
        super().__init__(context, settings)
        self.stopped = False
        self.records = Records(settings.database_url)
        self.keys, self.history = Keys(self.records), History(self.records)
        self.images = Images(context, settings.models, self.tokenizer)
        self.tickets = Tickets(self.keys, keyless=settings.keyless)
        unsigned = not has_key(settings.folder)
        key = audit_key(settings.folder, settings.audit_key)
        self.audit = Audit(settings.folder / "audit.jsonl", key, LOGGER.warning, unsigned=unsigned)
        self.refusals = Refusals(self.audit)
        values, limits = Values(self.records, settings.encryption), settings.limits
        self.log = Log(self.records, values, most=limits.queued, most_of_all=limits.waiting, kept=limits.results)
        self.streams = Streams(self.log, most=limits.streams)
        self.vault = Vault(settings.folder, settings.encryption, settings.scratch)
        self.vault.sweep()
        self.vault.check()
        self.checkpoints = Checkpoints(self.records, self.vault, most_bytes=limits.checkpoint_bytes)
        self.stacks = Stacks(settings, self.checkpoints)
        self.registry = Models(context, settings, self.records, self.log, self.checkpoints, self.vault)
        self.writer = Writer(
            settings, self.records, self.log, self.registry, Samplers(context, self.vault, limits), self.checkpoints,
            self.audit, self.streams,
        )  # fmt: skip
        self.pruner = Pruner(self.records, self.log, limits, self._tidy, self._ended)

    def _tidy(self) -> None:
        """Periodic housekeeping."""
        self.keys.record(self.audit)
        self.refusals.flush()
        self.checkpoints.expire()
        with self.records.read() as connection:
            named = set(connection.scalars(select(samplers.c.checkpoint).distinct()))
        self.stacks.sweep(named)
        collect()

    def start(self) -> None:
        """Start; unfinished calls of an earlier server come first."""
        write_limits(self.settings.folder, self.settings.limits)
        self.checkpoints.sweep()
        self.registry.sweep()
        self.writer.start()
        self.pruner.start()

    def stop(self) -> None:
        """Finish the current call and write everything to disk; a second call does nothing."""
        if self.stopped:
            return
        self.stopped = True
        self.writer.stop()
        self.pruner.stop()
        self.audit.close()
        self.records.close()

    # --- sessions -----------------------------------------------------------------------------------------------------

    def finish_session(self, caller: Caller, session: str, how: Mapping[str, Any] | None = None) -> None:
        """End a session and close its models; its checkpoints stay. An ended one does not change, so that a client
        whose answer was lost may repeat the request.

        Args:
            how: the client's word on the end.

        Raises:
            Unknown: there is none, or it is another tenant's.
        """
        self._may(caller, "train", "sample")
        if self.has_ended(caller, session):
            return
        self.note_contact(caller, session)
        with self.records.write() as connection:
            connection.execute(update(sessions).where(sessions.c.id == session).values(finish=described(how)))
        self.forget_contact(session)
        self._ended(end_sessions(self.records, [session]))

    # --- models -------------------------------------------------------------------------------------------------------

    def recipe(self, base: str, sections: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of a base model with a client's own sections on top.

        Raises:
            Unknown: the base model is not served.
            UserError: a section or setting that is not the client's to write.
        """
        return merged(self.settings.models, base, sections)

    def create_model(
        self,
        caller: Caller,
        session: str,
        base: str,
        sections: Mapping[str, Any],
        *,
        id_: str | None = None,
        checkpoint: str | None = None,
        optimizer: bool = True,
        about: Mapping[str, Any] | None = None,
        echo: Mapping[str, Any] | None = None,
        face: str,
    ) -> Call:
        """A new model, and the call that builds it. The same id again gives the same call.

        Args:
            id_: default: the session's id.
            checkpoint: id of the one to start from; `base` and `sections` must then be its own, except `FRESH` with a
                new optimizer.
            optimizer: load the whole state, not only the weights.
            echo: returned with the result, for the face.

        Raises:
            Unknown: no such session, base or checkpoint.
            UserError: the checkpoint has another base or section.
            TooMuch: the tenant has reached its limit of models.
        """
        self._may(caller, "train")
        self.note_contact(caller, session)
        id_ = id_ or session
        check_id(id_)
        strategy = sections.get(STRATEGY)
        scale = {"scale": scale_of(strategy, self.settings.limits.ranks)} if strategy is not None else {}
        if checkpoint is None:
            recipe = self.recipe(base, {name: section for name, section in sections.items() if name != STRATEGY})
        else:
            saved = self.checkpoints.readable(caller.tenant, checkpoint)
            base, recipe = saved.base, continued(saved.base, saved.recipe, base, sections, fresh=not optimizer)
        load = None if checkpoint is None else {"checkpoint": checkpoint, "optimizer": optimizer}
        row: dict[str, Any] = {
            "id": id_,
            "tenant": caller.tenant,
            "session": session,
            "base": base,
            "recipe": json.dumps(recipe | scale),
            "about": described(about),
            "created": now(),
        }
        self._make_room(caller, models, self.settings.limits.models)
        with self.records.write() as connection:
            known = of_tenant(connection, models, caller.tenant, id_)
            if known is None:
                others = connection.execute(select(models).where(same_folder(id_))).all()
                if any(model.tenant == caller.tenant and model.name is None for model in others):
                    raise Conflict(f"model id {id_!r} is taken", action="choose another one")
                if others:  # another tenant's, which stays hidden
                    row |= {"id": secrets.token_hex(16), "name": id_}
                count = count_of_open(connection, models, caller.tenant)
                if count >= self.settings.limits.models:
                    raise TooMuch(f"{count} models are open", action="close one")
                connection.execute(insert(models).values({**row, "closed": False}))
            else:
                row = known._asdict()
        made = {"load": load, "echo": echo}
        call = self.log.submit(caller.tenant, row["id"], 0, CREATE, made, face=face, key=caller.key, name=id_)
        self.writer.wake(row["id"])
        return call

    def model(self, caller: Caller, id_: str) -> ModelInfo:
        """A model of the caller's.

        Raises:
            Forbidden: the key may neither read nor train.
            Unknown: there is none, or it is another tenant's.
        """
        self._may(caller, "read", "train")
        queue = self._queue(caller, id_).id
        with self.records.read() as connection:
            return model_info(connection.execute(select_models().where(models.c.id == queue)).one())

    def _queue(self, caller: Caller, id_: str) -> Any:
        """The row of a model of the caller's; its `id` is the log's.

        Raises:
            Unknown: there is none, or it is another tenant's.
        """
        with self.records.read() as connection:
            row = of_tenant(connection, models, caller.tenant, id_)
        if row is None:
            raise Unknown(f"no session or model {id_!r}", action="list them, or begin a new one")
        return row

    def models(self, caller: Caller) -> list[ModelInfo]:
        """The caller's models that are not closed, oldest first."""
        self._may(caller, "read", "train")
        with self.records.read() as connection:
            rows = connection.execute(
                select_models()
                .where(models.c.tenant == caller.tenant, models.c.closed.is_(False))
                .order_by(models.c.created)
            ).all()
        return [model_info(row) for row in rows]

    def close_model(self, caller: Caller, id_: str) -> None:
        """End a model; its checkpoints stay. Waiting calls will fail."""
        self._may(caller, "train")
        queue = self._queue(caller, id_).id
        with self.records.write() as connection:
            connection.execute(update(models).where(models.c.id == queue).values(closed=True))
        self._ended([queue])

    def _ended(self, queues: Sequence[str]) -> None:
        """Cancel the queued calls of closed models and ended samplers."""
        self.writer.cancel(self.log.cancel_queues(queues))
        self.writer.close_models([queue for queue in queues if not queue.startswith(SAMPLERS)])

    # --- calls --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        caller: Caller,
        model: str,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        seq: int | None = None,
        face: str,
        error: str = "",
    ) -> Call:
        """Record a call on a model; the same number again is the same call.

        Args:
            seq: its place, from 1; None: the next one.
            error: of an invalid call, which fails when its turn comes.

        Raises:
            Forbidden, Unknown, TooMuch: it is refused. Other errors fail the call itself.
        """
        kind = OPERATIONS.get(operation)
        if kind is None and operation not in (SAVE, LOAD):
            raise Unknown(f"unknown operation {operation!r}", action=f"use one of {all_of(OPERATIONS)}")
        self._may(caller, "train" if kind is None else kind.scope)
        row = self._queue(caller, model)
        if seq is not None and not 0 < seq < 2**62:
            raise UserError(f"seq is {seq}", action="count calls from 1")
        cost, wrong = self._cost(row.base, operation, arguments)
        error = error or wrong
        call = self.log.submit(
            caller.tenant, row.id, seq, operation, {} if error else arguments, face=face, error=error, key=caller.key,
            tokens=cost.tokens, memory=cost.memory, name=model,
        )  # fmt: skip
        if call.state == QUEUED:
            self.note_use(row.session)
            self.writer.wake(row.id)
        return call

    def cancel(self, caller: Caller, id_: str) -> Call:
        """Cancel a call: a waiting one fails when its turn comes, a running one stops before its next micro-batch or
        token and leaves its model unchanged. Finished ones do not change.

        Returns:
            the call before; wait for its end as for any other.

        Raises:
            Forbidden: the key may neither train nor sample.
            Unknown: there is none, or it is another tenant's.
        """
        self._may(caller, "train", "sample")
        call = self.log.cancel(caller, id_)
        if call.state == QUEUED:
            self.writer.cancel([id_])
        return call

    def call(self, caller: Caller, id_: str) -> Call:
        """The current state of a call of the caller's.

        Raises:
            Forbidden: the key may neither read nor make calls.
            Unknown: there is none, or it is another tenant's.
        """
        self._may(caller, "read", "train", "sample")
        return self.log.fetch(caller, id_)

    async def wait(self, caller: Caller, id_: str, seconds: float = math.inf) -> Call:
        """A call of the caller's, once it has finished, the seconds are over, or a request may not be held longer."""
        self._may(caller, "read", "train", "sample")
        return await self.log.wait(caller, id_, min(seconds, self.settings.limits.wait))

    def base_of(self, caller: Caller, call: Call) -> str:
        """Name of the base model of a call of the caller's."""
        sampler = call.queue.removeprefix("sampler:")
        return self._queue(caller, call.queue).base if sampler == call.queue else self.sampler(caller, sampler)[0]

    def _cost(self, base: str, operation: str, arguments: Mapping[str, Any]) -> tuple[Cost, str]:
        """The cost of a call, and the error in its arguments as far as known without the model's weights; an invalid
        call costs nothing."""
        try:
            cost = cost_of(operation, arguments, self.facts(base))
            error = cost.refusal(operation, self.settings.limits)
        except FinetoothError as caught:
            error = str(caught)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as caught:
            error = f"{operation}: its arguments cannot be read: {type(caught).__name__}"
        return (Cost(), brief(error)) if error else (cost, "")

    # --- sampling -----------------------------------------------------------------------------------------------------

    def open_sampler(
        self, caller: Caller, session: str, id_: str, *, base: str = "", checkpoint: str | None = None
    ) -> str:
        """Make a base model or a checkpoint available for sampling, under an id; returns the base's name.

        Raises:
            Unknown: no such session, base or checkpoint.
        """
        self._may(caller, "sample")
        self.note_contact(caller, session)
        if checkpoint is not None:
            base = self.stacks.base(caller.tenant, checkpoint)
        else:
            self.recipe(base, {})
        open_sampler(self.records, id_, caller.tenant, session, base, checkpoint)
        return base

    def sampler(self, caller: Caller, id_: str) -> tuple[str, str | None]:
        """Base and checkpoint of a sampler of the caller's.

        Raises:
            Unknown: there is none, or it is another tenant's.
        """
        self._may(caller, "read", "train", "sample")
        row = self._sampler(caller, id_)
        return row.base, row.checkpoint

    def has_sampler(self, caller: Caller, id_: str) -> bool:
        """Whether the caller has a sampler of this id."""
        with self.records.read() as connection:
            return of_tenant(connection, samplers, caller.tenant, id_) is not None

    def _sampler(self, caller: Caller, id_: str) -> Any:
        with self.records.read() as connection:
            row = of_tenant(connection, samplers, caller.tenant, id_)
        if row is None:
            raise Unknown(f"no sampler {id_!r}", action="make one")
        return row

    def sample(
        self,
        caller: Caller,
        sampler: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        seq: int | None = None,
        seeded: bool,
        face: str,
        asked: ScoreRequest = NOTHING,
        layout: Mapping[str, Any] | None = None,
        error: str = "",
    ) -> Call:
        """Record a sampling call; calls with the same weights share a batch.

        Args:
            seeded: the client chose the seed.
            asked: requested results besides the completions.
            layout: returned with the result, for the face.
        """
        self._may(caller, "sample")
        row = self._sampler(caller, sampler)
        base, checkpoint = row.base, row.checkpoint
        arguments: dict[str, Any] = {
            **wire.encode_prompt(prompt),
            "sampling": wire.encode_sampling(sampling),
            "seeded": seeded,
            **asked.encoded(),
            **({} if layout is None else {"layout": layout}),
        }
        cost = cost_of_sampling(
            [prompt],
            sampling,
            self.facts(base),
            prompt_logprobs=asked.prompt,
            top=asked.most,
            top_samples=asked.top_samples,
            embedding=asked.embedding,
        )
        error = error or cost.refusal("sample", self.settings.limits)
        key = REFUSED if error else batch_key(checkpoint, base)
        queue = f"{SAMPLERS}{row.id}"
        takes = Cost() if error else cost
        call = self.log.submit(
            caller.tenant, queue, seq, "sample", {} if error else arguments, face=face, batch=key, error=error,
            key=caller.key, tokens=takes.tokens, memory=takes.memory, name=f"{SAMPLERS}{sampler}",
        )  # fmt: skip
        if call.state == QUEUED:
            self.note_use(row.session)
            self.writer.wake(None)
        return call

    # --- facts --------------------------------------------------------------------------------------------------------

    def checkpoint(self, caller: Caller, id_: str) -> Checkpoint:
        """A checkpoint of the caller's, or one that is public."""
        self._may(caller, "read", "train", "sample")
        return self.checkpoints.readable(caller.tenant, id_)

    def named_checkpoint(self, caller: Caller, model: str, kind: str, name: str, *, public: bool = False) -> Checkpoint:
        """The caller's checkpoint of a model by its kind and name.

        Args:
            public: include public ones of other tenants.
        """
        self._may(caller, "read", "train", "sample", "download")
        return self.checkpoints.by_name(caller.tenant, model, kind, name, public=public)

    def all_checkpoints(self, caller: Caller, model: str | None = None) -> list[Checkpoint]:
        """The caller's checkpoints; of one model if given."""
        self._may(caller, "read", "train", "sample")
        return self.checkpoints.all(caller.tenant, model)

    def downloadable(self, caller: Caller, id_: str) -> Checkpoint:
        """A checkpoint of the caller's that the caller may download."""
        self._may(caller, "download")
        return self.checkpoints.get(caller.tenant, id_)

    def delete_checkpoint(self, caller: Caller, id_: str) -> None:
        """Remove a checkpoint of the caller's; samplers of it fail from now on."""
        self._may(caller, "train")
        self.checkpoints.delete(caller, id_)

    def counts(self, caller: Caller | None = None) -> dict[str, int]:
        """Calls by state, for metrics.

        Args:
            caller: counts only its tenant's, unless it may see everything; None counts all.
        """
        chosen = select(calls.c.state, func.count()).group_by(calls.c.state)
        if caller is not None and not caller.may("admin"):
            chosen = chosen.where(calls.c.tenant == caller.tenant)
        with self.records.read() as connection:
            rows = connection.execute(chosen).all()
        return {row[0]: row[1] for row in rows}

    def usage(self, caller: Caller) -> Usage:
        """The tenant's usage of its limits (`settings.limits`)."""
        self._may(caller, "read", "train", "sample")
        return usage(self.records, caller.tenant)[caller.tenant]

    def _may(self, caller: Caller, *scopes: str) -> None:
        caller.must(*scopes)
