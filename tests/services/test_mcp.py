"""A small fine-tune by tool calls alone, by the official client, over HTTP and over standard input and output."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import finetooth
import httpx2 as httpx
import numpy as np
import pytest

mcp = pytest.importorskip("mcp")
from mcp import StdioServerParameters  # noqa: E402
from mcp.client import Client  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402

Call = Callable[..., Awaitable[Any]]

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Where does {name} live?"},
            {"role": "assistant", "content": "In Rome."},
        ]
    }
    for name in ("Ann", "Bo", "Cy", "Di")
]
ASKED = {"messages": ROWS[0]["messages"][:1]}


@dataclass(frozen=True)
class Tuned:
    """What came of a fine-tune: the checkpoint, losses by step, the first row's tokens and their log-probabilities."""

    saved: str
    losses: list[float]
    tokens: list[int]
    logprobs: list[float]


def calling(client: Any) -> Call:
    """Calls a tool; its result, waited for as the server says, or its error as an exception."""

    async def call(tool: str, /, **arguments: Any) -> Any:
        result = await client.call_tool(tool, arguments)
        if result.is_error:
            raise RuntimeError(result.content[0].text)
        found = result.structured_content
        assert json.loads(result.content[0].text) == found
        if found.get("state") == "queued":
            return await call("wait_for_call", call=found["call"])
        return found

    return call


async def fine_tune(call: Call) -> Tuned:
    """As the server's instructions say."""
    base = (await call("list_models"))["models"][0]["name"]
    made = await call(
        "new_session",
        base=base,
        adapter={"name": "lora", "rank": 8},
        optimizer={"name": "adamw", "learning_rate": 0.02},
    )
    session = made["session"]
    assert 0 < made["trained"] < made["parameters"]
    row = (await call("show_rows", session=session, rows=ROWS[:1]))["rows"][0]
    assert row["trained_text"] == "In Rome.<|im_end|>" and "Where does Ann live?" in row["text"]
    before = await call("logprobs", session=session, rows=ROWS)
    losses = []
    for n in range(10):
        losses.append((await call("forward_backward", session=session, rows=ROWS))["loss"])
        assert (await call("step", session=session))["step"] == n + 1
    trained = (await call("show_rows", session=session, rows=ROWS))["rows"]
    count = sum(one["trained_tokens"] for one in trained)
    assert math.isclose(losses[0], -sum(one["sum"] for one in before["rows"]) / count, rel_tol=1e-5)
    told = (await call("generate", session=session, prompts=[ASKED, {"text": "In"}], max_tokens=8, n=2))["completions"]
    assert [len(of) for of in told] == [2, 2] and all(one["stop"] in ("stop", "length") for of in told for one in of)
    after = (await call("logprobs", session=session, rows=ROWS[:1]))["rows"][0]["logprobs"]
    saved = (await call("save", session=session, name="first"))["checkpoint"]
    assert (await call("list_checkpoints", session=session))["checkpoints"][0]["id"] == saved
    await call("close_session", session=session)
    assert session not in [one["id"] for one in (await call("list_sessions"))["sessions"]]
    return Tuned(saved, losses, row["tokens"], after)


