"""`/v1/responses` and `/v1/embeddings`, asked by OpenAI's own client: an answer is what a chat gives, and an embedding
what transformers computes in float64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_openai.responses import messages_of
from finetooth_server.keeping.served_adapters import served_adapters
from safetensors.numpy import load_file, save_file

openai = pytest.importorskip("openai")

ASK: dict[str, Any] = {"model": "tiny", "input": "Who is that?", "temperature": 0, "max_output_tokens": 12}
CHAT: dict[str, Any] = {
    "model": "tiny", "messages": [{"role": "user", "content": "Who is that?"}], "temperature": 0, "max_tokens": 12,
}  # fmt: skip
WEATHER = {
    "type": "function", "name": "weather", "description": "Today's.", "strict": False,
    "parameters": {"type": "object", "properties": {"place": {"enum": ["Rome", "Oslo"]}}, "required": ["place"],
                   "additionalProperties": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A LoRA, and what it adds to the base's weights."""
    folder = tmp_path_factory.mktemp("adapters") / "red"
    folder.mkdir()
    tensors, added, drawn = {}, {}, np.random.default_rng(3)
    for key, weight in load_file(tiny_llama / "model.safetensors").items():
        if not key.endswith("down_proj.weight"):
            continue
        a, b = (drawn.normal(0, 0.3, size).astype(np.float32) for size in ((2, weight.shape[1]), (weight.shape[0], 2)))
        name = f"base_model.model.{key.removesuffix('.weight')}"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        added[key] = b.astype(np.float64) @ a.astype(np.float64)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_llama), "r": 2, "lora_alpha": 2, "bias": "none",
              "target_modules": ["down_proj"], "task_type": "CAUSAL_LM"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, added


