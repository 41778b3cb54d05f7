"""The REST face through a real server on loopback, driven by the client of the package `finetooth`."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import httpx2 as httpx
import numpy as np
import pytest
from finetooth_hooks import Datum, Sampling
from finetooth_hooks.engine import StepSettings
from finetooth_server.keeping.records import calls
from finetooth_server.settings import Limits, Settings
from sqlalchemy import update

CLIP = {"train": {"max_grad_norm": 0.5}}


@pytest.fixture(scope="module")
def served(serve: Any, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("rest")
    return serve(Settings(folder / "server", {"tiny": recipe}, keyless=True, limits=Limits(body=200_000)))


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    with finetooth.Client(served.url, patience=10) as made:
        yield made


def test_every_primitive_equals_the_local_engine(
    client: Any, context: Any, recipe: dict[str, Any], ask: SimpleNamespace, tmp_path: Path
) -> None:
    session = client.session("tiny", **CLIP)
    local = context.engine({**recipe, "train": {**recipe["train"], **CLIP["train"]}})
    loss = context.context(recipe).loss("cross_entropy")
    data = ask.data(5)

    have, want = session.forward(data, "cross_entropy", returns=("logprobs", "entropy")), local.forward(
        data, loss, returns=("logprobs", "entropy")
    )  # fmt: skip
    assert (have.loss, have.tokens, have.targets) == (want.loss, want.tokens, want.targets)
    for a, b in zip(have.outputs, want.outputs, strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    assert session.backward(have.handle) == local.backward(want.handle)
    assert session.step() == local.step()

    have, want = session.forward(data), local.forward(data)
    grads = [np.linspace(-1, 1, len(datum)).astype(np.float32) for datum in data]
    assert session.backward(have.handle, grads) == local.backward(want.handle, grads)
    settings = StepSettings(learning_rate=1e-3, max_grad_norm=0.1)
    assert session.step(settings=settings) == local.step(settings=settings)

    assert session.forward_backward(data).loss == local.forward_backward(data, loss).loss
    session.zero_grad()
    local.zero_grad()
    for a, b in zip(session.logprobs(data, role="reference"), local.logprobs(data, role="reference"), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    prompts, sampling = [[5, 6, 7], [40, 50]], Sampling(max_tokens=6, n=2, seed=4, stop=("a",))
    assert session.generate(prompts, sampling) == local.generate(prompts, sampling)

    saved = session.save("here")
    local.save(tmp_path / "state")
    session.forward_backward(data)
    session.step()
    session.load(saved)
    local.load(tmp_path / "state")
    assert session.forward_backward(data).loss == local.forward_backward(data, loss).loss
    assert session.step() == local.step()
    assert [one.id for one in client.checkpoints(session.id)] == [saved]


def test_outputs_at_chosen_positions_only(client: Any, ask: SimpleNamespace) -> None:
    session, data = client.session("tiny"), ask.data(6, 2)
    whole = session.forward(data, returns=("logits", "hidden"), keep=False)
    some = session.forward(data, returns=("logits", "hidden"), positions=[[1, 0], []], keep=False)
    assert whole.handle is None and some.handle is None
    assert np.array_equal(some.outputs[0]["logits"], whole.outputs[0]["logits"][[1, 0]])
    assert some.outputs[1]["hidden"].shape[0] == 0


def test_a_session_can_be_taken_up_again(client: Any, served: Any, ask: SimpleNamespace) -> None:
    session = client.session("tiny", metadata={"who": "me"})
    session.forward_backward(ask.data(1))
    with finetooth.Client(served.url) as other:
        again = other.attach(session.id)
        assert again.step().step == 1
        assert other.describe(session.id).metadata == {"who": "me"}
        again.close()
        assert session.id not in [one.id for one in other.sessions()]
        with pytest.raises(Exception, match="the model was closed"):
            again.zero_grad()


def test_calls_that_overlap_are_done_in_the_order_of_their_begin(served: Any, ask: SimpleNamespace) -> None:
    async def main() -> list[Any]:
        async with finetooth.AsyncClient(served.url) as client:
            session = await client.session("tiny")
            return await asyncio.gather(
                *[call for n in range(4) for call in (session.forward_backward(ask.data(n)), session.step())]
            )

    results = asyncio.run(main())
    assert [result.step for result in results[1::2]] == [1, 2, 3, 4]


def test_samplers_sample_saved_weights(client: Any, context: Any, recipe: dict[str, Any], ask: SimpleNamespace) -> None:
    session = client.session("tiny")
    for n in range(3):
        session.forward_backward(ask.data(n))
        session.step(settings=StepSettings(learning_rate=0.1))
    saved = session.save("w", kind="weights")
    prompt, sampling = [10, 11, 12], Sampling(max_tokens=8, temperature=0)
    want = session.generate([prompt], sampling)[0]
    session.forward_backward(ask.data(9))
    session.step(settings=StepSettings(learning_rate=0.1))
    have = client.sampler(checkpoint=saved).generate(prompt, sampling)
    assert [one.tokens for one in have] == [one.tokens for one in want]
    np.testing.assert_allclose(have[0].logprobs, want[0].logprobs, atol=1e-6)
    base = client.sampler("tiny").generate(prompt, sampling)
    fresh = context.engine(recipe).generate([prompt], sampling)[0]
    assert [one.tokens for one in base] == [one.tokens for one in fresh] != [one.tokens for one in want]


def test_a_seed_gives_the_same_tokens_beside_others(served: Any) -> None:
    async def main(seeded: bool) -> list[Any]:
        async with finetooth.AsyncClient(served.url) as client:
            sampler = await client.sampler("tiny")
            calls = [sampler.generate([5, 6, 7], Sampling(max_tokens=5, seed=8), seeded=seeded) for _ in range(4)]
            return [found[0].tokens for found in await asyncio.gather(*calls)]

    assert len(set(asyncio.run(main(True)))) == 1


def test_a_refusal_is_one_line_and_the_sequence_goes_on(client: Any, served: Any, ask: SimpleNamespace) -> None:
    session = client.session("tiny")
    with pytest.raises(Exception, match="cross_entropy") as caught:
        session.forward_backward(ask.data(0), "cross_entrpy")
    assert type(caught.value).__name__ == "CallFailed" and "\n" not in str(caught.value)
    big = [Datum.from_tokens(np.full(250, 5)) for _ in range(80)]
    with pytest.raises(Exception, match="more than 200000 bytes") as caught:
        session.forward_backward(big)
    assert caught.value.status == 413
    session.forward_backward(ask.data(0))
    assert session.step().step == 1
    path = f"{served.url}/v1/sessions/{session.id}/step"
    seq = client.describe(session.id).next_seq
    for content in (b"{", b'{"settngs": 1}', b"[]", b"\xff"):
        headers = {"content-type": "application/json"}
        answer = httpx.post(path, content=content, params={"seq": seq}, headers=headers)
        assert answer.status_code == 200 and answer.json()["state"] == "failed", content
        assert httpx.post(path, content=content, headers=headers).status_code == 422
        seq += 1
    assert client.attach(session.id).forward_backward(ask.data(0)).targets > 0
    posted = httpx.post(f"{served.url}/v1/sessions/{session.id}/generate", json={"prompts": [{"text": "x"}]})
    assert posted.json()["error"].startswith("prompts.0: the value has none of the forms that it may have")
    for content in ({}, {"content": b"{}"}):  # none; and curl's, without a type
        assert "{} without arguments" in httpx.post(path, **content).json()["error"]
    assert httpx.get(f"{served.url}/v1/nowhere").json()["error"].startswith("Not Found (/docs lists")
    with pytest.raises(Exception, match="no base model 'huge' is served here"):
        client.session("huge")
    with pytest.raises(Exception, match=r"train\.precision: the server's to choose"):
        client.session("tiny", train={"precision": "bf16"})
    with pytest.raises(Exception, match=r"adapter\.rank"):
        client.session("tiny", adapter={"name": "lora", "rank": 0})


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("zero-3", "strategy zero-3: per-step gradient access is incompatible with its parameter sharding"),
        ({"name": "DeepSpeed ZeRO-3"}, "strategy zero-3: per-step gradient access is incompatible with its parameter"),
        ("FSDP_FULL_SHARD", "strategy fsdp-full: per-step gradient access is incompatible with its parameter sharding"),
        *((name, "this server trains each model on one device") for name in ("DDP", "fsdp_hybrid_shard", "zero2")),
        ({"name": "ZeRO-1"}, "strategy zero-1: this server trains each model on one device"),
        ("zero-4", "strategy 'zero-4' is not known (did you mean zero-"),
        ({"stage": 3}, "picks none"),
    ],
)
def test_a_strategy_is_judged_when_the_session_is_made(client: Any, served: Any, strategy: Any, said: str) -> None:
    before = len(client.sessions())
    answer = httpx.post(f"{served.url}/v1/sessions", json={"base": "tiny", "strategy": strategy})
    assert answer.status_code == 400 and said in answer.json()["error"] and "\n" not in answer.json()["error"]
    with pytest.raises(Exception, match=re.escape(said)):
        client.session("tiny", strategy=strategy)
    assert len(client.sessions()) == before


def test_a_restart_is_only_a_pause(serve: Any, recipe: dict[str, Any], tmp_path: Path, ask: SimpleNamespace) -> None:
    settings = Settings(tmp_path / "server", {"tiny": recipe}, keyless=True)
    server = serve(settings)
    with finetooth.Client(server.url, patience=60) as client:
        session, unbroken = client.session("tiny"), client.session("tiny")
        for other in (session, unbroken):
            other.forward_backward(ask.data(0))
        server.stop()
        starting = threading.Timer(0.5, lambda: restarted.append(serve(settings, server.port)))
        restarted: list[Any] = []
        starting.start()
        first = session.step()
        starting.join()
        assert first == unbroken.step()
        assert session.forward_backward(ask.data(1)).loss == unbroken.forward_backward(ask.data(1)).loss
    restarted[0].stop()


def test_keys(serve: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    server = serve(Settings(tmp_path / "server", {"tiny": recipe}, keyless=True))
    keys = server.service.keys

    def status(key: str | None, method: str = "GET", path: str = "/v1/models", **more: Any) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.request(method, server.url + path, headers=headers, **more).status_code

    assert status(None) == 200  # on loopback, as long as nobody made a key
    key = keys.create("team", ("sample", "read"))
    stored = (tmp_path / "server" / "service.db").read_bytes() + (tmp_path / "server" / "service.db-wal").read_bytes()
    assert key.rpartition("_")[2].encode() not in stored
    assert status(None) == 401 and status(key) == 200
    assert status(key[:-1] + ("0" if key[-1] != "0" else "1")) == 401 and status("ft_x_y") == 401
    assert status(key, "POST", "/v1/sessions", json={"base": "tiny"}) == 403
    assert status(keys.create("team", days=1e-9)) == 401
    new = keys.rotate(key.split("_")[1], grace_hours=0)
    assert status(key) == 401 and status(new) == 200
    keys.revoke(new.split("_")[1])
    assert status(new) == 401
    server.stop()


def test_a_page_in_a_browser_here_cannot_call_for_a_stranger(served: Any) -> None:
    for name, value, status in (
        ("Host", "evil.example", 403),
        ("Host", f"localhost:{served.port}", 200),
        ("Origin", "https://evil.example", 403),
        ("Origin", "null", 403),
        ("Origin", served.url, 200),
        ("X-Forwarded-For", "203.0.113.9", 403),
        ("Forwarded", "for=203.0.113.9", 403),
    ):
        assert httpx.get(f"{served.url}/v1/models", headers={name: value}).status_code == status, (name, value)


def test_a_proxy_passes_on_what_comes_with_a_key(serve: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    """On loopback, behind a proxy that has the certificate and keeps the name by which it was called."""
    server = serve(Settings(tmp_path / "server", {"tiny": recipe}, keyless=True))
    key = server.service.keys.create("team")
    through = {"Host": "ft.example", "Origin": "https://ft.example", "X-Forwarded-For": "203.0.113.9"}
    for more, status in (({"X-API-Key": key}, 200), ({"X-API-Key": key[:-1]}, 401), ({}, 401)):
        assert httpx.get(f"{server.url}/v1/models", headers={**through, **more}).status_code == status
    assert httpx.get(f"{server.url}/health", headers=through).status_code == 200
    server.stop()


def test_the_audit_record_names_every_call_and_no_content(
    serve: Any, recipe: dict[str, Any], tmp_path: Path, ask: SimpleNamespace
) -> None:
    import json

    from finetooth_hooks import UserError
    from finetooth_server.audit import verify

    server = serve(Settings(tmp_path / "server", {"tiny": recipe}, keyless=True))
    with finetooth.Client(server.url) as client:
        session = client.session("tiny")
        session.forward_backward(ask.data(0))
        session.step()
        with pytest.raises(Exception, match="no session or model"):
            client.describe("f" * 32)
    server.stop()
    path = tmp_path / "server" / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    seen = [(line["event"], line["outcome"]) for line in lines]
    assert ("POST /v1/sessions/{session}/forward_backward", "200") in seen and ("step finished", "done") in seen
    assert ("GET /v1/sessions/{session}", "404") in seen
    assert all(line["tenant"] == "local" for line in lines)
    assert {line["model"] for line in lines if line["event"] == "step finished"} == {session.id}
    whole = verify(path)
    assert whole.lines == len(lines)
    text = path.read_text().splitlines(keepends=True)
    changes: list[Callable[[list[str]], list[str]]] = [
        lambda t: [t[0].replace("local", "other"), *t[1:]],
        lambda t: t[1:],
        lambda t: t[:-1],
        lambda t: [t[1], t[0], *t[2:]],
        lambda t: [*t[:2], t[1], *t[2:]],
        lambda t: [*t, "{}\n"],
    ]
    for change in changes:
        path.write_text("".join(change(text)))
        with pytest.raises(UserError):
            verify(path)
    path.write_text("".join(text[:-1]))
    path.with_suffix(".head").unlink()
    assert verify(path).lines == len(text) - 1  # whoever rewrites both is found by a head noted elsewhere
    with pytest.raises(UserError, match="no line has the hash"):
        verify(path, head=whole.head)


def test_an_answer_is_the_bytes_that_stand_in_the_log(served: Any, client: Any) -> None:
    """Neither read nor written again, and handed over in parts: 1.5 MB in an odd, but right way to write JSON."""
    session = client.session("tiny")
    with httpx.Client(base_url=served.url, timeout=60) as http:
        made = http.post(f"/v1/sessions/{session.id}/zero_grad", json={}).json()
        odd = b'{ "x" : [1.50e0 , "%s"]}' % (b"y" * 1_500_000)
        with served.service.records.write() as connection:
            connection.execute(update(calls).where(calls.c.id == made["id"]).values(result=odd))
        answer = http.get(f"/v1/calls/{made['id']}")
        assert odd in answer.content and answer.json()["result"] == {"x": [1.5, "y" * 1_500_000]}
        assert {**answer.json(), "result": {}} == made
        again = http.post(f"/v1/sessions/{session.id}/zero_grad?seq={made['seq']}", json={})
        assert odd in again.content
