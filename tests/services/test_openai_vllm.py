"""Models whose engine is a vLLM server, asked by OpenAI's own client. The server is a stand-in that speaks vLLM's
documented protocol and whose words are our own engine's: the answers have to be those of the same model served here."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli import main
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import Datum, Message, PlanError, Sampling
from finetooth_hooks.sampling import ShownPrompt
from finetooth_server.keeping.served_adapters import served_adapters

sys.path.insert(0, str(Path(__file__).parent))

from vllm_wire import VllmWire  # type: ignore[import-not-found]

openai = pytest.importorskip("openai")

ASK: list[dict[str, Any]] = [{"role": "user", "content": "Who is that?"}]
GREEDY: dict[str, Any] = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def engine(served_recipe: dict[str, Any]) -> Any:
    """The model itself."""
    return State(StartOptions()).engine(served_recipe)


@pytest.fixture(scope="module")
def wire(engine: Any) -> Iterator[VllmWire]:
    lock = threading.Lock()

    def words(model: str, body: Mapping[str, Any]) -> Any:
        sampling = Sampling(
            max_tokens=body["max_tokens"], temperature=body["temperature"], top_k=body["top_k"], top_p=body["top_p"],
            stop=tuple(body["stop"]), stop_ids=tuple(body["stop_token_ids"]), seed=body["seed"],
        )  # fmt: skip
        with lock:
            (one,) = engine.generate([body["prompt"]], sampling)[0]
        return one.tokens, one.logprobs, one.stop

    made = VllmWire(words)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def mended(wire: VllmWire) -> None:
    wire.asked.clear()
    wire.dies, wire.refuses, wire.scales, wire.key, wire.pause = None, (0, ""), False, "", 0.0
    wire.silent, wire.lies = False, {}


@pytest.fixture(scope="module")
def recipe(served_recipe: dict[str, Any], wire: VllmWire) -> dict[str, Any]:
    return {**served_recipe, "backend": {"name": "vllm", "url": wire.url}}


@pytest.fixture(scope="module")
def clients(serve: Callable[..., Any], recipe: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Of a server whose engine is at vLLM, and of one that computes itself."""
    found = [serve("openai", models={"tiny": recipe}), serve("openai")]
    made = [openai.OpenAI(base_url=f"{one.url}/v1", api_key="none", max_retries=0) for one in found]
    yield made[0], made[1]
    for one in made:
        one.close()


def test_answers_are_those_of_the_same_model_served_here(clients: tuple[Any, Any], wire: VllmWire) -> None:
    there, here = clients
    asked = {**GREEDY, "logprobs": True}
    said, wanted = (one.chat.completions.create(**asked) for one in (there, here))
    assert said.choices[0].message.content == wanted.choices[0].message.content != ""
    assert (said.usage, said.choices[0].finish_reason) == (wanted.usage, wanted.choices[0].finish_reason)
    for one, other in zip(said.choices[0].logprobs.content, wanted.choices[0].logprobs.content, strict=True):
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=1e-5)
    (body,) = wire.bodies()
    assert body["model"] == "served" and body["ignore_eos"] and body["repetition_penalty"] == 1.0
    assert (body["top_k"], body["top_p"], body["min_p"]) == (0, 1.0, 0.0), "nothing is left to generation_config.json"


def test_what_is_added_to_logits_is_passed_on(clients: tuple[Any, Any], wire: VllmWire) -> None:
    added = {"presence_penalty": 0.5, "frequency_penalty": -0.25, "logit_bias": {"65": 3.5}}
    clients[0].chat.completions.create(**GREEDY, **added)
    (body,) = wire.bodies()
    assert {name: body[name] for name in added} == added


