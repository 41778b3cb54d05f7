"""The running sampling calls: one batch, which calls join and leave.

A batch has the low-rank adapters of one base, or one other set of weights. Calls for other weights wait: `Limits.turn`
seconds after the oldest of them came, the present batch admits no more calls, and when it is empty they run.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from finetooth_hooks import Completion, Engine, FinetoothError, UpstreamError
from finetooth_hooks.compute.held import HeldAdapter
from finetooth_wire import json_parts, wire
from sqlalchemy import select

from finetooth_server.audit import Audit
from finetooth_server.batches.plain_batch import TenantsBatch, running_batch
from finetooth_server.batches.stacks import Stacks, Weights
from finetooth_server.batches.streams import Streams
from finetooth_server.calls import category_of
from finetooth_server.faults import Unknown
from finetooth_server.keeping.checkpoints import Checkpoints
from finetooth_server.keeping.model_ids import SAMPLERS
from finetooth_server.keeping.records import Records, samplers
from finetooth_server.log import CANCELLED, REFUSED, Due, Log
from finetooth_server.sampling import Samplers, begin, complete
from finetooth_server.settings import Settings

LOGGER = logging.getLogger("finetooth.server")

ALONE = 3 / 4
"""Largest share of a batch for one tenant, so that a newcomer finds a place at once."""

SHARED_MOST = 8
"""Most calls of a tenant in a batch in which others sample, or did within `RECENT` steps."""

RECENT = 512
"""Steps after its last call for which a tenant counts as sampling."""

MOST_KEYS = 4096
"""Sets of weights whose batch keys are cached."""


@dataclass
class _Writing:
    """A call in the batch.

    Attributes:
        arguments: of the call.
        result: but for its completions.
        count: completions that it waits for.
        scoring: returns an engine with the call's weights as its own; None: the batch's engine.
    """

    call: Due
    arguments: Mapping[str, Any]
    result: dict[str, Any]
    count: int
    completions: dict[int, Completion]
    scoring: Callable[[], Engine] | None = None


class SamplingTurns:
    """Runs sampling calls; only the writer's thread calls it."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        log: Log,
        pool: Samplers,
        checkpoints: Checkpoints,
        audit: Audit,
        streams: Streams,
    ) -> None:
        self._settings, self._records, self._log, self._pool = settings, records, log, pool
        self._stacks, self._audit, self._streams = Stacks(settings, checkpoints), audit, streams
        self._turn = ""
        self._turns: dict[str, str] = {}
        self._hosts = pool.hosts(settings.limits.held)
        self._engine: Engine | None = None
        self._batch: TenantsBatch | None = None
        self._writing: dict[int, _Writing] = {}
        self._alone: list[Due] = []  # to be sampled separately, after a failed step
        self._spent = Counter[str]()
        self._steps = 0
        self._seen: dict[str, int] = {}  # tenants, by the step at which they had a call

    @property
    def busy(self) -> bool:
        """Whether there is a token to sample."""
        return bool(self._writing or self._alone)

    @property
    def calls(self) -> Counter[str]:
        """The number of running calls of each tenant."""
        return Counter(writing.call.tenant for writing in self._writing.values())

    @property
    def tenants(self) -> set[str]:
        """The tenants with running calls."""
        return {*self.calls} or {call.tenant for call in self._alone[:1]}

    def spent(self) -> Mapping[str, int]:
        """Tokens by tenant, read and written since this was last asked."""
        tokens, self._spent = self._spent, Counter[str]()
        return tokens

    @property
    def count(self) -> int:
        """The running calls."""
        return len(self._writing) + len(self._alone)

    def admit(self) -> bool:
        """Admit waiting calls; True if more may join later."""
        besides = [*(writing.call.id for writing in self._writing.values()), *(call.id for call in self._alone)]
        oldest = self._log.oldest_waiting(besides)
        if oldest.pop(REFUSED, None) is not None:
            for call in self._log.waiting_in(REFUSED, besides, before=float("inf"), most=1024):
                self._fail(call, json.loads(call.arguments or b"")["refused"], "user")
        if not oldest:
            return False
        if self._alone:
            return True  # a call that joined now could be blamed
        turns = {key: self._turn_of(key, besides) for key in oldest}
        if not self._writing:
            self._turn_to(turns[min(oldest, key=oldest.__getitem__)])
        end = min((came for key, came in oldest.items() if turns[key] != self._turn), default=float("inf"))
        most = self._settings.limits.batch
        room = most - len(self._writing)
        if room > 0:
            before, mine = end + self._settings.limits.turn, [key for key in oldest if turns[key] == self._turn]
            mine.sort(key=oldest.__getitem__)
            waiting = [self._log.waiting_in(key, besides, before=before, most=room) for key in mine]
            # one of each in turn: a tenant with many calls does not keep others out
            every = [call for calls in zip_longest(*waiting) for call in calls if call is not None]
            self._join(self._shared_out(every)[:room])
        return True

    def _shared_out(self, due: Sequence[Due]) -> list[Due]:
        """The calls, in order, that leave places for others: a tenant has at most `ALONE` of the batch, and
        `SHARED_MOST` calls while others sample too. A larger batch makes each step longer for all."""
        counts = self.calls
        for tenant in {*counts, *(call.tenant for call in due)}:
            self._seen.pop(tenant, None)
            self._seen[tenant] = self._steps
        for tenant in [tenant for tenant, step in self._seen.items() if self._steps - step > RECENT]:
            del self._seen[tenant]
        most = SHARED_MOST if len(self._seen) > 1 else max(1, int(ALONE * self._settings.limits.batch))
        chosen = []
        for call in sorted(due, key=lambda call: bool(counts[call.tenant])):  # tenants without a call in it come first
            counts[call.tenant] += 1
            if counts[call.tenant] <= most:
                chosen.append(call)
        return chosen

    def _turn_of(self, key: str, besides: Collection[str]) -> str:
        """The batch of a key: equal for adapters of one base that the engine can hold, else the key itself."""
        if key not in self._turns:
            if len(self._turns) >= MOST_KEYS:
                self._turns.clear()
            self._turns[key] = key
            for call in self._log.waiting_in(key, besides, before=float("inf"), most=1):
                with suppress(FinetoothError):  # the call will fail with this error
                    self._turns[key] = self._hosts.together(self._weights(call).recipe) or key
        return self._turns[key]

    def admit_alone(self, call: Due) -> None:
        """Admit a call that must run alone."""
        self._turn_to(self._turn_of(str(call.batch), ()))
        self._join([call])

    def _join(self, due: Sequence[Due]) -> None:
        """Take calls into the batch."""
        for call in due:
            if call.hopeless:
                self._fail(call, call.hopeless, "user")
        due = [call for call in due if not call.hopeless]
        if due:
            self._log.begin(due)
        for call in due:
            self._add(call)

    def step(self) -> None:
        """Sample one token of every call in the batch."""
        if self._alone and not self._writing:
            self._add(self._alone.pop(0))
        if not self._writing:
            return
        assert self._batch is not None
        self._steps += 1
        try:
            written = self._batch.step()
        except Exception as error:  # sampling each alone shows which one is at fault
            self._part(error)
            return
        for token in written:
            writing = self._writing[token.request]
            self._spent[writing.call.tenant] += 1
            self._streams.write(writing.call.id, token.sample, token.token, token.logprob)
            if token.completion is not None:
                writing.completions[token.sample] = token.completion
        for request in {token.request for token in written}:
            self._streams.ring(self._writing[request].call.id)
        self._finish()

    def cancel(self, ids: Collection[str]) -> None:
        """Drop calls from the batch; the others' tokens do not depend on them."""
        for number, writing in list(self._writing.items()):
            if writing.call.id in ids:
                assert self._batch is not None
                self._batch.cancel(number)
                del self._writing[number]
                self._fail(writing.call, CANCELLED, "user")
        for call in [call for call in self._alone if call.id in ids]:
            self._alone.remove(call)
            self._fail(call, CANCELLED, "user")

    def close(self) -> None:
        """Leave the running calls to the next server."""
        left = [*(writing.call for writing in self._writing.values()), *self._alone]
        if left:
            self._log.leave(left)
        self._writing.clear()
        self._alone.clear()
        self._batch = self._engine = None
        self._hosts.close()

    def _finish(self) -> None:
        ended = {n: writing for n, writing in self._writing.items() if len(writing.completions) == writing.count}
        if not ended:
            return
        for number, writing in ended.items():
            del self._writing[number]
            completions = [
                wire.encode_completion(writing.completions[sample]) for sample in sorted(writing.completions)
            ]
            writing.result["completions"] = completions or writing.result["completions"]
        done = [writing for writing in ended.values() if self._complete(writing)]
        self._log.finish_all([(writing.call, writing.result) for writing in done])
        for writing in done:
            self._ended(writing.call, "done")

    def _complete(self, writing: _Writing) -> bool:
        """Add a call's additional results; False if that, and so the call, failed."""
        assert self._engine is not None
        try:
            if "top_k_sample_logprobs" in writing.arguments:
                own = self._engine if writing.scoring is None else writing.scoring()
                complete(own, writing.arguments, writing.result["completions"])
        except Exception as error:
            self._fail_with(writing.call, error)
            return False
        return True

    def _turn_to(self, turn: str) -> None:
        if turn != self._turn:
            self._turn, self._batch, self._engine = turn, None, None

    def _add(self, call: Due) -> None:
        try:
            opened = self._open(call)
            if opened is None:  # its key has a turn of its own from now on
                self._turns[str(call.batch)] = str(call.batch)
                self._log.leave([call])
                return
            adapter, scoring = opened
            assert self._engine is not None and self._batch is not None
            content = json_parts.loads(call.arguments or b"")["arguments"]
            self._spent[call.tenant] += len(content["prompt"])
            self._batch.tenant = call.tenant
            result, number, count = begin(self._engine, self._batch, content, call.id, adapter, scoring)
        except Exception as error:
            self._fail_with(call, error)
            return
        if count:
            self._writing[number] = _Writing(call, content, result, count, {}, scoring)
        else:
            self._spent[call.tenant] += sum(len(completion["tokens"]) for completion in result["completions"])
            self._log.finish(call, result)
            self._ended(call, "done")

    def _open(self, call: Due) -> tuple[HeldAdapter | None, Callable[[], Engine] | None] | None:
        """Check access to a call's weights, and prepare a batch with them.

        Returns:
            the weights if they are held with others', and a function that returns an engine with them as its own. None
            if they must be sampled alone, and it is not their turn.
        """
        weights = self._weights(call)
        recipe = weights.recipe
        if self._turn != call.batch:
            hosted = self._hosts.hold(recipe, weights.stack)
            if hosted is None:
                return None
            if self._batch is None:
                self._engine = hosted[0]
                self._batch = running_batch(self._engine)
            return hosted[1], lambda: self._pool.engine(recipe, weights.folder)
        if self._batch is None:
            self._engine = self._pool.engine(recipe, weights.folder)
            self._batch = running_batch(self._engine)
        return None, None

    def _part(self, error: Exception) -> None:
        """After a failed step, sample each of its calls separately. Not if another server timed out: each would wait as
        long again."""
        calls = [writing.call for writing in self._writing.values()]
        self._writing.clear()
        self._batch = None
        for call in calls:
            self._streams.end(call.id)
            if len(calls) == 1 or (isinstance(error, UpstreamError) and error.late):
                self._fail_with(call, error)
            else:
                self._alone.append(call)

    def _weights(self, call: Due) -> Weights:
        """The weights of a sampling call."""
        with self._records.read() as connection:
            row = connection.execute(select(samplers).where(samplers.c.id == call.queue.removeprefix(SAMPLERS))).first()
        if row is None:
            raise Unknown("the sampling session is gone", action="make another one")
        return self._stacks.weights(row)

    def _fail_with(self, call: Due, error: Exception) -> None:
        if isinstance(error, FinetoothError):
            self._fail(call, str(error), category_of(error))
            return
        LOGGER.error("%s %s failed", call.operation, call.id, exc_info=error)
        self._fail(call, f"the server failed: {type(error).__name__}", "server")

    def _fail(self, call: Due, error: str, category: str) -> None:
        self._log.finish(call, None, error=error, category=category)
        self._ended(call, "failed")

    def _ended(self, call: Due, outcome: str) -> None:
        self._streams.end(call.id)
        self._audit.add("sample finished", tenant=call.tenant, model=call.queue, seq=call.seq, outcome=outcome)
