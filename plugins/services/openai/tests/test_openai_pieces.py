"""Parts of the face by themselves: what is told of a stream, messages and their calls, fields that are refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_kit import run_checks
from finetooth_openai.answers import before_stop
from finetooth_openai.face import _read
from finetooth_openai.faults import Fault
from finetooth_openai.messages import calls_json, messages_of
from finetooth_openai.requests import ChatMessage, ChatRequest, CompletionRequest, read
from finetooth_openai.streaming import StreamedText


def test_the_face_passes_the_kit() -> None:
    (face,) = (one.entry for one in State(StartOptions()).catalog.all("face") if one.entry.name == "openai")
    assert not [result for result in run_checks(face) if result.status == "failed"]


def test_pieces_of_a_stream_are_the_text_before_its_stop() -> None:
    """Whatever the text and its ends: nothing is told twice, and nothing of the string that ends it."""
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choices("ab <>", k=30))
        stops = ["".join(rng.choices("ab<", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 2))]
        wanted, told, at, said = before_stop(text, stops), StreamedText(stops), 0, ""
        while at < len(text):
            at += rng.randint(1, 6)
            said += told.more(before_stop(text[:at], stops))
            assert wanted.startswith(said), (text, stops)
        assert said + told.more(wanted, whole=True) == wanted


def test_half_a_letter_waits_for_the_rest() -> None:
    told = StreamedText(())
    assert (told.more("caf\ufffd"), told.more("café"), told.more("café!", whole=True)) == ("caf", "é", "!")


def test_what_was_told_and_is_no_part_of_the_answer_is_an_error() -> None:
    told = StreamedText(())
    assert told.more("thinking aloud") and told.more("else") == ""
    with pytest.raises(Fault, match="ask without stream"):
        told.more("else", whole=True)


def test_calls_go_round() -> None:
    """As the client gets them, so it sends them back, and the tool's name is found by the call."""
    arguments = {"place": "Zürich", "days": [1, 2]}
    (sent,) = calls_json([{"type": "function", "function": {"name": "weather", "arguments": arguments}}], "x_0")
    given = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "assistant", "content": None, "tool_calls": [sent]},
        {"role": "tool", "tool_call_id": sent["id"], "content": "sun"},
    ]
    system, called, answered = messages_of([ChatMessage.model_validate(one) for one in given])
    assert (system.role, system.content) == ("system", "Be kind.")
    assert called.tool_calls[0]["function"] == {"name": "weather", "arguments": arguments}
    assert (answered.name, answered.tool_call_id) == ("weather", sent["id"])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[0].content[0]"),
        ({"role": "system", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
         "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]},
         "messages[0].content[1]"),
        ({"role": "assistant", "content": ""}, "messages[0].content"),
        ({"role": "user", "content": "a", "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]},
         "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]},
         "messages[0].tool_calls[0].function"),
    ],
)  # fmt: skip
def test_messages_that_no_renderer_is_given(message: dict[str, Any], field: str) -> None:
    with pytest.raises(Fault) as refused:
        messages_of([ChatMessage.model_validate(message)])
    assert (refused.value.param, refused.value.status) == (field, 400)


