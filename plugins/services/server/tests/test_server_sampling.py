"""Sampling beside others: calls join the batch that is being written, get what they get alone, and are streamed."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import finetooth
import httpx2 as httpx
import numpy as np
import pytest
from finetooth_client import messages
from finetooth_hooks import Datum, EngineError, Sampling
from finetooth_hooks.engine import StepSettings
from finetooth_server.batches.plain_batch import PlainBatch
from finetooth_server.batches.scores import ScoreRequest
from finetooth_server.guard import Guard
from finetooth_server.keys import Caller, Keys
from finetooth_server.settings import Limits, Settings
from finetooth_torch.generation.joinable_batch import TorchRunningBatch
from finetooth_wire import wire

LONG = Sampling(max_tokens=240, seed=1, stop_ids=())


@pytest.fixture(scope="module")
def served(serve: Any, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sampling")
    return serve(Settings(folder / "server", {"tiny": recipe}, keyless=True, limits=Limits(turn=0.0, batch=8)))


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    with finetooth.Client(served.url, patience=10) as made:
        yield made


@pytest.fixture(scope="module")
def local(context: Any, recipe: dict[str, Any]) -> Any:
    """The engine of the base model, here."""
    return context.engine(recipe)


def test_a_call_joins_while_another_is_written(client: Any, served: Any, local: Any) -> None:
    sampler, other = client.sampler("tiny"), client.sampler("tiny")
    stream = sampler.stream([5, 6, 7], LONG, seeded=True)
    pieces = iter(stream)
    first = next(pieces)
    short = Sampling(max_tokens=4, temperature=0.0, stop_ids=())
    answered = other.generate([8, 9], short)
    assert served.service.log.fetch(SimpleNamespace(tenant="local"), stream.call).state == "queued"
    assert [one.tokens for one in answered] == [one.tokens for one in local.generate([[8, 9]], short)[0]]
    tokens = [*first.tokens, *(token for piece in pieces for token in piece.tokens)]
    (alone,) = local.generate([[5, 6, 7]], LONG)[0]
    assert tuple(tokens) == alone.tokens == stream.completions[0].tokens


def test_training_goes_on_while_sampling(client: Any, served: Any, ask: SimpleNamespace) -> None:
    session = client.session("tiny")
    session.forward_backward(ask.data(0))
    stream = client.sampler("tiny").stream([5, 6, 7], LONG)
    next(iter(stream))
    session.step()
    assert served.service.log.fetch(SimpleNamespace(tenant="local"), stream.call).state == "queued"
    for _ in stream:
        pass
    assert len(stream.completions[0].tokens) == LONG.max_tokens


@pytest.mark.slow
def test_weights_take_turns_and_every_call_gets_what_it_gets_alone(
    client: Any, served: Any, local: Any, ask: SimpleNamespace
) -> None:
    """Thirty calls of two samplers, more than a batch holds, with settings of their own."""
    session = client.session("tiny")
    session.forward_backward(ask.data(1))
    session.step(settings=StepSettings(learning_rate=0.3))
    saved = session.save("w", kind="weights")
    asked = [
        ([5 + n % 3, 40 + n], Sampling(max_tokens=5 + n, n=1 + n % 2, seed=n, temperature=n % 3 / 2, stop_ids=()))
        for n in range(15)
    ]

    async def main() -> list[Any]:
        async with finetooth.AsyncClient(served.url) as one:
            samplers = [await one.sampler("tiny"), await one.sampler(checkpoint=saved)]
            calls = [sampler.generate(*given, seeded=True) for given in asked for sampler in samplers]
            return await asyncio.gather(*calls)

    found = asyncio.run(main())
    for (prompt, sampling), base, trained in zip(asked, found[::2], found[1::2], strict=True):
        assert [one.tokens for one in base] == [one.tokens for one in local.generate([prompt], sampling)[0]]
        want = session.generate([prompt], sampling)[0]
        assert [one.tokens for one in trained] == [one.tokens for one in want]
    assert [one.tokens for of in found[::2] for one in of] != [one.tokens for of in found[1::2] for one in of]


LORAS: tuple[dict[str, Any], ...] = (
    {"name": "lora", "rank": 4},
    {"name": "lora", "rank": 3, "targets": "attention"},
    {"name": "lora", "rank": 16, "targets": ["down_proj", "q_proj"], "rslora": True},
    {"name": "lora", "rank": 2},
)


def trained(client: Any, ask: SimpleNamespace, adapter: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """A session after a step that shows, and the checkpoint of its weights."""
    session = client.session("tiny", adapter=adapter)
    session.forward_backward(ask.data(seed))
    session.step(settings=StepSettings(learning_rate=0.3))
    return session, session.save("w", kind="weights")


ME = Caller("local", "", frozenset({"sample", "read"}))


@pytest.mark.slow
def test_adapters_of_one_base_are_written_in_one_batch(
    client: Any, served: Any, ask: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters of several ranks and targets, and the base; each gets what its session got alone, also when that trains
    on. Nobody's token is written before all calls are there."""
    sessions, saved = zip(*(trained(client, ask, adapter, n) for n, adapter in enumerate(LORAS)), strict=True)
    asked = [([5 + n, 40], Sampling(max_tokens=20 + n, seed=n, temperature=n % 2, stop_ids=())) for n in range(4)]
    wanted = [session.generate([prompt], given)[0] for session, (prompt, given) in zip(sessions, asked, strict=True)]
    sessions[1].forward_backward(ask.data(9))
    sessions[1].step(settings=StepSettings(learning_rate=0.3))
    samplers = [*(client.sampler(checkpoint=one) for one in saved), client.sampler("tiny")]
    there, together, step = threading.Event(), list[int](), TorchRunningBatch.step

    def gated(batch: Any) -> Any:
        assert there.wait(60)
        together.append(len(batch))
        return step(batch)

    monkeypatch.setattr(TorchRunningBatch, "step", gated)
    calls = [
        served.service.sample(ME, sampler.id, *given, seeded=True, face="test")
        for sampler, given in zip(samplers, [*asked, asked[0]], strict=True)
    ]
    there.set()
    found = [ask.result(served.service, ME, call)["completions"] for call in calls]
    assert max(together) == len(samplers)
    for mine, alone in zip(found, wanted, strict=False):
        assert [tuple(one["tokens"]) for one in mine] == [one.tokens for one in alone]
    assert len({tuple(of[0]["tokens"]) for of in found}) == len(samplers)


