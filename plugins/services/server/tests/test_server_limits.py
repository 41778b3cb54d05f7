"""What a tenant and the server hold comes to an end, and what is sampled from stays what it was."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Sampling
from finetooth_server.faults import TooMuch, Unknown
from finetooth_server.keeping.history import Page
from finetooth_server.keys import Caller

SCOPES = frozenset({"train", "sample", "read"})
ME = Caller("local", "", SCOPES)
GREEDY = Sampling(max_tokens=6, temperature=0, stop_ids=())


def made(service: Any, ask: SimpleNamespace, rank: int = 4) -> str:
    sections = {"adapter": {"name": "lora", "rank": rank}}
    call = service.create_model(ME, service.open_session(ME), "tiny", sections, face="test")
    ask.result(service, ME, call)
    return str(call.queue)


def saved(service: Any, ask: SimpleNamespace, model: str, name: str, **more: Any) -> str:
    arguments = {"name": name, "kind": "weights", **more}
    return str(ask.result(service, ME, service.submit(ME, model, "save", arguments, face="test"))["checkpoint"])


def sampled(service: Any, ask: SimpleNamespace, sampler: str) -> Any:
    call = service.sample(ME, sampler, [5, 6, 7], GREEDY, seeded=True, face="test")
    return ask.result(service, ME, call)["completions"][0]["logprobs"]


@pytest.mark.slow
def test_engines_that_sample_are_let_go(start: Any, ask: SimpleNamespace) -> None:
    service = start(limits={"samplers": 2, "held": 0})  # none held beside others in an engine of the base
    pool, seen, first = service.writer._pool, [], None
    for rank in (1, 2, 3, 5, 1):
        model = made(service, ask, rank)
        service.open_sampler(ME, service.open_session(ME), f"r{model}", checkpoint=saved(service, ask, model, "w"))
        found = sampled(service, ask, f"r{model}")
        first = first or found
        seen.append(weakref.ref(service.writer._turns._engine))
        service.close_model(ME, model)
    assert found == first, "the weights of a shape that came back are as they began"
    gc.collect()
    assert pool.held == 2 and sum(one() is not None for one in seen) == 2
    folder = service.settings.folder / "scratch" / "samplers"
    assert len(list(folder.iterdir())) == 2
    assert service.writer.wait_idle() and service.registry.held == 0
    assert pool.nbytes < 2 * 4 * 200_000


def test_a_path_that_is_written_over_is_what_it_was_to_those_who_sample_it(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    model, session = made(service, ask), service.open_session(ME)
    old = saved(service, ask, model, "best")
    service.open_sampler(ME, session, "old", checkpoint=old)
    before = sampled(service, ask, "old")
    for operation, arguments in (
        ("forward_backward", {"data": ask.sent(ask.data(0)), "loss": "cross_entropy"}), ("step", {}),
    ):  # fmt: skip
        ask.result(service, ME, service.submit(ME, model, operation, arguments, face="test"))
    new = saved(service, ask, model, "best", overwrite=True)
    service.open_sampler(ME, service.open_session(ME), "new", checkpoint=new)
    assert sampled(service, ask, "new") != before
    assert sampled(service, ask, "old") == before
    assert [one.id for one in service.checkpoints.all(ME.tenant)] == [new]
    service.checkpoints.expire()
    assert sampled(service, ask, "old") == before
    service.finish_session(ME, session)
    assert service.checkpoints.expire() == 1 and not (service.checkpoints._folder / old).exists()


def test_checkpoints_have_a_quota(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    model = made(service, ask)
    first = saved(service, ask, model, "a")
    size = service.checkpoints.get(ME.tenant, first).size
    service.stop()
    service = start(limits={"checkpoint_bytes": int(2.5 * size)})
    saved(service, ask, model, "b")
    with pytest.raises(RuntimeError, match="MB are allowed"):
        saved(service, ask, model, "c")
    assert len(list((service.settings.folder / "checkpoints").iterdir())) == 2
    saved(service, ask, model, "b", overwrite=True)  # takes the place of what it writes over
    service.delete_checkpoint(ME, first)
    saved(service, ask, model, "c")


def test_sessions_that_nobody_uses_make_place(start: Any, ask: SimpleNamespace) -> None:
    service = start(limits={"sessions": 3})
    model = made(service, ask)
    idle = [service.open_session(ME) for _ in range(5)]
    assert not service.model(ME, model).closed
    for session in idle[-2:]:
        service.note_contact(ME, session, heartbeat=True)
    with pytest.raises(TooMuch, match="3 sessions are at work"):
        service.open_session(ME)
    service.finish_session(ME, idle[-1])
    service.open_session(ME)


def test_a_client_that_is_gone_without_a_heartbeat_leaves_no_model_behind(
    start: Any, ask: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of the Tinker wire that was killed seventeen times, each time before it first said that it is there."""
    from finetooth_server.keeping import pruning

    service = start(limits={"models": 2})
    for number in range(3):
        session = service.open_session(ME, heartbeat=True)
        ask.result(service, ME, service.create_model(ME, session, "tiny", {}, id_=f"{session}:train:0", face="test"))
        if number == 1:
            with pytest.raises(TooMuch, match="2 models are open"):
                service.create_model(ME, session, "tiny", {}, id_=f"{session}:train:1", face="test")
            with monkeypatch.context() as later:
                moment = pruning.now() + service.settings.limits.silent + 1
                later.setattr(pruning, "now", partial(float, moment))
                service.pruner.prune()
    assert len(service.models(ME)) == 1