@pytest.mark.parametrize(
    ("kind", "content", "field"),
    [
        (CompletionRequest, {"prompt": "a", "echo": True}, "echo"),
        (CompletionRequest, {"prompt": "a", "best_of": 3}, "best_of"),
        (CompletionRequest, {"prompt": []}, "prompt"),
        (CompletionRequest, {"prompt": "a", "stop": ["x", ""]}, "stop"),
        (CompletionRequest, {"prompt": "a", "seed": -1}, "seed"),
        (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "x"}]}, "tools[0]"),
        (ChatRequest, {"messages": []}, "messages"),
        (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "store": True}, "store"),
    ],
)
def test_fields_are_refused_by_their_names(kind: Any, content: dict[str, Any], field: str) -> None:
    with pytest.raises(Fault) as refused:
        read(kind, {"model": "m", **content})
    assert refused.value.param == field and "\n" not in str(refused.value)
    with pytest.raises(Fault, match="not a JSON object"):
        read(kind, [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "https://example.org/cat.png"}, "addresses that begin with https: are not followed"),
        ({"url": "file:///etc/passwd"}, "addresses that begin with file: are not followed"),
        ({"url": "cat.png"}, "names of files are not followed"),
        ({"url": "data:image/png,abc"}, "no image in base64"),
        ({"url": "data:text/plain;base64,YQ=="}, "no image in base64"),
        ({"url": "data:image/png;base64,a%"}, "base64 cannot be read"),
        ({"url": "data:image/png;base64," + "A" * (28 * 2**20)}, "more than 20 MB"),
        ({"url": "data:image/png;base64,AA==", "detail": "high"}, "detail is not supported"),
        ({"url": "data:image/png;base64,AA==", "size": 3}, "size is not offered"),
        ("data:image/png;base64,AA==", "not of the form"),
    ],
    ids=range(10),
)
def test_images_that_are_not_taken_are_named(given: Any, said: str) -> None:
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": given}]
    with pytest.raises(Fault) as refused:
        messages_of([ChatMessage.model_validate({"role": "user", "content": content})])
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert (refused.value.param, refused.value.status) == ("messages[0].content[1]", 400)


def test_images_stand_where_the_parts_place_them() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/PNG;base64,aGk=", "detail": "auto"}}
    content = [{"type": "text", "text": "One"}, image, {"type": "text", "text": " two"}, image]
    (message,) = messages_of([ChatMessage.model_validate({"role": "user", "content": content})])
    assert message.content == "One two" and [one.at for one in message.media] == [3, 7]
    assert {one.medium.read() for one in message.media} == {b"hi"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("aGk=", "not of the form"),
        ({"data": "aGk="}, "none of wav, mp3"),
        ({"data": "aGk=", "format": "midi"}, "none of wav, mp3"),
        ({"data": "a%", "format": "wav"}, "base64 cannot be read"),
        ({"data": "A" * (28 * 2**20), "format": "wav"}, "more than 20 MB"),
        ({"data": "aGk=", "format": "wav", "rate": 3}, "rate is not offered"),
    ],
    ids=range(6),
)
def test_sounds_that_are_not_taken_are_named(given: Any, said: str) -> None:
    content = [{"type": "text", "text": "What?"}, {"type": "input_audio", "input_audio": given}]
    with pytest.raises(Fault) as refused:
        messages_of([ChatMessage.model_validate({"role": "user", "content": content})])
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert (refused.value.param, refused.value.status) == ("messages[0].content[1]", 400)


def test_a_sound_stands_where_its_part_places_it() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}
    content = [{"type": "text", "text": "One"}, sound, {"type": "text", "text": " two"}]
    (message,) = messages_of([ChatMessage.model_validate({"role": "user", "content": content})])
    assert message.content == "One two" and [(one.at, one.medium.kind) for one in message.media] == [(3, "audio")]
    assert message.media[0].medium.read() == b"hi"


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"a": ' * 100_000, '{"a": "\\ud83d"}', "{"])
def test_arguments_of_calls_that_nobody_can_read_are_named(arguments: str) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(Fault, match="JSON object") as caught:
        messages_of([ChatMessage.model_validate({"role": "assistant", "tool_calls": [call]})])
    assert caught.value.status == 400 and caught.value.param == "messages[0].tool_calls[0].function"


@pytest.mark.parametrize("body", [b'{"model": "\\ud83d"}', b"[" * 300_000, b'{"a":"\xed\xa0\xbd"}', b"{"])
def test_a_body_that_no_model_can_be_given_is_a_fault_of_the_client(body: bytes) -> None:
    with pytest.raises(Fault, match="the body cannot be read") as caught:
        _read(ChatRequest, body)
    assert caught.value.status == 400