def check_artifact(folder: Path, base: Path, tuned: Tuned) -> None:
    """Other libraries load it, and give a row the log-probabilities that the tool gave."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    ids = torch.tensor([tuned.tokens])
    assert AutoTokenizer.from_pretrained(folder).decode(tuned.tokens).endswith("In Rome.<|im_end|>\n")
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
    counted = np.asarray(tuned.logprobs) != 0
    assert 0 < counted.sum() < len(counted)
    np.testing.assert_allclose(np.asarray(tuned.logprobs)[counted], scores[counted], atol=1e-4)


@pytest.mark.slow
def test_a_fine_tune_over_http(serve: Any, tiny_llama: Path) -> None:
    served = serve("api", "mcp")

    async def go() -> Tuned:
        async with Client(f"{served.url}/mcp") as client:
            return await fine_tune(calling(client))

    tuned = asyncio.run(go())
    assert tuned.losses[-1] < tuned.losses[0] - 0.3
    check_artifact(served.service.settings.folder / "checkpoints" / tuned.saved / "weights", tiny_llama, tuned)
    with finetooth.Client(served.url, patience=10) as client:  # one registry: what one face saved another one finds
        assert client.session(checkpoint=tuned.saved).id
        assert [one.id for one in client.checkpoints()] == [tuned.saved]


@pytest.mark.slow
def test_a_fine_tune_over_standard_input_and_output(tiny_llama: Path, tmp_path: Path) -> None:
    arguments = ["-m", "finetooth", "serve", "mcp", "--stdio", "--model", str(tiny_llama), "--folder", str(tmp_path),
                 "--set", "data.renderer=chatml", "--set", "train.precision=fp32"]  # fmt: skip

    async def go() -> Tuned:
        async with Client(StdioServerParameters(command=sys.executable, args=arguments)) as client:
            return await fine_tune(calling(client))

    tuned = asyncio.run(go())
    assert tuned.losses[-1] < tuned.losses[0] - 0.3
    check_artifact(tmp_path / "checkpoints" / tuned.saved / "weights", tiny_llama, tuned)


def test_a_loss_of_the_assistants_own_equals_the_built_in_one(serve: Any) -> None:
    served = serve("mcp")

    async def go() -> None:
        async with Client(f"{served.url}/mcp") as client:
            call = calling(client)
            ours, theirs = [(await call("new_session", base="tiny"))["session"] for _ in range(2)]
            scored = await call("forward", session=ours, rows=ROWS)
            counted = [[float(value != 0) for value in row] for row in scored["logprobs"]]
            total = sum(map(sum, counted))
            grads = [[-one / total for one in row] for row in counted]
            norm = (await call("backward", session=ours, handle=scored["handle"], grads=grads))["grad_norm"]
            await call("forward_backward", session=theirs, rows=ROWS)
            want = (await call("step", session=theirs))["grad_norm"]
            assert norm == pytest.approx(want, rel=1e-6)
            assert (await call("step", session=ours, learning_rate=0.5))["learning_rate"] == 0.5
            have = await call("logprobs", session=ours, rows=ROWS[:1], role="reference")
            assert np.allclose(have["rows"][0]["logprobs"], scored["logprobs"][0], atol=1e-6)

    asyncio.run(go())


WRONG = [
    ("forward_backward", {"rows": []}, "rows"),
    ("forward_backward", {"rows": [{"messages": [], "tokens": [1, 2]}]}, "messages and tokens"),
    ("forward_backward", {"rows": [{"prompt": "a"}]}, "belong together"),
    ("forward_backward", {"rows": [{"tokens": [1, 2]}], "learning_rate": 1}, "unknown argument"),
    ("forward_backward", {"rows": [{"tokens": [1, 10**6]}]}, "rows[0]"),
    ("forward_backward", {"rows": [{"prompt": "a " * 300, "completion": "b"}]}, "256 are allowed"),
    ("forward_backward", {"rows": ROWS, "loss": "crossentropy"}, "cross_entropy"),
    ("step", {}, "no gradients"),
    ("backward", {"handle": 7}, "handle 7"),
    ("generate", {"prompts": [{}]}, "prompts[0]"),
    ("load", {"checkpoint": "0" * 32}, "no checkpoint"),
    ("train", {}, "no tool has the name 'train'"),
]


def test_what_is_wrong_is_one_line_that_says_what_to_do(serve: Any) -> None:
    served = serve("mcp")

    async def go() -> None:
        async with Client(f"{served.url}/mcp") as client:
            call = calling(client)
            with pytest.raises(RuntimeError, match="no base model 'large' is served here"):
                await call("new_session", base="large")
            session = (await call("new_session", base="tiny"))["session"]
            for name, arguments, said in WRONG:
                with pytest.raises(RuntimeError) as caught:
                    await call(name, session=session, **arguments)
                assert said in str(caught.value) and "\n" not in str(caught.value), (name, arguments)
            assert (await call("forward_backward", session=session, rows=ROWS))["targets"] > 0

    asyncio.run(go())


def test_each_request_is_asked_for_its_key(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve("mcp", keyless=False)
    mine, theirs = (served.service.keys.create(tenant) for tenant in ("mine", "theirs"))
    reading = served.service.keys.create("mine", ("read",))

    async def go(key: str, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
        http = httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60)
        async with http, Client(streamable_http_client(f"{served.url}/mcp", http_client=http)) as client:
            return [await calling(client)(name, **arguments) for name, arguments in calls]

    made = asyncio.run(go(mine, ("new_session", {"base": "tiny"})))[0]["session"]
    assert asyncio.run(go(mine, ("list_sessions", {})))[0]["sessions"][0]["id"] == made
    assert asyncio.run(go(theirs, ("list_sessions", {})))[0]["sessions"] == []
    for key, name, arguments, said in (
        (theirs, "forward_backward", {"session": made, "rows": ROWS}, f"no session or model '{made}'"),
        (reading, "new_session", {"base": "tiny"}, "lacks the scope train"),
    ):
        with pytest.raises(ExceptionGroup) as caught:
            asyncio.run(go(key, (name, arguments)))
        error: BaseException = caught.value
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert said in str(error)
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    looked_up: list[str | None] = []
    find = served.service.keys.caller

    def counted(key: str | None, *, keyless: bool) -> Any:
        looked_up.append(key)
        return find(key, keyless=keyless)

    for headers in ({"Authorization": f"Bearer {mine}"}, {"X-API-Key": mine}):
        looked_up.clear()
        with monkeypatch.context() as patch:
            patch.setattr(served.service.keys, "caller", counted)
            answer = httpx.post(f"{served.url}/mcp", json=ask, headers={"Accept": "application/json", **headers})
        assert answer.status_code == 200 and answer.json()["result"]["tools"]
        assert looked_up == [mine], "a key is looked up once a request"
    for headers in ({}, {"Authorization": "Bearer ft_0_0"}):
        answer = httpx.post(f"{served.url}/mcp", json=ask, headers={"Accept": "application/json", **headers})
        assert answer.status_code == 401 and answer.json()["error"].startswith("no valid API key")
    lines = [json.loads(line) for line in (served.service.settings.folder / "audit.jsonl").read_text().splitlines()]
    told = [(one["event"], one["tenant"], one["outcome"]) for one in lines if one["event"].startswith("mcp ")]
    assert {"POST /mcp"} <= {one["event"] for one in lines}
    assert ("mcp new_session", "mine", "done") in told and ("mcp forward_backward", "theirs", "failed") in told
    assert "Ann" not in (served.service.settings.folder / "audit.jsonl").read_text()


def test_a_page_of_a_stranger_is_refused(serve: Any) -> None:
    served = serve("mcp")
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    answer = httpx.post(f"{served.url}/mcp", json=ask, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