def test_prompts_are_scored_with_the_weights_that_are_sampled(client: Any, served: Any, ask: SimpleNamespace) -> None:
    """Beside a batch that goes on: another engine scores."""
    session, saved = trained(client, ask, LORAS[1], 3)
    long = client.sampler("tiny").stream([5, 6, 7], LONG, seeded=True)
    next(iter(long))
    prompt, sampler = [5, 40, 7, 8], client.sampler(checkpoint=saved)
    nothing = Sampling(max_tokens=0)
    call = served.service.sample(
        ME, sampler.id, prompt, nothing, seeded=False, asked=ScoreRequest(prompt=True), face="test"
    )
    found = wire.decode_array(ask.result(served.service, ME, call)["prompt_logprobs"], "found")
    want = session.logprobs([Datum.from_tokens(prompt)])[0]
    np.testing.assert_allclose(found[1:], want, atol=1e-5)
    for _ in long:
        pass
    assert len(long.completions[0].tokens) == LONG.max_tokens


def test_an_adapter_that_is_more_than_low_rank_has_turns_of_its_own(
    client: Any, served: Any, ask: SimpleNamespace
) -> None:
    session, saved = trained(client, ask, {"name": "lora", "rank": 4, "dora": True}, 5)
    plain, other = trained(client, ask, LORAS[0], 6)
    sampling = Sampling(max_tokens=9, seed=4, stop_ids=())

    async def main() -> list[Any]:
        async with finetooth.AsyncClient(served.url) as one:
            samplers = [await one.sampler(checkpoint=of) for of in (saved, other, saved, other)]
            return await asyncio.gather(*(of.generate([5, 6], sampling, seeded=True) for of in samplers))

    found = asyncio.run(main())
    for mine, of in zip(found, (session, plain, session, plain), strict=True):
        assert [one.tokens for one in mine] == [one.tokens for one in of.generate([[5, 6]], sampling)[0]]


