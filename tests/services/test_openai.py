"""The face for OpenAI's protocol, asked by OpenAI's own client and held against the engine's own answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import finetooth
import httpx2
import numpy as np
import pytest
from finetooth_core.cli import main
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import Conversation, Datum, Message, PlanError, Prompt, Sampling
from finetooth_serversamplers.openai import OpenAIOptions, OpenAISampler

openai = pytest.importorskip("openai")

ASK: list[dict[str, Any]] = [{"role": "user", "content": "Who is that?"}]
GREEDY: dict[str, Any] = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 12}


def client_of(url: str, key: str = "none") -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def served(serve: Callable[..., Any]) -> Any:
    return serve("openai")


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    with client_of(served.url) as made:
        yield made


@pytest.fixture(scope="module")
def opened(served_recipe: dict[str, Any]) -> Any:
    """The same model beside the server."""
    state = State(StartOptions())
    return state.engine(served_recipe), state.context(served_recipe)


def ours(opened: Any, messages: list[dict[str, Any]], sampling: Sampling) -> Any:
    engine, context = opened
    prompt = context.renderer.prompt([Message(one["role"], one["content"]) for one in messages])
    return prompt, engine.generate([prompt], sampling)[0]


def test_a_chat_says_what_the_engine_says(client: Any, opened: Any) -> None:
    prompt, (wanted,) = ours(opened, ASK, Sampling(max_tokens=12, temperature=0.0))
    said = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    (choice,) = said.choices
    assert choice.message.role == "assistant" and choice.message.content == wanted.text != ""
    assert choice.finish_reason == wanted.stop == "length"
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (len(prompt), 12)
    scores = [one.logprob for one in choice.logprobs.content]
    np.testing.assert_allclose(scores, wanted.logprobs, atol=1e-6)
    engine = opened[0]
    (scored,) = engine.logprobs([Datum.from_tokens([*prompt, *wanted.tokens])])
    np.testing.assert_allclose(scores, scored[-12:], atol=1e-4)
    for one in choice.logprobs.content:  # greedy: what was said is the likeliest
        assert len(one.top_logprobs) == 3 and one.top_logprobs[0].token == one.token
        assert one.top_logprobs[0].logprob == pytest.approx(one.logprob, abs=1e-4)
        assert one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob >= one.top_logprobs[2].logprob


def test_several_answers_and_a_seed(client: Any, opened: Any) -> None:
    asked = {**GREEDY, "temperature": 1.0, "n": 2, "seed": 7}
    texts = [one.message.content for one in client.chat.completions.create(**asked).choices]
    _, wanted = ours(opened, ASK, Sampling(max_tokens=12, temperature=1.0, n=2, seed=7))
    assert texts == [one.text for one in wanted] and texts[0] != texts[1]
    again = client.chat.completions.create(**asked)
    assert texts == [one.message.content for one in again.choices]
    other = client.chat.completions.create(**{**asked, "seed": 8})
    assert texts != [one.message.content for one in other.choices]
    unseeded = [client.chat.completions.create(**{**asked, "seed": None}).choices[0].message.content for _ in "ab"]
    assert unseeded[0] != unseeded[1]


def test_penalties_are_the_engines(client: Any, opened: Any) -> None:
    """With vLLM's names, which OpenAI's client sends as they are; log-probabilities stay the model's own."""
    more = {"min_p": 0.2, "repetition_penalty": 3.0}
    asked = {**GREEDY, "temperature": 1.0, "seed": 7}
    (choice,) = client.chat.completions.create(**asked, logprobs=True, extra_body=more).choices
    _, (wanted,) = ours(
        opened, ASK, Sampling(max_tokens=12, temperature=1.0, seed=7, min_p=0.2, repetition_penalty=3.0)
    )
    assert choice.message.content == wanted.text
    np.testing.assert_allclose([one.logprob for one in choice.logprobs.content], wanted.logprobs, atol=1e-6)
    assert client.chat.completions.create(**asked).choices[0].message.content != wanted.text


def test_a_stop_sequence_ends_the_answer_before_it(client: Any) -> None:
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = client.chat.completions.create(**GREEDY, stop=stop)
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop" and cut.usage.completion_tokens < 12