@pytest.fixture(scope="module")
def client(serve: Callable[..., Any], served_recipe: dict[str, Any], adapter: Any) -> Iterator[Any]:
    found = served_adapters(State(StartOptions()), [str(adapter[0])], {"tiny": served_recipe})
    served = serve("openai", adapters={"red": found[str(adapter[0])]})
    served.service.settings.models["caller"] = {**served_recipe, "data": {"renderer": "hermes"}}
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_an_answer_is_that_of_the_chat(client: Any) -> None:
    said = client.responses.create(**ASK, include=["message.output_text.logprobs"], top_logprobs=2)
    chat = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    assert said.output_text == chat.choices[0].message.content != ""
    assert (said.status, said.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    used = said.usage
    assert (used.input_tokens, used.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    scores = [one.to_dict() for one in said.output[0].content[0].logprobs]
    assert scores == [one.to_dict() for one in chat.choices[0].logprobs.content]


def test_a_stream_adds_up_to_the_answer(client: Any) -> None:
    whole = client.responses.create(**ASK)
    events = list(client.responses.create(**ASK, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert "".join(deltas) == whole.output_text == events[-4].text
    assert events[-1].response.output_text == whole.output_text and events[-1].response.usage == whole.usage
    assert events[-1].response.output[0] == events[-2].item


def test_a_conversation_of_items_is_that_of_messages(client: Any) -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
        {"role": "user", "content": "Hi"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Ho", "annotations": [], "logprobs": []}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
    ]  # fmt: skip
    messages = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    said = client.responses.create(**{**ASK, "input": items})
    chat = client.chat.completions.create(**{**CHAT, "messages": messages})
    assert said.output_text == chat.choices[0].message.content
    assert said.usage.input_tokens == chat.usage.prompt_tokens
    again = client.responses.create(**{**ASK, "input": items[1:]}, instructions="Be kind.")
    assert again.output_text == said.output_text and again.instructions == "Be kind."


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_is_made_and_its_output_is_read(client: Any, streamed: bool) -> None:
    asked = {**ASK, "model": "caller", "tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 60}
    if streamed:
        events = list(client.responses.create(**asked, stream=True))
        said = events[-1].response
        (done,) = (event for event in events if event.type == "response.function_call_arguments.done")
        (item,) = (event.item for event in events if event.type == "response.output_item.done")
        assert done.item_id == item.id and done.arguments == item.arguments and said.output == [item]
    else:
        said = client.responses.create(**asked)
    (call,) = said.output
    assert said.status == "completed" and (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments)["place"] in ("Rome", "Oslo")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [{"role": "user", "content": "Who is that?"}, call.to_dict(), output]
    answered = client.responses.create(**{**ASK, "model": "caller", "input": items}, tools=[WEATHER])
    function = {"name": call.name, "arguments": call.arguments}
    messages = [
        CHAT["messages"][0],
        {"role": "assistant", "tool_calls": [{"id": call.call_id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"},
    ]
    tool = {name: value for name, value in WEATHER.items() if name in ("name", "description", "parameters")}
    tools = [{"type": "function", "function": tool}]
    chat = client.chat.completions.create(**{**CHAT, "model": "caller", "messages": messages}, tools=tools)
    assert answered.usage.input_tokens == chat.usage.prompt_tokens


def test_an_answer_fits_its_schema(client: Any) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    said = client.responses.create(**{**ASK, "max_output_tokens": 60}, text={"format": wanted})
    assert json.loads(said.output_text)["colour"] in ("red", "blue") and said.status == "completed"
    asked = {**ASK, "max_output_tokens": 60, "text": {"format": wanted}}
    with client.responses.stream(**asked) as stream:  # the client's own account of the events
        assert stream.get_final_response().output_text == said.output_text


def test_what_was_thought_said_and_called_is_one_message() -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "message", "role": "assistant", "content": "One."},
        {"type": "message", "role": "assistant", "content": "Two."},
    ]
    messages, origins = messages_of(items, "Be kind.")
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "tool", "assistant", "assistant"]
    assert origins == ["instructions", "input[0]", "input[1]", "input[5]", "input[6]", "input[7]"]
    answer = messages[2]
    assert (answer["reasoning_content"], answer["content"]) == ("Hm.", "I look.")
    assert [call["id"] for call in answer["tool_calls"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": [{"role": "user", "content": "a"}, {"type": "item_reference", "id": "x"}]}, "input[1]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "king", "content": "a"}], "instructions": "b"}, "input[0].role"),
        ({"include": ["file_search_call.results"]}, "include: file_search_call.results"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"input": "a " * 100_000}, "input"),
        ({"extra_body": {"colour": 1}}, "colour"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_offered_is_refused_by_its_own_name(client: Any, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**{**ASK, **more})
    assert refused.value.body["param"] == param, refused.value.body
    assert "messages" not in refused.value.body["message"] and "\n" not in refused.value.body["message"]


TEXTS = ["It was a dark night.", "Who?"]


def in_float64(folder: Path, texts: list[str]) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        states = [model(torch.tensor([tokenizer(one)["input_ids"]])).last_hidden_state[0].mean(0) for one in texts]
    found: np.ndarray = torch.nn.functional.normalize(torch.stack(states)).numpy()
    return found


def test_embeddings_are_the_means_of_last_states(client: Any, tiny_llama: Path, adapter: Any, tmp_path: Path) -> None:
    """Of the base, and of an adapter of its; the client asks for base64 by itself."""
    shutil.copytree(tiny_llama, tmp_path / "whole")
    weights = {name: x.astype(np.float64) for name, x in load_file(tiny_llama / "model.safetensors").items()}
    for name, added in adapter[1].items():
        weights[name] += added
    save_file({n: x.astype(np.float32) for n, x in weights.items()}, tmp_path / "whole/model.safetensors",
              {"format": "pt"})  # fmt: skip
    for name, folder in (("tiny", tiny_llama), ("red", tmp_path / "whole"), ("tiny", tiny_llama)):
        wanted = in_float64(folder, TEXTS)
        said = client.embeddings.create(model=name, input=TEXTS)
        np.testing.assert_allclose([one.embedding for one in said.data], wanted, atol=1e-5)
    assert [one.index for one in said.data] == [0, 1] and said.usage.prompt_tokens == said.usage.total_tokens
    plain = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float").data[0].embedding
    np.testing.assert_allclose(plain, wanted[0], atol=1e-5)
    fewer = client.embeddings.create(model="tiny", input=TEXTS, dimensions=8).data[1].embedding
    np.testing.assert_allclose(fewer, wanted[1, :8] / np.linalg.norm(wanted[1, :8]), atol=1e-5)


def test_tokens_are_embedded_as_they_are_and_what_cannot_be_is_refused(client: Any, tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tiny_llama)(TEXTS[0])["input_ids"]
    first, second = (client.embeddings.create(model="tiny", input=given).data[0] for given in (TEXTS[0], [ids]))
    np.testing.assert_allclose(first.embedding, second.embedding, atol=1e-6)
    most = client.embeddings.create(model="tiny", input=[[5] * 512])  # as many as the model was made for
    assert np.linalg.norm(most.data[0].embedding) == pytest.approx(1, abs=1e-5)
    for more, said in (
        ({"input": ""}, "input"),
        ({"input": [[5] * 513]}, "input"),
        ({"input": [[5, 4096]]}, ""),
        ({"input": "a", "dimensions": 65}, "dimensions"),
        ({"input": "a", "model": "red*0.5"}, "model"),
        ({"input": "a", "extra_body": {"temperature": 0}}, "temperature"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(**{"model": "tiny", **more})
        assert (refused.value.body["param"] or "") == said, refused.value.body