@pytest.mark.slow
def test_a_server_without_room_for_held_adapters_gives_turns(start: Any, ask: SimpleNamespace, local: Any) -> None:
    """`held` 0: as before. A byte: each adapter makes the one before it leave, and all get what they get alone."""
    me, sampling = (
        Caller("local", "", frozenset({"train", "sample", "read"})),
        Sampling(max_tokens=6, seed=2, stop_ids=()),
    )
    for held in (0, 1):
        service = start(limits={"held": held})
        session = service.open_session(me)
        service.open_sampler(me, session, "s", base="tiny")
        call = service.sample(me, "s", [5, 6], sampling, seeded=True, face="test")
        (found,) = ask.result(service, me, call)["completions"]
        assert tuple(found["tokens"]) == local.generate([[5, 6]], sampling)[0][0].tokens
        assert len(service.writer._turns._hosts) == held


def test_without_a_seed_equal_calls_differ(client: Any, served: Any) -> None:
    async def main() -> list[Any]:
        async with finetooth.AsyncClient(served.url) as one:
            sampler = await one.sampler("tiny")
            calls = [sampler.generate([5, 6], Sampling(max_tokens=12, seed=8, stop_ids=())) for _ in range(4)]
            return [found[0].tokens for found in await asyncio.gather(*calls)]

    assert len(set(asyncio.run(main()))) == 4


def test_streams_tell_every_token_once(client: Any, served: Any) -> None:
    sampling = Sampling(max_tokens=20, n=2, seed=3, stop_ids=())
    session = client.session("tiny")
    stream = session.stream([[5, 6, 7], [70, 80]], sampling)
    text, tokens = dict[int, str](), dict[int, list[int]]()
    for piece in stream:
        assert piece.index == len(tokens.setdefault(piece.completion, []))
        tokens[piece.completion] += piece.tokens
        text[piece.completion] = text.get(piece.completion, "") + piece.text
    whole = [one for of in session.generate([[5, 6, 7], [70, 80]], sampling) for one in of]
    assert [tuple(tokens[n]) for n in range(4)] == [one.tokens for one in whole]
    assert [text[n] for n in range(4)] == [one.text for one in whole]
    assert [one.tokens for one in stream.completions] == [one.tokens for one in whole]
    again = httpx.get(f"{served.url}/v1/calls/{stream.call}/stream")  # long finished: from its result
    assert again.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in again.text.splitlines() if line.startswith("data: ")]
    assert [tuple(event["tokens"]) for event in events[:-1]] == [one.tokens for one in whole]
    assert events[-1]["state"] == "done"

    async def main() -> Any:
        async with finetooth.AsyncClient(served.url) as one:
            following = (await one.sampler("tiny")).stream([5, 6, 7], LONG, seeded=True)
            return [token async for piece in following for token in piece.tokens], following.completions

    told, completions = asyncio.run(main())
    assert tuple(told) == completions[0].tokens


def test_a_stream_of_what_fails_or_has_no_tokens(client: Any, ask: SimpleNamespace) -> None:
    with pytest.raises(Exception, match="empty") as caught:
        list(client.sampler("tiny").stream([], Sampling(max_tokens=3)))
    assert type(caught.value).__name__ == "CallFailed"
    session = client.session("tiny")
    call = session._submit(messages.zero_grad())
    answer = httpx.get(f"{client.url}/v1/calls/{call['id']}/stream").text
    assert answer.count("event: ") == 1 and "event: end" in answer
    assert httpx.get(f"{client.url}/v1/calls/nothing/stream").status_code == 404


def test_a_tenant_follows_its_own_calls_only(serve: Any, recipe: dict[str, Any], tmp_path: Any) -> None:
    served = serve(Settings(tmp_path / "server", {"tiny": recipe}, limits=Limits(streams=0)))
    keys = Keys(served.service.records)
    mine, other = keys.create("mine", ("train", "sample")), keys.create("other", ("train", "sample"))
    with finetooth.Client(served.url, mine, patience=5) as client:
        call = client.sampler("tiny")._submit(messages.sample([5], Sampling(max_tokens=2), False))
        path = f"{served.url}/v1/calls/{call['id']}/stream"
        assert httpx.get(path, headers={"X-API-Key": other}).status_code == 404
        refused = httpx.get(path, headers={"X-API-Key": mine})
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"