@pytest.mark.parametrize("more", [{}, {"temperature": 1.0, "seed": 3, "n": 2}, {"stop": "STOP"}], ids=str)
def test_what_is_streamed_is_the_whole_answer(client: Any, more: dict[str, Any]) -> None:
    asked = {**GREEDY, "logprobs": True, **more}
    if "stop" in asked:
        text = client.chat.completions.create(**GREEDY).choices[0].message.content
        asked["stop"] = text[len(text) // 2 :][:4]
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    for n, choice in enumerate(whole.choices):
        own = [one for chunk in chunks for one in chunk.choices if one.index == n]
        assert "".join(one.delta.content or "" for one in own) == choice.message.content
        assert own[0].delta.role == "assistant" and own[-1].finish_reason == choice.finish_reason
        scores = [one for part in own if part.logprobs for one in part.logprobs.content]
        assert scores == choice.logprobs.content
    assert len(chunks) > (2 if "stop" in more else 4)  # what a busy server has ready goes out together


def test_what_a_policy_learns_from(served: Any, opened: Any) -> None:
    """The sampler `openai` beside this server: ids to and fro, the server's log-probabilities are the engine's."""
    engine, context = opened
    prompts = [Prompt("a:1", "a:1", tuple(context.renderer.prompt([Message("user", text)]))) for text in ("Who?", "Hm")]
    sampler = OpenAISampler(OpenAIOptions(url=served.url), context)
    found = sampler.sample(engine, prompts, Sampling(max_tokens=5, n=2, seed=4)).rollouts
    assert [one.prompt for one in found] == [prompt.tokens for prompt in prompts for _ in range(2)]
    for one in found:
        (scored,) = engine.logprobs([Datum.from_tokens([*one.prompt, *one.tokens])])
        np.testing.assert_allclose(one.logprobs, scored[-len(one.tokens) :], atol=1e-4)
    ending = Sampling(max_tokens=5, n=2, seed=4, stop_ids=(found[0].tokens[2],))
    ended = sampler.sample(engine, prompts, ending).rollouts[0]
    assert (ended.tokens, ended.outcome) == (found[0].tokens[:3], "stop")
    with pytest.raises(PlanError, match="gives log-probabilities of the unchanged model"):
        sampler.sample(engine, prompts, Sampling(max_tokens=5, temperature=0.5))


def test_a_policy_learns_from_what_a_server_sampled(served: Any, served_recipe: dict[str, Any], tmp_path: Path) -> None:
    """The server has the base, which an adapter begins as: in the first step both say the same of every token."""
    rows = [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {
        **served_recipe,
        "data": {"train": str(tmp_path / "rows.jsonl"), "format": "task", "renderer": "chatml"},
        "method": {"name": "grpo", "num_generations": 2, "max_completion_length": 5, "num_iterations": 2,
                   "skip_zero_advantage_batches": False, "sampler": {"name": "openai", "url": served.url}},
        "evaluate": {"evaluators": []},
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    recipe["train"] = {**served_recipe["train"], "max_steps": 2, "batch_size": 2}
    assert finetooth.run(recipe).steps == 2
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    first, second = (one["metrics"] for one in lines if one["event"] == "step")
    assert first["ratio/min"] == first["ratio/max"] == 1.0 and second["num_rollouts"] == 4
    assert first["sampling/sampling_logp_difference/max"] < 1e-4


def test_prompts_without_markup(client: Any, opened: Any) -> None:
    engine, context = opened
    texts = ["It was", "The cat"]
    ids = [context.tokenizer.encode(text) for text in texts]
    wanted = [one[0] for one in engine.generate(ids, Sampling(max_tokens=8, temperature=0.0))]
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8, "logprobs": 2}
    for prompt in (texts, ids):
        said = client.completions.create(**asked, prompt=prompt)
        assert [one.text for one in said.choices] == [one.text for one in wanted]
    for one, expected in zip(said.choices, wanted, strict=True):
        np.testing.assert_allclose(one.logprobs.token_logprobs, expected.logprobs, atol=1e-6)
        assert "".join(one.logprobs.tokens) == one.text and len(one.logprobs.top_logprobs) == 8
        assert [one.text[at] for at in one.logprobs.text_offset] == [token[0] for token in one.logprobs.tokens]
    chunks = list(client.completions.create(**{**asked, "logprobs": None}, prompt=texts, stream=True))
    for n in range(2):
        assert "".join(one.text for chunk in chunks for one in chunk.choices if one.index == n) == wanted[n].text


def test_what_is_not_offered_is_refused_by_its_name(client: Any) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    for wrong, field in (
        ({"response_format": schema, "tools": [TOOL]}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "b"}}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": "any", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": "required", "tools": [TOOL], "response_format": schema}, "response_format"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"123456789": 1.0}}, "logit_bias"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"verbosity": "high"}, "verbosity"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 100_000}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": [{"role": "nobody", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**{**GREEDY, **wrong})
        assert refused.value.param == field and refused.value.type == "invalid_request_error", wrong
        assert "\n" not in refused.value.body["message"]
    assert "did you mean temperature?" in str(refused.value)
    with pytest.raises(openai.NotFoundError, match="did you mean tiny") as unknown:
        client.chat.completions.create(**{**GREEDY, "model": "tinny"})
    assert unknown.value.code == "model_not_found"


