"""`ft serve openai` asked about images and sounds by OpenAI's own client, against the engine's own answers."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import Datum, Message, Sampling
from finetooth_hooks.data.examples import Audio, Image, Placed
from finetooth_hooks.sampling import ShownPrompt
from finetooth_server.app import make_app
from finetooth_server.service import Service
from finetooth_server.settings import Settings
from finetooth_toolbox.messages.media import chunks

openai = pytest.importorskip("openai")

ASKED = "What is this?"


def recipe(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "adapter": {"name": "lora", "rank": 4}, "train": {"precision": "fp32"}, **more}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A client of a server of its own for the models."""
    opened: list[tuple[Any, threading.Thread]] = []

    def make(models: dict[str, Any]) -> Any:
        service = Service(State(StartOptions()), Settings(tmp_path / "server", models, keyless=True))
        config = uvicorn.Config(make_app(service, ("openai",)), port=0, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        opened.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    yield make
    for server, thread in opened:
        server.should_exit = True
        thread.join(60)


def part(image: bytes) -> dict[str, Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def about(*images: bytes) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*map(part, images), {"type": "text", "text": ASKED}]}]


def test_answers_about_images_are_the_engines(vision_model: Path, captions: Path, client: Callable[..., Any]) -> None:
    asked = client({"eyes": recipe(vision_model)})
    state = State(StartOptions())
    engine, renderer = state.engine(recipe(vision_model)), state.context(recipe(vision_model)).renderer
    answers = []
    for name in ("chelsea.jpg", "coffee.jpg"):
        image = (captions.parent / "images" / name).read_bytes()
        shown = renderer.shown_prompt([Message("user", ASKED, media=(Placed(0, Image(name, content=image)),))])
        prompt = ShownPrompt(shown.tokens, tuple(chunks(shown.media, "here")))
        greedy = {"model": "eyes", "messages": about(image), "temperature": 0, "max_tokens": 6, "logprobs": True}
        said = asked.chat.completions.create(**greedy, top_logprobs=2)
        ((wanted,),) = engine.generate([prompt], Sampling(max_tokens=6, temperature=0))
        (choice,) = said.choices
        assert choice.message.content == renderer.parse(wanted.tokens).message.content
        assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (len(prompt), len(wanted.tokens))
        scores = [one.logprob for one in choice.logprobs.content]
        np.testing.assert_allclose(scores, wanted.logprobs[: len(scores)], atol=1e-5)
        datum = Datum.from_tokens([*prompt, *wanted.tokens], media=prompt.media)
        np.testing.assert_allclose(scores, engine.logprobs([datum])[0][len(prompt) - 1 :][: len(scores)], atol=1e-4)
        for one in choice.logprobs.content:  # greedy: what was said is the likeliest, with the image in sight
            assert one.top_logprobs[0].logprob == pytest.approx(one.logprob, abs=1e-4)
        streamed = list(asked.chat.completions.create(**greedy, stream=True))
        told = "".join(one.delta.content or "" for chunk in streamed for one in chunk.choices)
        assert told == choice.message.content
        drawn = {**greedy, "temperature": 1.0, "seed": 7, "n": 2}
        found = [one.message.content for one in asked.chat.completions.create(**drawn).choices]
        (ours,) = engine.generate([prompt], Sampling(max_tokens=6, temperature=1.0, n=2, seed=7))
        assert found == [renderer.parse(one.tokens).message.content for one in ours]
        answers.append(scores)
    assert answers[0] != answers[1]
    plain = asked.chat.completions.create(model="eyes", messages=[{"role": "user", "content": ASKED}], max_tokens=2)
    assert plain.choices[0].message.content is not None


def refused(asked: Any, messages: list[dict[str, Any]], model: str = "eyes") -> str:
    with pytest.raises(openai.BadRequestError) as error:
        asked.chat.completions.create(model=model, messages=messages, max_tokens=2)
    body = error.value.body
    assert body["type"] == "invalid_request_error" and "\n" not in body["message"]
    assert body["param"].startswith("messages")
    return str(body["message"])


def test_what_cannot_be_looked_at_is_refused_in_one_line(
    qwen_vl: Path, tiny_llama: Path, captions: Path, client: Callable[..., Any]
) -> None:
    image = (captions.parent / "images" / "chelsea.jpg").read_bytes()
    asked = client({"eyes": recipe(qwen_vl), "blind": recipe(tiny_llama, data={"renderer": "chatml"})})
    assert refused(asked, about(image), "blind").startswith("the model blind takes no images")
    assert "it is not an image" in refused(asked, about(b"hello")) and "row" not in refused(asked, about(b"hello"))
    assert "cut off" in refused(asked, about(image[:2000]))
    assert "17 images in one request, 16 are taken" in refused(asked, about(*[image] * 17))
    far = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}]
    assert "addresses that begin with http: are not followed" in refused(asked, far)
    assert asked.chat.completions.create(model="eyes", messages=about(image), max_tokens=2).choices  # and goes on


def test_answers_about_a_sound_are_the_engines(
    qwen_audio: Path, qwen_vl: Path, make_sound: Callable[..., bytes], client: Callable[..., Any]
) -> None:
    asked = client({"ears": recipe(qwen_audio), "eyes": recipe(qwen_vl)})
    state = State(StartOptions())
    engine, renderer = state.engine(recipe(qwen_audio)), state.context(recipe(qwen_audio)).renderer
    sound = make_sound(440, 0.7)
    message = Message("user", ASKED, media=(Placed(0, Audio("a.wav", content=sound)),))
    shown = renderer.shown_prompt([message])
    prompt = ShownPrompt(shown.tokens, tuple(chunks(shown.media, "here")))
    ((wanted,),) = engine.generate([prompt], Sampling(max_tokens=6, temperature=0))
    given = {"data": base64.b64encode(sound).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": given}, {"type": "text", "text": ASKED}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    said = asked.chat.completions.create(model="ears", messages=messages, temperature=0, max_tokens=6, logprobs=True)
    assert said.choices[0].message.content == renderer.parse(wanted.tokens).message.content
    assert said.usage.prompt_tokens == len(prompt)
    scores = [one.logprob for one in said.choices[0].logprobs.content]
    np.testing.assert_allclose(scores, wanted.logprobs[: len(scores)], atol=1e-5)
    assert refused(asked, messages, "eyes").startswith("the model eyes takes no sounds")