def test_a_session_may_be_finished_twice(start: Any, ask: SimpleNamespace) -> None:
    """A client whose answer was lost asks again."""
    service = start()
    session = service.open_session(ME)
    for how in ({"reason": {"type": "completed"}}, {"reason": {"type": "errored"}}):
        service.finish_session(ME, session, how)
    assert service.history.session(ME, session)[0].finish == {"reason": {"type": "completed"}}
    for caller, name in ((ME, "none"), (Caller("other", "", SCOPES), session)):
        with pytest.raises(Unknown, match="no session"):
            service.finish_session(caller, name)


def test_a_session_without_heartbeats_ends_some_time_after_its_last_call(
    start: Any, ask: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetooth_server import client_sessions
    from finetooth_server.keeping import pruning

    service = start(limits={"idle": 1000.0})
    used, left = made(service, ask), made(service, ask)
    clock = pruning.now()
    for after, ended in ((600.0, set()), (1200.0, {left}), (2300.0, {left, used})):
        for module in (client_sessions, pruning):
            monkeypatch.setattr(module, "now", partial(float, clock + after))
        if after == 600:
            ask.result(service, ME, service.submit(ME, used, "zero_grad", {}, face="test"))
        service.pruner.prune()
        assert {model for model in (used, left) if service.model(ME, model).closed} == ended


def test_of_what_ended_the_latest_is_remembered(start: Any, ask: SimpleNamespace) -> None:
    service = start(limits={"history": 2, "results": -1.0})
    other = Caller("other", "", SCOPES)
    kept, gone = made(service, ask), made(service, ask)
    ended = [service.model(ME, one).session for one in (kept, gone)]
    checkpoint = saved(service, ask, kept, "best")
    ended += [service.open_session(ME) for _ in range(4)]
    service.open_sampler(ME, ended[-3], "s", base="tiny")
    theirs, open_ = service.open_session(other), service.open_session(ME)
    for session in ended:
        service.finish_session(ME, session)
    service.finish_session(other, theirs)
    service.pruner.prune()
    page = Page(limit=100)
    assert {one.id for one in service.history.sessions(ME, page)} == {ended[0], *ended[-2:], open_}
    assert [one.id for one in service.history.sessions(other, page)] == [theirs]
    assert not service.has_sampler(ME, "s")
    assert [one.id for one in service.history.runs(ME, page)[0]] == [kept], "a model with a checkpoint stays"
    assert service.named_checkpoint(ME, kept, "weights", "best").id == checkpoint
    service.delete_checkpoint(ME, checkpoint)
    service.pruner.prune()
    assert {one.id for one in service.history.sessions(ME, page)} == {*ended[-2:], open_}
    assert service.history.runs(ME, page) == ([], 0)


def test_a_tenant_sees_its_limits_and_what_it_takes(serve: Any, recipe: dict[str, Any], tmp_path: Any) -> None:
    import httpx2 as httpx
    from click.testing import CliRunner
    from finetooth_server.commands.serve import command
    from finetooth_server.settings import Limits, Settings

    limits = Limits(models=3, checkpoint_bytes=2**20, values=100)
    served = serve(Settings(tmp_path / "server", {"tiny": recipe}, limits=limits))
    keys = {tenant: served.service.keys.create(tenant) for tenant in ("one", "two")}
    headers = {tenant: {"Authorization": f"Bearer {key}"} for tenant, key in keys.items()}
    body = {"base": "tiny", "id": "its-model"}
    assert httpx.post(f"{served.url}/v1/sessions", json=body, headers=headers["one"], timeout=60).status_code == 200
    for tenant, models in (("one", 1), ("two", 0)):
        found = httpx.get(f"{served.url}/v1/limits", headers=headers[tenant]).json()
        assert found["limits"]["models"] == 3 and found["limits"]["checkpoint_bytes"] == 2**20
        assert found["used"] == {"models": models, "sessions": models, "queued": 0, "checkpoint_bytes": 0}
    many = httpx.post(f"{served.url}/v1/samplers", content=b"[" + b"5," * 100 + b"5]", headers=headers["one"])
    assert many.status_code == 413 and many.json()["error"].startswith("a request of more than 100 values")
    assert httpx.get(f"{served.url}/v1/limits").status_code == 401
    shown = CliRunner().invoke(command, ["status", "--folder", str(tmp_path / "server")])
    assert shown.exit_code == 0, shown.output
    assert "--tenant-models 3 " in shown.output and "--tenant-checkpoints 1MiB" in shown.output
    assert "--call-tokens 1048576 " in shown.output  # as the flag takes it
    assert "one: 1 models, 1 sessions, 0 calls waiting, 0B of checkpoints" in shown.output


@pytest.mark.parametrize(
    ("body", "value", "said"),
    [
        ("Sample", {"prompt": [5], **dict.fromkeys(map(str, range(200)), 1)}, "201 names do not belong to Sample"),
        ("Step", {"metrics": dict.fromkeys(map(str, range(200)), "x")}, "200 values are wrong"),
        ("ForwardBackward", {"data": [3] * 200, "loss": "x"}, "Input should be a valid dictionary"),
        ("Sample", {"prompt": [5], "promptt": 1}, "unknown field (did you mean prompt?)"),
        ("Step", {"odd": 1}, "unknown field (known: metrics, settings)"),
    ],
)
def test_a_request_with_many_faults_is_told_one(body: str, value: Any, said: str) -> None:
    """To tell each of a million would keep everybody waiting."""
    from finetooth_server.rest import bodies
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        getattr(bodies, body).model_validate(value)
    assert [one["msg"] for one in caught.value.errors()] == [said]


def test_a_call_has_a_bounded_number_of_rows() -> None:
    """On every face: the Tinker wire's requests hold no JSON."""
    from finetooth_hooks import DataError
    from finetooth_server.limits.costs import ROWS, cost_of

    rows = [{"tokens": [5], "targets": [6]}] * (ROWS + 1)
    with pytest.raises(DataError, match=f"{ROWS + 1} rows in one call .*{ROWS}"):
        cost_of("forward_backward", {"data": rows}, Any)  # type: ignore[arg-type]  # no sizes are asked for


def test_every_flag_is_a_limit_and_takes_its_own_default() -> None:
    from finetooth_server.commands.limits import OPTIONS, Size, sized
    from finetooth_server.settings import Limits

    for name, (_, kind, _) in OPTIONS.items():
        default = getattr(Limits(), name)
        assert kind.convert(sized(default) if isinstance(kind, Size) else str(default), None, None) == default


def test_sizes_are_taken_in_both_units() -> None:
    from finetooth_server.commands.limits import Size

    said = {text: Size().convert(text, None, None) for text in ("3GB", "1.5 gib", "512M", "7kB", "2TiB", "12", "12B")}
    assert list(said.values()) == [3 * 10**9, 3 * 2**29, 512 * 10**6, 7000, 2**41, 12, 12]