def test_what_asks_for_nothing_is_taken(client: Any) -> None:
    """What chat windows send as it stands by default; the answer is the one without it."""
    usual = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "service_tier": "auto", "store": False,
             "tool_choice": "none", "parallel_tool_calls": True, "reasoning_effort": "high", "verbosity": "medium",
             "modalities": ["text"], "prompt_cache_key": "a", "safety_identifier": "b", "user": "c"}  # fmt: skip
    said = [client.chat.completions.create(**GREEDY, **more).choices[0].message.content for more in ({}, usual)]
    assert said[0] == said[1]


def test_logits_are_added_to_as_asked(client: Any, opened: Any) -> None:
    whole = ours(opened, ASK, Sampling(max_tokens=12, temperature=0.0))[1][0].tokens
    asked = {"presence_penalty": 2.0, "frequency_penalty": -1.5, "logit_bias": {str(whole[0]): -100, "65": 3.5}}
    more = {"presence_penalty": 2.0, "frequency_penalty": -1.5, "logit_bias": ((whole[0], -100.0), (65, 3.5))}
    _, (wanted,) = ours(opened, ASK, Sampling(max_tokens=12, temperature=0.0, **more))
    said = client.chat.completions.create(**GREEDY, **asked, logprobs=True).choices[0]
    assert said.message.content == wanted.text and whole[0] not in wanted.tokens
    np.testing.assert_allclose([one.logprob for one in said.logprobs.content], wanted.logprobs, atol=1e-6)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_has_to_be_called_is_called(
    served: Any, served_recipe: dict[str, Any], client: Any, choice: Any, stream: bool
) -> None:
    """By a model that knows nothing of tools: the name is one of them, and the arguments fit its schema."""
    letters = {"enum": [{"a": "x"}, {"a": "y"}]}
    tools = [
        {"type": "function", "function": {"name": name, "description": "b", "parameters": letters}}
        for name in ("weather", "time")
    ]
    served.service.settings.models["caller"] = {**served_recipe, "data": {"renderer": "hermes"}}
    asked = {
        **GREEDY,
        "model": "caller",
        "max_tokens": 60,
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }
    if stream:
        parts = [part.choices[0] for part in client.chat.completions.create(**asked, stream=True)]
        calls = [call for part in parts for call in part.delta.tool_calls or ()]
        content, finish = "".join(part.delta.content or "" for part in parts), parts[-1].finish_reason
    else:
        (found,) = client.chat.completions.create(**asked).choices
        calls, content, finish = found.message.tool_calls, found.message.content or "", found.finish_reason
    (call,) = calls
    assert finish == "tool_calls" and not content
    assert call.function.name in ("weather", "time") and json.loads(call.function.arguments)["a"] in ("x", "y")
    assert choice == "required" or call.function.name == "weather"


