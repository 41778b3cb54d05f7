"""A server whose database is PostgreSQL: the same numbers, the same promises. Crashes: test_server_training.py and
test_server_killed.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Sampling, UserError
from finetooth_server.commands.place import database_url
from finetooth_server.encryption.master import new_key, parsed
from finetooth_server.faults import Unauthorised
from finetooth_server.keeping.records import Records
from finetooth_server.keys import Caller
from finetooth_server.log import Due
from finetooth_server.service import Service
from finetooth_server.settings import Settings

ME = Caller("local", "", frozenset({"train", "sample", "read"}))

pytestmark = pytest.mark.parametrize("databases", ["postgresql"], indirect=True)


def results(service: Any, ask: SimpleNamespace) -> list[Any]:
    made = service.create_model(ME, service.open_session(ME), "tiny", {}, face="test")
    ask.result(service, ME, made)
    data = {"data": ask.sent(ask.data(1)), "loss": "cross_entropy"}
    calls = [("forward_backward", data), ("step", {}), ("save", {"name": "end"}), ("forward_backward", data)]
    found = []
    for seq, one in enumerate(calls, 1):
        for _ in range(2):  # sent twice, done once
            call = service.submit(ME, made.queue, *one, seq=seq, face="test")
        found.append(ask.result(service, ME, call))
    checkpoint = found.pop(2)["checkpoint"]
    service.open_sampler(ME, service.open_session(ME), "s", checkpoint=checkpoint)
    sampled = service.sample(ME, "s", [5, 6, 7], Sampling(max_tokens=4), seq=1, seeded=True, face="test")
    return [*found, ask.result(service, ME, sampled)]


@pytest.mark.slow
def test_it_is_the_same_as_on_sqlite(start: Any, ask: SimpleNamespace, databases: Any, tmp_path: Any) -> None:
    want = results(start(tmp_path / "sqlite"), ask)
    url = databases.url(databases.new())
    settings = {"database": url, "encryption": parsed([new_key()], "test")}
    service = start(tmp_path / "a", limits={"results": -1.0}, **settings)
    assert results(service, ask) == want
    assert service.pruner.prune() == 1  # the sampling call; the others may be needed again
    model = service.models(ME)[0].id
    service.stop()
    service = start(tmp_path / "a", **settings)
    stepped = service.submit(ME, model, "step", {}, seq=5, face="test")
    assert ask.result(service, ME, stepped)["step"] == 2
    key = service.keys.create("team", days=1)
    assert service.keys.caller(key, keyless=False).tenant == "team"
    service.keys.revoke(key.split("_")[1])
    with pytest.raises(Unauthorised):
        service.keys.caller(key, keyless=False)
    with pytest.raises(UserError, match="a character that cannot be kept"):
        service.model(ME, "a\x00b")
    wrong = service.submit(ME, model, "load", {"checkpoint": "a\x00b"}, seq=6, face="test")
    with pytest.raises(RuntimeError, match="a character that cannot be kept"):
        ask.result(service, ME, wrong)


def test_an_address_that_leads_nowhere_is_one_line(databases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = databases.new().rpartition(":")[2].partition("/")[0]
    monkeypatch.setenv("FT_TEST_WRONG", "p/w:@x")
    for address, message in (
        ("postgresql://rows:${FT_TEST_WRONG}@127.0.0.1:1/x", "it cannot be opened"),
        (f"postgresql://rows:${{FT_TEST_WRONG}}@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("mysql://here/x", "mysql is not offered"),
        ("nothing", "it cannot be opened"),
        ("postgresql://rows:${FT_TEST_NONE}@here/x", "the environment has no FT_TEST_NONE"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            Records(database_url(address))
        assert "\n" not in str(caught.value) and "w:@x" not in str(caught.value)


def test_what_ended_the_server_alone_is_not_tried_again(
    context: Any, recipe: dict[str, Any], ask: SimpleNamespace, databases: Any, tmp_path: Any, request: Any
) -> None:
    settings = Settings(tmp_path, {"tiny": recipe}, keyless=True, database=databases.url(databases.new()))
    service = Service(context, settings)
    request.addfinalizer(service.stop)
    made = service.create_model(ME, service.open_session(ME), "tiny", {}, face="test")
    data = {"data": ask.sent(ask.data(1)), "loss": "cross_entropy"}
    guilty = service.submit(ME, made.queue, "forward_backward", data, face="test")

    def suspects() -> dict[str, Due]:
        return {due.id: due for due in service.log.suspects()}

    assert not suspects()
    for _ in range(2):
        service.log.begin(service.log.waiting())
    assert suspects().keys() == {made.id, guilty.id}  # both were beside others
    for id_, alone in ((made.id, True), (made.id, False), (guilty.id, True)):
        service.log.isolate(suspects()[id_], alone)
    assert suspects().keys() == {made.id, guilty.id}  # that time is still to come
    service.log.begin(list(suspects().values()))
    assert suspects().keys() == {made.id}  # it was beside another one after all
