"""Rows and masks as LLaMA-Factory 0.9.5 makes them; `llamafactory/record.py` recorded them with the tool itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_hooks.data.examples import Labelled, Pair, Text
from finetooth_importer.account import Account
from finetooth_importer.tools import llamafactory

HERE = Path(__file__).parent / "llamafactory"
ROLES = {"user": "user", "assistant": "assistant", "tool": "observation"}


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    assert found.pop("llamafactory") == "0.9.5"
    return found


def said(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Messages in LLaMA-Factory's words."""
    found = []
    for message in messages:
        if message.tool_calls:
            calls = [{**call["function"]} for call in message.tool_calls]
            found.append({"role": "function", "content": calls[0] if len(calls) == 1 else calls})
        else:
            found.append({"role": ROLES[message.role], "content": message.content})
    return found


def theirs(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{**m, "content": json.loads(m["content"])} if m["role"] == "function" else m for m in messages]


def parted(messages: tuple[Message, ...]) -> tuple[str, tuple[Message, ...]]:
    system = messages[0].content if messages[0].role == "system" else ""
    return system, messages[1:] if messages[0].role == "system" else messages


def in_their_words(example: Any) -> dict[str, Any]:
    """One example as their converters leave a row."""
    tools: Any = ()
    if isinstance(example, Text):
        prompt, response, system = [{"role": "user", "content": example.text}], [], ""
    elif isinstance(example, Conversation):
        system, messages = parted(example.messages)
        prompt, response, tools = said(messages[:-1]), said(messages[-1:]), example.tools
    elif isinstance(example, Pair):
        system, messages = parted(example.prompt)  # type: ignore[arg-type]
        prompt, response = said(messages), [said(side)[0] for side in (example.chosen, example.rejected)]  # type: ignore[arg-type]
    else:
        assert isinstance(example, Labelled)
        system, messages = parted(example.prompt)  # type: ignore[arg-type]
        answer, empty = said(example.completion)[0], {"role": "assistant", "content": ""}  # type: ignore[arg-type]
        prompt, response = said(messages), [answer, empty] if example.label is True else [empty, answer]
    images = [one for message in getattr(example, "messages", ()) for one in message.media]
    return {"prompt": prompt, "response": response, "system": system, "tools": [t["function"] for t in tools],
            "images": len(images)}  # fmt: skip


def read(reference: str) -> Iterator[Any]:
    import finetooth

    session = finetooth.session({"model": "none", "data": {"train": reference}, "trackers": []}, data=False)
    for _, example in session.context.examples("train").rows:
        yield example


@pytest.mark.parametrize("name", list(json.loads((HERE / "data/dataset_info.json").read_text())))
def test_every_dataset_says_what_it_says_there(name: str) -> None:
    rows = recorded("messages")[name]
    ours = [in_their_words(example) for example in read(f"{HERE / 'data'}:{name}")]
    assert len(ours) == len(rows)
    for found, there in zip(ours, rows, strict=True):
        if found["images"]:
            for message in there["_prompt"]:
                message["content"] = message["content"].replace("<image>", "")
        assert found == {
            "prompt": theirs(there["_prompt"]),
            "response": theirs(there["_response"]),
            "system": there["_system"] or "",
            "tools": json.loads(there["_tools"] or "[]"),
            "images": len(there["_images"] or ()),
        }


def test_several_are_mixed_each_with_its_format() -> None:
    import finetooth

    recipe = {"model": "none", "data": {"train": f"{HERE / 'data'}:faq,chats[:1]"}, "trackers": []}
    session = finetooth.session(recipe, data=False)
    rows = session.context.data.rows("train")
    assert [picked.registered.entry.name for picked in rows.formats] == ["instruction", "chat"]
    assert [picked.setting for picked in rows.sources] == ["data.train.0", "data.train.1"]
    assert len(list(session.context.examples("train").rows)) == 2  # [:1] of each


BREAK_ID, BYTES = 198, 256
"""Id of a line break, and how many ids are bytes: control tokens follow."""
CASES = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))


def imported(model: Path, template: str, dataset: str, **more: Any) -> tuple[Account, dict[str, Any]]:
    """The recipe that `ft import` makes of a configuration of theirs, and the account of its keys."""
    given = {
        "model_name_or_path": str(model), "stage": "sft", "dataset": dataset, "dataset_dir": str(HERE / "data"),
        "template": template, "cutoff_len": 4096, "max_steps": 1, **more,
    }  # fmt: skip
    account = Account(given)
    llamafactory.read(account, HERE)
    return account, {**account.recipe, "trackers": []}