def test_streams_and_strings_that_end_answers(clients: tuple[Any, Any], wire: VllmWire) -> None:
    there, here = clients
    whole = here.chat.completions.create(**GREEDY).choices[0].message.content
    wire.pause = 0.1
    parts = list(there.chat.completions.create(**GREEDY, stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in parts) == whole
    assert len([one for one in parts if one.choices[0].delta.content]) > 2, "it is told as it is written"
    stop = whole[len(whole) // 2 :][:3]
    cut, wanted = (one.chat.completions.create(**GREEDY, stop=stop) for one in (there, here))
    assert cut.choices[0].message.content == wanted.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_seeds_samples_and_schemas_are_handed_on(clients: tuple[Any, Any], wire: VllmWire) -> None:
    there, _ = clients
    asked = {**GREEDY, "temperature": 1.0, "n": 3, "seed": 7, "top_p": 0.9}
    texts = [one.message.content for one in there.chat.completions.create(**asked).choices]
    assert len(set(texts)) == 3
    assert [one.message.content for one in there.chat.completions.create(**asked).choices] == texts
    assert len({body["seed"] for body in wire.bodies()}) == 3 and {body["top_p"] for body in wire.bodies()} == {0.9}
    pet = {"type": "object", "properties": {"age": {"type": "integer"}}}
    shape = {"type": "json_schema", "json_schema": {"name": "pet", "schema": pet}}
    there.chat.completions.create(**GREEDY, response_format=shape)
    assert wire.bodies()[-1]["structured_outputs"] == {"json": pet}


def test_many_clients_at_once_are_handed_on_at_once(clients: tuple[Any, Any], wire: VllmWire) -> None:
    """With settings that differ, too: what would be written one after the other here goes to vLLM together."""
    there, here = clients
    questions = [[{"role": "user", "content": f"Who is number {n}?"}] for n in range(6)]
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        asked = {**GREEDY, "messages": questions[n], "max_tokens": 6 + n}
        found[n] = there.chat.completions.create(**asked).choices[0].message.content

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for n in range(6):
        asked = {**GREEDY, "messages": questions[n], "max_tokens": 6 + n}
        assert found[n] == here.chat.completions.create(**asked).choices[0].message.content
    assert len(wire.bodies()) == 6, "none was asked twice"


def test_an_adapter_is_loaded_once_and_asked_for_by_name(
    serve: Callable[..., Any], recipe: dict[str, Any], wire: VllmWire, tmp_path: Path
) -> None:
    folder = tmp_path / "polite"
    folder.mkdir()
    base = str(recipe["model"])
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    adapters = served_adapters(State(StartOptions()), [str(folder)], {"tiny": recipe})
    served = serve("openai", models={"tiny": recipe}, adapters=adapters)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        for _ in range(2):
            client.chat.completions.create(**{**GREEDY, "model": str(folder)})
        client.chat.completions.create(**GREEDY)
        with pytest.raises(openai.BadRequestError, match="one adapter at a time"):
            client.chat.completions.create(**{**GREEDY, "model": f"{folder}*0.5"})
    (name,) = wire.adapters
    assert wire.adapters[name] == str(folder) and [one["model"] for one in wire.bodies()] == [name, name, "served"]
    assert [path for path, _ in wire.asked].count("/v1/load_lora_adapter") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_there_is_named_and_the_next_is_answered(
    clients: tuple[Any, Any], wire: VllmWire, stream: bool
) -> None:
    """With HTTP's own words: 400 is the client's mistake; 502 and 504 say that it made none."""
    there, _ = clients

    def refused(status: int, said: str) -> None:
        with pytest.raises(openai.APIStatusError, match=said) as caught:
            list(there.chat.completions.create(**{**GREEDY, "stream": stream}))
        assert caught.value.status_code == status
        assert caught.value.body["type"] == ("server_error" if status >= 500 else "invalid_request_error")
        assert "\n" not in caught.value.body["message"]

    there.chat.completions.create(**GREEDY)  # what is looked at before the first answer is nobody's request
    wire.refuses = 400, "This model's maximum context length is 8 tokens"
    refused(400, r"backend vllm.*maximum context length is 8 tokens")
    for status in (401, 404, 429, 500, 503):
        wire.refuses = status, "not now"
        refused(
            502, rf"backend vllm.*answers /v1/completions with {status}: not now \(see that it runs, then ask again"
        )
    wire.refuses = 504, "a proxy's"
    refused(504, "with 504")
    wire.refuses, wire.dies = (0, ""), 0
    refused(502, r"backend vllm: http://127\.0\.0\.1:\d+ (ended in the middle|cannot be)")
    wire.dies, wire.lies = None, {"token_ids": [10**6] * 3}
    refused(502, "outside the vocabulary")
    wire.lies = {"logprobs": None}
    refused(502, "gave 0 log-probabilities for 3 tokens")
    wire.lies, wire.dies = {}, 2
    if stream:  # what was told cannot be taken back: an error is the last event
        with pytest.raises(openai.APIError, match=r"ended in the middle|cannot be") as caught:
            list(there.chat.completions.create(**{**GREEDY, "stream": True}))
        assert caught.value.body["type"] == "server_error"
    else:
        refused(502, "ended in the middle|cannot be")
    wire.dies = None
    assert there.chat.completions.create(**GREEDY).choices[0].message.content


def test_who_waits_too_long_for_it_is_told_so_and_none_is_asked_twice(
    serve: Callable[..., Any], recipe: dict[str, Any], wire: VllmWire
) -> None:
    served = serve("openai", models={"tiny": {**recipe, "backend": {**recipe["backend"], "timeout": 1.0}}})
    found: dict[int, Any] = {}
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        client.chat.completions.create(**GREEDY)
        wire.silent = True
        wire.asked.clear()

        def ask(n: int) -> None:
            try:
                found[n] = client.chat.completions.create(**GREEDY, stream=n == 0)
            except openai.APIStatusError as error:
                found[n] = error

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert [found[n].status_code for n in range(3)] == [504] * 3
        assert all("gave no token for 1 s (see that it runs" in str(one) for one in found.values())
        assert len(wire.bodies()) == 3, "each would have waited as long again"
        wire.silent = False
        assert client.chat.completions.create(**GREEDY).choices[0].message.content


@pytest.mark.parametrize("begun", [False, True])
def test_one_that_went_away_is_a_bad_gateway(
    serve: Callable[..., Any], recipe: dict[str, Any], engine: Any, capsys: Any, begun: bool
) -> None:
    def words(model: str, body: Mapping[str, Any]) -> Any:
        return [1, 2], [-1.0, -1.0], "length"

    gone = VllmWire(words)
    backend = {"name": "vllm", "url": gone.url}
    served = serve("openai", models={"tiny": {**recipe, "backend": backend}})
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        if begun:
            client.completions.create(model="tiny", prompt="a", max_tokens=2)
        gone.close()
        with pytest.raises(openai.APIStatusError, match=rf"{gone.url} cannot be reached") as caught:
            client.completions.create(model="tiny", prompt="a", max_tokens=2)
        assert caught.value.status_code == 502
    settings = ["data.renderer=chatml", "backend.name=vllm", f"backend.url={gone.url}"]
    assert main(["chat", str(recipe["model"]), *settings, "--prompt", "Who?"]) == 2
    said = capsys.readouterr().err
    assert "cannot be reached" in said and "Traceback" not in said


def test_what_it_does_not_say_is_refused_by_its_name(clients: tuple[Any, Any]) -> None:
    there, _ = clients
    with pytest.raises(openai.BadRequestError, match="which top_logprobs needs"):
        there.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)


def test_a_client_that_leaves_ends_its_request(clients: tuple[Any, Any]) -> None:
    there, _ = clients
    with pytest.raises(openai.APITimeoutError):
        there.with_options(timeout=0.001).chat.completions.create(**GREEDY)
    assert there.chat.completions.create(**GREEDY).choices[0].message.content


def test_it_trains_and_scores_nothing(recipe: dict[str, Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(PlanError, match=r"backend vllm, which only answers and cannot train \(leave backend out"):
        _ = State(StartOptions()).session({**recipe, "data": {**recipe["data"], "train": str(rows)}}).plan
    engine = State(StartOptions()).engine(recipe)
    with pytest.raises(Exception, match="answers and does not score data"):
        engine.logprobs([Datum.from_tokens([1, 2, 3])])
    shown: Any = ShownPrompt((1, 2), ((0, object()),))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="an image, a sound or a video, and the backend sends only text"):
        engine.generate([shown], Sampling(max_tokens=1))


def test_chat_asks_it_too(recipe: dict[str, Any], engine: Any, wire: VllmWire, capsys: Any) -> None:
    model = str(recipe["model"])
    settings = ["data.renderer=chatml", "backend.name=vllm", f"backend.url={wire.url}"]
    assert main(["chat", model, *settings, "--prompt", "Who is that?", "--max-tokens", "12"]) == 0
    context = State(StartOptions()).context(recipe)
    prompt = context.renderer.prompt([Message("user", "Who is that?")])
    (wanted,) = engine.generate([prompt], Sampling(max_tokens=12, temperature=0.0))[0]
    assert wanted.text.strip() in capsys.readouterr().out and wire.bodies()


def test_a_server_that_is_not_there_or_is_another_one_is_refused_at_the_start(
    tiny_llama: Path, wire: VllmWire, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def begin(*settings: str) -> str:
        given = [part for one in ("data.renderer=chatml", "backend.name=vllm", *settings) for part in ("--set", one)]
        code = main(["serve", "openai", "--model", str(tiny_llama), "--folder", str(tmp_path), "--port", "0", *given])
        said = capsys.readouterr().err
        assert code == 2 and [line[:6] for line in said.splitlines() if "left out" not in line].count("error:") == 1, (
            said
        )
        assert "Traceback" not in said
        return str(said)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert f"{gone} cannot be reached" in begin(f"backend.url={gone}")
    assert "start it (vllm serve MODEL), or set backend.url" in begin(f"backend.url={gone}")
    assert "does not offer 'huge'; it has served" in begin(f"backend.url={wire.url}", "backend.model=huge")
    wire.scales = True
    assert "without --logprobs-mode processed_logprobs" in begin(f"backend.url={wire.url}")
    wire.scales, wire.key = False, "secret"
    assert "401" in begin(f"backend.url={wire.url}")
    assert "FT_NO_SUCH_KEY is not set" in begin(f"backend.url={wire.url}", "backend.key_from=FT_NO_SUCH_KEY")
    monkeypatch.setenv("FT_VLLM_KEY", "secret")
    state, more = State(StartOptions()), {"url": wire.url, "key_from": "FT_VLLM_KEY"}
    recipe = {"model": str(tiny_llama), "data": {"renderer": "chatml"}, "backend": {"name": "vllm", **more}}
    assert state.session(recipe, data=False).plan.picks["backend"] == "finetooth-serversamplers:vllm"


def test_loading_an_adapter_that_is_not_there_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    engine = State(StartOptions()).engine(recipe)
    with pytest.raises(Exception, match="holds no adapter that vLLM loads"):
        engine.hold(tmp_path)