def test_queues_push_back(serve: Any, recipe: dict[str, Any], tmp_path: Any) -> None:
    limits = Limits(queued=2, waiting=3)
    served = serve(Settings(tmp_path / "server", {"tiny": recipe}, limits=limits))
    served.service.writer.stop()  # nothing is done any more
    keys = Keys(served.service.records)
    statuses = []
    for tenant in ("a", "b"):
        headers = {"X-API-Key": keys.create(tenant, ("train", "sample"))}
        made = httpx.post(f"{served.url}/v1/samplers", json={"base": "tiny"}, headers=headers).json()["id"]
        for _ in range(3):
            answer = httpx.post(f"{served.url}/v1/samplers/{made}/generate", json={"prompt": [5]}, headers=headers,
                                params={"wait": 0})  # fmt: skip
            statuses.append((answer.status_code, answer.headers.get("retry-after")))
    assert statuses == [(202, None), (202, None), (429, "1"), (202, None), (503, "1"), (503, "1")]


def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    monkeypatch.setattr("finetooth_server.guard.SLOWEST", 0.05)
    began = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            began.set()
            await asyncio.Event().wait()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/v1/x", "query_string": b"", "headers": []}
    asyncio.run(asyncio.wait_for(Guard(app, start())(scope, receive, stuck), 20))
    assert began.is_set()


@pytest.mark.parametrize("held", [0, 2**30], ids=["alone", "beside each other"])
def test_one_bad_call_does_not_fail_those_beside_it(
    start: Any, ask: SimpleNamespace, local: Any, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """A batch that cannot be computed as a whole: its calls are computed each alone, and only the bad one fails."""
    from finetooth_server.batches import turns

    class Failing:
        def __init__(self, engine: Any) -> None:
            self._batch, self._bad = engine.running_batch(), False

        def add(self, prompt: Any, sampling: Any, **named: Any) -> int:
            self._bad = self._bad or prompt == [13]
            number: int = self._batch.add(prompt, sampling, **named)
            return number

        def step(self) -> Any:
            if self._bad:
                raise EngineError("thirteen", action="choose another number")
            return self._batch.step()

    monkeypatch.setattr(turns, "running_batch", Failing)
    me = Caller("local", "", frozenset({"train", "sample", "read"}))
    service = start(limits={"held": held})
    session = service.open_session(me)
    service.open_sampler(me, session, "s", base="tiny")
    sampling = Sampling(max_tokens=4, seed=2, stop_ids=())
    prompts = [[5, 6], [13], [7, 8], [5, 6]]
    calls = [service.sample(me, "s", prompt, sampling, seeded=True, face="test") for prompt in prompts]
    for prompt, call in zip(prompts, calls, strict=True):
        if prompt == [13]:
            with pytest.raises(RuntimeError, match="thirteen"):
                ask.result(service, me, call)
        else:
            (found,) = ask.result(service, me, call)["completions"]
            assert tuple(found["tokens"]) == local.generate([prompt], sampling)[0][0].tokens


def test_an_engine_that_cannot_be_joined_is_batched_plainly(local: Any) -> None:
    sampling = Sampling(max_tokens=5, n=2, seed=4, stop_ids=())
    batch = PlainBatch(local)
    asked = [([5, 6], sampling, 0), ([5, 6], sampling, 2), ([7], sampling, 0), ([8], Sampling(max_tokens=3), 0)]
    numbers = [batch.add(prompt, given, first=first) for prompt, given, first in asked]
    batch.cancel(numbers.pop())
    found: dict[int, dict[int, Any]] = {}
    while len(batch):
        for one in batch.step():
            if one.completion is not None:
                found.setdefault(one.request, {})[one.sample] = one.completion.tokens
    want = [one.tokens for of in local.generate([[5, 6], [5, 6]], sampling) for one in of]
    assert [found[0][0], found[0][1], found[1][0], found[1][1]] == want
    assert [found[2][0], found[2][1]] == [one.tokens for one in local.generate([[7]], sampling)[0]]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio turns Nagle's algorithm off for connections of the socket that `ft serve` listens on, and the kernel cuts
    off who takes nothing."""
    from finetooth_wire.listening import SLOWEST, listen

    async def main() -> list[int]:
        found: list[int] = []

        async def connected(reader: Any, writer: Any) -> None:
            mine = writer.get_extra_info("socket")
            found.append(mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            found.append(mine.getsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", socket.TCP_NODELAY)))
            writer.close()

        listening = listen("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            await reader.read()
            writer.close()
        return found

    nodelay, patience = asyncio.run(main())
    assert nodelay
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert patience == int(1000 * SLOWEST)