def ours(recipe: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each row, as LLaMA-Factory writes them: -100 does not train."""
    import finetooth

    recipe["train"] = {**recipe["train"], "shuffle": False}
    found = []
    for datum in list(finetooth.session(recipe).job.method._data):
        tokens = [*map(int, datum.tokens), int(datum.targets[-1])]
        trained = [False, *map(bool, datum.mask)]
        found.append((tokens, [token if trains else -100 for token, trains in zip(tokens, trained, strict=True)]))
    return found


def test_what_is_said_to_be_compared_is_what_was_recorded() -> None:
    assert set(CASES["templates"]) == set(llamafactory.TEMPLATES)


@pytest.mark.parametrize("template", CASES["templates"])
def test_masks_are_theirs_or_the_importer_says_what_differs(
    template: str, weights: Path, byte_tokenizer: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = CASES["templates"][template]
    model = tmp_path / "model"
    shutil.copytree(weights, model)
    byte_tokenizer.write_tokenizer(model, case)
    if "own_template" in case:  # written here, after what the model's own says
        shutil.copy(HERE / f"{case['own_template']}.jinja", model / "chat_template.jinja")
    if "chat_template" in case:
        shared: Path = request.getfixturevalue("shared")
        template_file = shared / f"templates/{case['chat_template']}.jinja"
        (model / "chat_template.jinja").write_text(template_file.read_text(encoding="utf-8"), encoding="utf-8")
    ends = {"gemma": "<end_of_turn>", "gemma3": "<end_of_turn>"}  # there the end of a turn becomes the end of text
    end = BYTES + case["controls"].index(ends.get(template, case["eos"]))
    equal, but_breaks = [], []
    for dataset, rows in recorded("masks")[template].items():
        account, recipe = imported(model, template, dataset)
        (line,) = [line for line in account if line.key == "template"]
        theirs = [(row["input_ids"], row["labels"]) for row in rows]
        found = ours(recipe)
        equal.append(found == theirs)
        but_breaks.append(found == [(tokens, without_breaks(labels, end)) for tokens, labels in theirs])
    assert (line.outcome == "otherwise") == bool(line.note)
    assert all(equal) == (not line.note), line.note
    assert all(but_breaks) or line.note != llamafactory.DIFFERENCES["qwen"]


@pytest.mark.parametrize(
    "case", recorded("cuts")["llama3"], ids=lambda case: "-".join(map(str, case["given"].values()))
)
def test_rows_that_are_too_long_are_cut_as_theirs(
    case: dict[str, Any], weights: Path, byte_tokenizer: Any, tmp_path: Path
) -> None:
    """The same tokens and labels, but for what trains nothing there: such a row is left out here."""
    model = tmp_path / "model"
    shutil.copytree(weights, model)
    byte_tokenizer.write_tokenizer(model, CASES["templates"]["llama3"])
    given = dict(case["given"])
    account, recipe = imported(model, "llama3", given.pop("dataset"), **given)
    assert next(line for line in account if line.key == "cutoff_len").outcome == "taken"
    theirs = [(one["input_ids"], one["labels"]) for one in case["sequences"]]
    trained = [any(label != -100 for label in labels[1:]) for _, labels in theirs]
    if given["stage"] == "dpo" and not all(trained):
        trained = [False, False]
    wanted = [one for one, trains in zip(theirs, trained, strict=True) if trains]
    if not wanted:
        with pytest.raises(DataError, match="no row can be used"):
            ours(recipe)
        return
    assert ours(recipe) == [unlabelled_start(*one) for one in wanted]


def unlabelled_start(tokens: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """No model predicts the first token."""
    return tokens, [-100, *labels[1:]]


def without_breaks(labels: list[int], end: int) -> list[int]:
    """Labels of theirs but for the line break behind the end of each answer.

    Args:
        end: id of what ends an answer.
    """
    places = {i + 1 for i, label in enumerate(labels) if label == end and labels[i + 1 : i + 2] == [BREAK_ID]}
    return [-100 if place in places else label for place, label in enumerate(labels)]
