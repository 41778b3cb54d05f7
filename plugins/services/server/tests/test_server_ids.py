"""Ids and numbers that clients choose: a tenant's own, and used once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Sampling, UserError
from finetooth_server.faults import Conflict, Unknown
from finetooth_server.keeping import pruning
from finetooth_server.keys import Caller

SCOPES = frozenset({"train", "sample", "read"})
ONE, TWO = Caller("one", "", SCOPES), Caller("two", "", SCOPES)


def create(service: Any, who: Caller, id_: str) -> Any:
    return service.create_model(who, service.open_session(who), "tiny", {}, id_=id_, face="test")


def test_tenants_may_use_the_same_ids_and_see_nothing_of_each_other(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    for who in (ONE, TWO):
        call = create(service, who, "mine-first")
        assert call.queue == "mine-first"
        ask.result(service, who, call)
        assert service.log.fetch(who, call.id).queue == "mine-first"
        assert [model.id for model in service.models(who)] == ["mine-first"]
        service.open_sampler(who, service.open_session(who), "mine", base="tiny")
    first = ask.result(
        service, ONE, service.submit(ONE, "mine-first", "save", {"name": "a", "kind": "state"}, face="t")
    )
    second = ask.result(
        service, TWO, service.submit(TWO, "mine-first", "save", {"name": "a", "kind": "state"}, face="t")
    )
    assert first["checkpoint"] != second["checkpoint"]
    for who, saved in ((ONE, first), (TWO, second)):
        assert [one.id for one in service.checkpoints.all(who.tenant, "mine-first")] == [saved["checkpoint"]]
        found = service.checkpoints.by_name(who.tenant, "mine-first", "state", "a")
        assert (found.id, found.model) == (saved["checkpoint"], "mine-first")
    sampled = service.sample(TWO, "mine", [5], Sampling(max_tokens=2), seeded=True, face="test")
    assert sampled.queue == "sampler:mine" and ask.result(service, TWO, sampled)
    service.close_model(TWO, "mine-first")
    assert not service.model(ONE, "mine-first").closed and service.model(TWO, "mine-first").closed


def test_an_id_that_differs_in_capitals_is_no_way_to_find_out(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    ask.result(service, ONE, create(service, ONE, "Some-Model"))
    assert create(service, TWO, "some:model").queue == "some:model"  # another folder than that of tenant one
    with pytest.raises(Conflict, match="is taken"):
        create(service, ONE, "some-model")


@pytest.mark.parametrize("id_", ["sampler:mine", "Sampler:x"])
def test_a_model_takes_no_samplers_queue(start: Any, id_: str) -> None:
    service = start()
    service.open_sampler(ONE, service.open_session(ONE), "mine", base="tiny")
    with pytest.raises(UserError, match="begin it with something else than sampler:"):
        create(service, TWO, id_)


def test_a_number_is_not_used_again_for_another_operation(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    ask.result(service, ONE, create(service, ONE, "numbered"))
    first = service.submit(ONE, "numbered", "zero_grad", {}, seq=1, face="test")
    assert service.submit(ONE, "numbered", "zero_grad", {}, seq=1, face="test").id == first.id
    with pytest.raises(Conflict, match="call 1 is a zero_grad, no step"):
        service.submit(ONE, "numbered", "step", {}, seq=1, face="test")


def test_calls_behind_a_gap_fail_in_time_and_name_the_number(
    start: Any, ask: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start()
    ask.result(service, ONE, create(service, ONE, "gapped"))
    waits = [service.submit(ONE, "gapped", "zero_grad", {}, seq=seq, face="test") for seq in (2, 4)]
    now = pruning.now()
    limit = service.settings.limits.gap
    for later, state in ((limit - 60, "queued"), (limit + 60, "failed")):
        monkeypatch.setattr(pruning, "now", lambda later=later: now + later)
        service.pruner.prune()
        assert {service.log.fetch(ONE, call.id).state for call in waits} == {state}
    with pytest.raises(RuntimeError, match="waited for call 1, which did not come"):
        ask.result(service, ONE, waits[1])
    ask.result(service, ONE, service.submit(ONE, "gapped", "zero_grad", {}, face="test"))  # and it goes on
    late = service.submit(ONE, "gapped", "zero_grad", {}, seq=1, face="test")
    with pytest.raises(RuntimeError, match="came too late"):
        ask.result(service, ONE, late)


def test_calls_of_a_closed_model_fail_whatever_they_wait_for(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    ask.result(service, ONE, create(service, ONE, "closing"))
    behind = service.submit(ONE, "closing", "zero_grad", {}, seq=7, face="test")
    service.close_model(ONE, "closing")
    with pytest.raises(RuntimeError, match="the model was closed"):
        ask.result(service, ONE, behind)
    assert service.writer.wait_idle() and service.registry.held == 0
    with pytest.raises(Unknown):
        service.close_model(TWO, "closing")