@pytest.mark.parametrize("chat", [True, False])
def test_the_likeliest_tokens_come_in_a_stream_as_they_come_without(client: Any, chat: bool) -> None:
    if chat:
        create, asked = client.chat.completions.create, {**GREEDY, "logprobs": True, "top_logprobs": 3}
    else:
        create = client.completions.create
        asked = {"model": "tiny", "prompt": "Who", "temperature": 0, "max_tokens": 12, "logprobs": 3}
    (whole,) = create(**asked).choices
    parts = [part.choices[0].logprobs for part in create(**asked, stream=True)]
    if chat:
        found = [one for part in parts if part is not None for one in part.content]
        assert found == whole.logprobs.content and len(found[0].top_logprobs) == 3
    else:
        assert [one for part in parts if part is not None for one in part.top_logprobs] == whole.logprobs.top_logprobs


def test_a_key_is_asked_for_and_limits_hold(serve: Callable[..., Any]) -> None:
    from finetooth_server.settings import Limits

    served = serve("openai", keyless=False, limits=Limits(streams=0))
    keys = {scope: served.service.keys.create("mine", (scope,)) for scope in ("read", "sample", "download")}
    with (
        client_of(served.url, "ft_0123456789ab_" + "0" * 64) as stranger,
        pytest.raises(openai.AuthenticationError) as wrong,
    ):
        stranger.models.list()
    assert wrong.value.code == "invalid_api_key" and wrong.value.type == "authentication_error"
    with client_of(served.url, keys["read"]) as reader:
        assert [one.id for one in reader.models.list()] == ["tiny"]
        with pytest.raises(openai.PermissionDeniedError, match="lacks the scope sample"):
            reader.chat.completions.create(**GREEDY)
    with client_of(served.url, keys["sample"]) as sampling, pytest.raises(openai.RateLimitError) as full:
        sampling.chat.completions.create(**GREEDY, stream=True)
    assert full.value.type == "rate_limit_error" and full.value.response.headers["retry-after"] == "1"
    with client_of(served.url, keys["download"]) as no, pytest.raises(openai.PermissionDeniedError):
        no.models.list()


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@pytest.mark.slow
def test_adapters_of_one_base_answer_by_their_names(serve: Callable[..., Any]) -> None:
    """Two checkpoints and the base under them; beside `api`, whose /v1/models is another, it is below its name."""
    served = serve("api", "openai")
    said = {}
    with finetooth.Client(served.url, patience=10) as owner:
        for name, text in (("red", " red apple" * 6), ("blue", " blue boat" * 6)):
            session = owner.session("tiny", adapter={"name": "lora", "rank": 4})
            tokens = State(StartOptions()).context(served.service.settings.models["tiny"]).tokenizer.encode(text)
            for _ in range(4):
                session.forward_backward([Datum.from_tokens(tokens)])
                session.step()
            session.save(name)
            (of_session,) = session.generate([tokens[:2]], Sampling(max_tokens=8, temperature=0.0))
            said[name] = tokens[:2], of_session[0].text
    with client_of(f"{served.url}/openai") as client:
        assert [one.id for one in client.models.list()] == ["tiny", "red", "blue"]
        assert client.models.retrieve("red").root == "tiny"
        prompt = said["red"][0]
        ask = {"temperature": 0, "max_tokens": 8}
        found = {
            name: client.completions.create(model=name, prompt=prompt, **ask).choices[0].text
            for name in ("tiny", "red", "blue", "tiny", "red")
        }
        assert len(set(found.values())) == 3 and found["red"] == said["red"][1]
        blue = client.completions.create(model="blue", prompt=said["blue"][0], **ask)
        assert blue.choices[0].text == said["blue"][1]
    with finetooth.Client(served.url, patience=10) as owner:
        assert [one.name for one in owner.checkpoints()] == ["red", "blue"]  # REST is where it was


def test_nothing_is_left_behind_by_who_went_away(served: Any) -> None:
    body = {**GREEDY, "max_tokens": 200, "temperature": 1, "stream": True}
    with httpx2.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=30) as answer:
        assert next(answer.iter_lines()).startswith("data: {")
    deadline = time.monotonic() + 20
    while served.service.streams._following and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not served.service.streams._following, "its place is taken still"
    with client_of(served.url) as other:  # it is there, and not busy with what nobody reads
        assert other.chat.completions.create(**GREEDY).choices


def test_bad_bodies_get_one_line(served: Any) -> None:
    for content in (b"{", b"[]", b"", b"[" * 100_000):
        answer = httpx2.post(f"{served.url}/v1/chat/completions", content=content, timeout=30)
        assert answer.status_code == 400, content[:9]
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.fixture
def unused(tmp_path: Path) -> Path:
    return tmp_path


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@pytest.mark.slow
def test_a_tool_is_called_and_answered(
    serve: Callable[..., Any], served_recipe: dict[str, Any], learned_by_heart: Callable[..., None]
) -> None:
    """An adapter that learned one call by heart: the client gets it as one, and its answer reaches the model."""
    served = serve("api", "openai")
    served.service.settings.models["caller"] = {**served_recipe, "data": {"renderer": "hermes"}}
    context = State(StartOptions()).context(served.service.settings.models["caller"])
    asked = Message("user", "Weather?")
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Rome"}}}
    rendered = context.renderer.render(Conversation((asked, Message("assistant", "", tool_calls=(call,))), (TOOL,)))
    learned_by_heart(served, rendered, model="caller", name="weatherman", steps=60)
    ask: dict[str, Any] = {
        "model": "weatherman", "messages": [{"role": "user", "content": "Weather?"}], "tools": [TOOL],
        "temperature": 0, "max_tokens": 60,
    }  # fmt: skip
    with client_of(f"{served.url}/openai") as client:
        (choice,) = client.chat.completions.create(**ask).choices
        (made,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and made.function.name == "weather"
        assert json.loads(made.function.arguments) == {"place": "Rome"} and made.id
        streamed = [chunk.choices[0] for chunk in client.chat.completions.create(**ask, stream=True)]
        (told,) = [one for part in streamed for one in part.delta.tool_calls or ()]
        assert told.function.model_dump() == made.function.model_dump() and streamed[-1].finish_reason == "tool_calls"
        assert not any(part.delta.content for part in streamed)

        answer = {"role": "tool", "tool_call_id": made.id, "content": "sunny"}
        messages = [*ask["messages"], choice.message.model_dump(exclude_none=True), answer]
        said = client.chat.completions.create(**{**ask, "messages": messages, "max_tokens": 4})
        given = Message("tool", "sunny", name="weather", tool_call_id=made.id)
        before = Message("assistant", "", tool_calls=({**call, "id": made.id},))
        wanted = context.renderer.prompt((asked, before, given), (TOOL,))
        assert said.usage.prompt_tokens == len(wanted)
        silent = client.chat.completions.create(**{**ask, "tool_choice": "none"})
        assert silent.usage.prompt_tokens == len(context.renderer.prompt((asked,)))


@pytest.mark.slow
def test_runs_answer_by_their_names_as_ft_chat_does(
    tiny_llama: Path, served_recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for name, word in (("red", "apple"), ("blue", "boat")):
        rows = tmp_path / f"{name}.jsonl"
        row = {"messages": [*ASK, {"role": "assistant", "content": f"A {name} {word}."}]}
        rows.write_text(f"{json.dumps(row)}\n" * 8)
        runs.append(tmp_path / name)
        finetooth.run({
            **served_recipe, "data": {"train": str(rows), "renderer": "chatml"}, "output": str(runs[-1]),
            "train": {"max_steps": 12, "batch_size": 8, "precision": "fp32", "max_length": 64}, "trackers": [],
        })  # fmt: skip
    folder = tmp_path / "server"
    command = [
        sys.executable, "-m", "finetooth", "serve", "openai", "--port", "0", "--folder", str(folder), "--set",
        "train.precision=fp32", "--set", "data.renderer=chatml",
        *(part for one in (tiny_llama, *runs) for part in ("--model", str(one))),
    ]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        found = None
        while found is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
            found = re.search(r"openai: (http://\S+)/v1\n", log.read_text())
        answers = {}
        with client_of(found[1]) as client:
            assert [one.id for one in client.models.list()] == [str(one) for one in (tiny_llama, *runs)]
            for one in (tiny_llama, *runs):
                said = client.chat.completions.create(**{**GREEDY, "model": str(one)})
                answers[one] = said.choices[0].message.content
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert len(set(answers.values())) == 3, answers
    chat = ("--max-tokens", "12", "train.precision=fp32", "data.renderer=chatml")
    for one, answer in answers.items():
        assert main(["chat", str(one), "--prompt", ASK[0]["content"], *chat]) == 0
        assert capsys.readouterr().out.strip() == answer.strip(), one
