"""What may be wrong with rows is told by row, and what is wrong is refused, whatever reads them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import finetooth
import pytest
import yaml
from finetooth_hooks import DataError, Message
from finetooth_kit.families import SIZES, tiny_model
from finetooth_kit.templates import template_tokenizer
from finetooth_rows.asking import ASKED_OTHERWISE_EARLIER

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., dict[str, Any]]

CHAT = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
DESCRIBED: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object"}}}


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are named by the path that the recipe has."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def session(recipe: Make, tmp_path: Path) -> Callable[..., Any]:
    def make(rows: Sequence[dict[str, Any]], method: Any = "sft", model: str = "", **data: Any) -> Any:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"train": "rows.jsonl", "renderer": "chatml", **data}
        train = {"batch_size": 8, "precision": "fp32", "max_length": 512 if not model else 1024}
        own = {"model": model} if model else {}
        return finetooth.session(recipe(method=method, data=given, train=train, **own))

    return make


def report_of(session: Any) -> Any:
    return session.job.prepared.report


def talk(*messages: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages], **more}


ASK, SAY = ("user", "2+2?"), ("assistant", "4")


# --- where an answer begins ----


@pytest.mark.parametrize(("renderer", "differ"), [("llama3", True), ("chatml", False)])
def test_answers_train_behind_the_tokens_of_their_prompt(
    session: Callable[..., Any], tiny_llama: Path, tmp_path: Path, renderer: str, differ: bool
) -> None:
    """SmolLM2's tokenizer takes two line feeds together at the end of a text, and apart before a letter."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_llama), AutoModelForCausalLM.from_pretrained(tiny_llama)
    markup = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": markup})
    model.resize_token_embeddings(len(tokenizer))
    model.config.max_position_embeddings = 1024
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    texts = ("It is.", "It can.", "So.")
    rows = [talk(ASK, ("assistant", "So?"), ASK, ("assistant", text)) for text in texts]
    made = session(rows, model=str(tmp_path / "model"), renderer=renderer)
    messages = [Message(role, content) for role, content in (ASK, ("assistant", "So?"), ASK)]
    asked = list(made.planned_context.renderer.prompt(messages))
    assert all(list(datum.tokens[: len(asked)]) == asked for datum in made.job.method._data)
    notes = report_of(made).notes
    assert [note.partition(": ")[2] for note in notes] == [ASKED_OTHERWISE_EARLIER] * differ


# --- markup in plain text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "row", "data"),
    [
        ("pretrain", {"text": CHAT}, {}),
        (
            "sft",
            {"prompt": CHAT, "completion": "More."},
            {"format": {"name": "prompt_completion", "style": "raw"}},
        ),
        (
            "dpo",
            {"prompt": f"{CHAT}\n", "chosen": "More.", "rejected": "Less."},
            {"format": {"name": "preference", "style": "raw"}},
        ),
    ],
)
def test_rendered_chats_in_plain_text_are_noticed(
    session: Callable[..., Any], method: str, row: dict[str, Any], data: dict[str, Any]
) -> None:
    """And read as the control tokens that they spell where the recipe says so."""
    plain = report_of(session([row], method, **data))
    (told,) = [note for note in plain.notes if "control tokens" in note]
    assert "rows.jsonl:1" in told and "<|im_start|>" in told and "data.markup: special" in told
    special = session([row], method, markup="special", **data)
    assert not [note for note in report_of(special).notes if "control tokens" in note]
    assert report_of(special).tokens < plain.tokens


def test_a_column_of_rendered_chats_becomes_the_tokens_of_the_chats(session: Callable[..., Any]) -> None:
    """The tokens are transformers' own."""
    from transformers import AutoTokenizer

    made = session([{"text": CHAT}], "pretrain", markup="special")
    report_of(made)
    (window,) = made.job.method.data
    expected = AutoTokenizer.from_pretrained(made.recipe.model.name).encode(CHAT, add_special_tokens=False)
    assert [*window.placeholder_tokens.tolist(), window.targets[-1]][: len(expected)] == expected


def test_a_refused_text_of_rendered_chats_says_what_to_give(session: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*rendered chat markup.*messages.*segments.*markup: special"):
        report_of(session([{"text": CHAT}]))


# --- tools ------------------------------------------------------------------------------------------------------------


def calls(*ids: str, name: str = "clock") -> dict[str, Any]:
    made = [{"id": id_, "type": "function", "function": {"name": name, "arguments": "{}"}} for id_ in ids]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(id_: str) -> dict[str, Any]:
    return {"role": "tool", "content": "12", "tool_call_id": id_}


def tooled(*between: dict[str, Any], tools: Any = (CLOCK,)) -> dict[str, Any]:
    ends = [{"role": "user", "content": "The time?"}], [{"role": "assistant", "content": "Noon."}]
    return {"messages": [*ends[0], *between, *ends[1]], "tools": tools}


def test_results_that_belong_to_no_call_are_refused(session: Callable[..., Any]) -> None:
    rows = [tooled(calls("a"), result("a")), tooled(calls("a"), result("z")), tooled(calls("a", "a"), result("a"))]
    with pytest.raises(DataError, match=r"2 of 3 rows.*rows.jsonl:2: .*'z', which no call.*rows.jsonl:3: .*id 'a'"):
        report_of(session(rows, renderer="qwen"))


def test_links_that_may_be_wrong_are_told_by_row(session: Callable[..., Any]) -> None:
    rows = [
        tooled(calls("a"), result("a")),
        tooled(calls("a", "b"), result("b"), result("a")),
        tooled(calls("a", name="calendar"), result("a")),
        tooled(result("a")),
    ]
    notes = report_of(session(rows, renderer="qwen")).notes
    for row, words in ((2, "another order"), (3, "not among the row's tools"), (4, "follows no call")):
        assert any(f"(rows.jsonl:{row}): " in note and words in note for note in notes), notes


@pytest.mark.parametrize("renderer", ["qwen", "qwen3", "hermes", "jinja"])
def test_malformed_schemas_are_refused_before_any_renderer(session: Callable[..., Any], renderer: str) -> None:
    rows = [tooled(calls("a"), result("a")), tooled(calls("a"), result("a"), tools=[{"function": "x"}])]
    with pytest.raises(DataError, match=r"rows.jsonl:2: tools\[0\]\.function is text, not an object"):
        report_of(session(rows, renderer=renderer))


SPECIAL = [
    *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"),
]
"""Of Mistral's and gpt-oss's markup."""


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has the control tokens of other families."""
    import transformers

    folder = tmp_path_factory.mktemp("other")
    tokenizer = template_tokenizer("", SPECIAL, bos="<s>", eos="</s>")
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 1024})
    tiny_model(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


MALFORMED: list[tuple[Any, str]] = [
    ({"function": "x"}, r"tools\[0\]\.function is text, not an object"),
    ({"type": "function", "function": {"description": "The time."}}, r"tools\[0\]\.function"),
    ({"type": "function", "function": {"name": "clock", "parameters": ["zone"]}}, r"tools\[0\]\.function\.parameters"),
    ({"type": "function", "function": {"name": 5}}, r"tools\[0\]\.function"),
]


@pytest.mark.parametrize("renderer", ["mistral", "harmony"])
@pytest.mark.parametrize(("tool", "problem"), MALFORMED)
def test_malformed_schemas_are_refused_for_other_families(
    session: Callable[..., Any], other_model: Path, renderer: str, tool: Any, problem: str
) -> None:
    rows = [tooled(calls("a12345678"), result("a12345678"), tools=tools) for tools in ([DESCRIBED], [tool])]
    with pytest.raises(DataError, match=f"rows.jsonl:2: {problem}"):
        report_of(session(rows, model=str(other_model), renderer=renderer))


@pytest.mark.parametrize("renderer", ["mistral", "harmony"])
def test_union_types_are_read_by_other_families(session: Callable[..., Any], other_model: Path, renderer: str) -> None:
    union = {
        **DESCRIBED["function"],
        "parameters": {"type": "object", "properties": {"z": {"type": ["string", "null"]}}},
    }
    bare, wrapped = (
        report_of(
            session(
                [tooled(calls("a12345678"), result("a12345678"), tools=[tool])],
                model=str(other_model),
                renderer=renderer,
            )
        )
        for tool in (union, {"type": "function", "function": union})
    )
    assert bare.tokens == wrapped.tokens and bare.used == 1


@pytest.mark.parametrize("renderer", ["qwen", "qwen3", "hermes"])
def test_union_types_and_bare_schemas_are_read(session: Callable[..., Any], renderer: str) -> None:
    bare = {
        "name": "clock",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": ["string", "null"]}}},
    }
    wrapped = {"type": "function", "function": bare}
    tokens = []
    for tool in (bare, wrapped):
        made = session([tooled(calls("a"), result("a"), tools=[tool])], renderer=renderer)
        tokens.append(report_of(made).tokens)
        assert any("lack the level 'function'" in note for note in made.context.notes) == (tool is bare)
    assert tokens[0] == tokens[1]


# --- conversations ----------------------------------------------------------------------------------------------------


def test_a_conversation_that_begins_with_the_assistant_is_told(session: Callable[..., Any]) -> None:
    system = ("system", "Be brief.")
    notes = report_of(session([talk(ASK, SAY), talk(SAY, ASK, SAY), talk(system, SAY, ASK, SAY)])).notes
    assert any(note.startswith("2 rows (rows.jsonl:2, rows.jsonl:3): begins with the assistant") for note in notes)


@pytest.mark.parametrize(
    "row",
    [
        talk(ASK, ("assistant", " \n")),
        {"instruction": "Add.", "output": "\t"},
        {"question": "2+2?", "answer": " "},
        {"question": "2+2?", "answer": "4", "history": [["1+1?", "\n"]]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "\n"}]},
    ],
)
def test_an_answer_of_blanks_is_refused(session: Callable[..., Any], row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*nothing but blanks"):
        report_of(session([row]))


def test_blanks_that_train_nothing_pass(session: Callable[..., Any]) -> None:
    row = talk(ASK, ("assistant", " "), ASK, SAY)
    row["messages"][1]["train"] = False
    assert report_of(session([row])).used == 1


MARKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}INSIDE{% endgeneration %}OUTSIDE{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A training template, which marks what the assistant says."""
PAIRED = {"prompt": [{"role": "user", "content": "2+2?"}], "chosen": [{"role": "assistant", "content": "4"}],
          "rejected": [{"role": "assistant", "content": "5"}]}  # fmt: skip


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "left out"])
@pytest.mark.parametrize(
    ("method", "row", "words"),
    [
        ("sft", talk(ASK, SAY, ASK, SAY), ["the last answer trains without", "an answer before the last trains"]),
        ("dpo", PAIRED, ["the last answer trains without"]),
    ],
)
def test_answers_that_train_without_their_end_are_told(
    session: Callable[..., Any], tmp_path: Path, marked: bool, method: str, row: dict[str, Any], words: list[str]
) -> None:
    """Of a template whose marks leave the end of an answer out."""
    end = "<|im_end|>"
    template = MARKS.replace("INSIDE", end * marked).replace("OUTSIDE", end * (not marked))
    (tmp_path / "marks.jinja").write_text(template)
    notes = report_of(session([row], method, renderer={"name": "jinja", "template": "marks.jinja"})).notes
    told = [note for note in notes if "rows.jsonl:1" in note and "without the token that ends it" in note]
    assert [any(word in note for note in told) for word in words] == [not marked] * len(words) and len(told) <= len(
        words
    )


def test_segments_that_end_without_an_end_are_told(session: Callable[..., Any]) -> None:
    rows = [
        {"segments": [{"text": "2+2?", "label": False}, {"text": f" 4{end}", "label": True}]}
        for end in ("<|im_end|>", "")
    ]
    (told,) = [note for note in report_of(session(rows)).notes if "last segment" in note]
    assert "(rows.jsonl:2)" in told


# --- what is unusable, and whose word holds --------------------------------------------------------------------------

PAIR = {"prompt": "What is ice?", "chosen": "Cold.", "rejected": "Hot."}


@pytest.mark.parametrize(
    "method", [{"name": "rm"}, {"name": "rm", "unusable": "raise"}, {"name": "dpo", "bad_rows": "raise"}]
)
def test_the_formats_own_word_holds(session: Callable[..., Any], method: dict[str, Any]) -> None:
    rows = [PAIR, {**PAIR, "rejected": "Cold."}]
    settled = {"name": "preference", "unusable": "drop"}
    assert report_of(session(rows, method, format=settled)).dropped == {"chosen and rejected are the same": 1}
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*the same"):
        report_of(session(rows, method))


# --- CSV --------------------------------------------------------------------------------------------------------------


def write_csv(folder: Path, rows: list[dict[str, Any]]) -> str:
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return "rows.csv"


@pytest.mark.parametrize(("yes", "no"), [("true", "false"), ("True", "FALSE"), ("1", "0"), ("1.0", " 0 ")])
def test_labels_of_a_csv_file_are_read(session: Callable[..., Any], tmp_path: Path, yes: str, no: str) -> None:
    rows = [{"prompt": "2+2?", "completion": f"{i}", "label": label} for i, label in enumerate((yes, no))]
    found = session([], "kto", train=write_csv(tmp_path, rows)).job.method.data
    assert [datum.scalars["label"] for datum in found] == [1.0, 0.0]


def test_margins_of_a_csv_file_are_read(session: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{**PAIR, "margin": margin} for margin in ("0.5", "1e1", "")]
    data = session([], "dpo", train=write_csv(tmp_path, rows)).job.method.data
    assert [datum.scalars["margin"] for datum in data][::2] == [0.5, 10.0, 0.0]


def test_scores_of_a_csv_file_are_read(session: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{**PAIR, "score_chosen": "2", "score_rejected": "0.5"}]
    data = session([], "dpo", train=write_csv(tmp_path, rows)).job.method.data
    assert data[0].scalars["margin"] == 1.5


def test_a_label_that_says_nothing_is_shown(session: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "completion": "4", "label": "maybe"}]
    with pytest.raises(DataError, match=r"rows.csv:2: label is text \('maybe'\), not true, false or a number"):
        report_of(session([], "kto", train=write_csv(tmp_path, rows)))


# --- pre-training ----------------------------------------------------------------------------------------------------


def test_excess_length_that_decides_nothing_is_told(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "Once upon a time."}\n')
    for excess, told in (("drop", False), ("truncate", True), ("raise", True)):
        train = {"max_length": 8, "excess_length": excess, "precision": "fp32"}
        made = finetooth.session(recipe(method="pretrain", data={"train": "rows.jsonl"}, train=train))
        report_of(made)
        assert any(f"excess_length: {excess} has no effect" in note for note in made.context.notes) == told


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def five(recipe: Make, tmp_path: Path) -> Path:
    """Five rows, each of three broken in its own way."""
    lines = [
        json.dumps(talk(ASK, SAY)),
        "{no JSON",
        json.dumps({"messages": [{"role": "nobody", "content": "x"}]}),
        json.dumps(talk(ASK, SAY, tools=[{"function": "x"}])),
        json.dumps(talk(ASK, SAY)),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(data={"train": "rows.jsonl", "format": "chat", "renderer": "chatml"})))
    return path


def test_data_check_names_all_broken_rows(ft: Run, five: Path) -> None:
    code, out, err = ft("data", "check", five)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "3 of 5 rows cannot be used" in err
    for row in (2, 3, 4):
        assert f"rows.jsonl:{row}" in err, err


@pytest.mark.parametrize("command", [("data", "check"), ("data", "preview"), ("check",)])
def test_what_fails_says_so_in_json_too(ft: Run, five: Path, command: tuple[str, ...]) -> None:
    code, out, err = ft(*command, five, "--json")
    assert code == 2 and err.startswith("error: ")
    found = json.loads(out)
    if command[-1] != "preview":  # which shows the good rows and the broken ones
        assert found["error"]["exit_code"] == 2 and found["error"]["message"] == err.removeprefix("error: ").strip()


def test_a_wrong_argument_says_so_in_json_too(ft: Run, tmp_path: Path) -> None:
    code, out, _ = ft("check", tmp_path / "none.yaml", "--json")
    assert code == 2 and "none.yaml" in json.loads(out)["error"]["message"]


def test_a_run_says_that_held_out_rows_also_train(ft: Run, recipe: Make, tmp_path: Path) -> None:
    for name, texts in (("rows.jsonl", ("4", "5")), ("held.jsonl", ("5", "6"))):
        (tmp_path / name).write_text("".join(json.dumps(talk(ASK, ("assistant", text))) + "\n" for text in texts))
    data = {"train": "rows.jsonl", "eval": "held.jsonl", "renderer": "chatml"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(data=data)))
    code, out, err = ft("run", tmp_path / "recipe.yaml", "train.max_steps=1")
    assert code == 0, err
    assert "1 row of eval is in train too (held.jsonl:1 = rows.jsonl:2)" in " ".join(out.split())


@pytest.mark.parametrize("why", ["many", "kept nowhere", "streamed"])
def test_a_run_says_that_it_did_not_look_for_them(
    ft: Run, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    for name, texts in (("rows.jsonl", ("4", "5")), ("held.jsonl", ("5", "6"))):
        (tmp_path / name).write_text("".join(json.dumps(talk(ASK, ("assistant", text))) + "\n" for text in texts))
    data = {"train": "rows.jsonl", "eval": "held.jsonl", "renderer": "chatml"}
    method: Any = "sft"
    if why == "many":
        monkeypatch.setattr("finetooth_rows.choices.overlap.COMPARED", 3)
        said = "there are 4 rows, more than 3; ft data check compares them"
    elif why == "kept nowhere":
        monkeypatch.setattr("finetooth_rows.lazy_examples.SMALL_ROWS", 1)
        data["cache"] = "off"
        said = "their tokens are not saved; ft data check compares them"
    else:
        for name in ("rows.jsonl", "held.jsonl"):
            (tmp_path / name).write_text(
                "".join(json.dumps({"text": f"Once upon {i} times."}) + "\n" for i in range(9))
            )
        method = {"name": "pretrain", "streaming": True}
        said = "rows are read while the run trains"
    train = {"batch_size": 2, "precision": "fp32", "max_length": 64, "max_steps": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(data=data, method=method, train=train)))
    code, out, err = ft("run", tmp_path / "recipe.yaml")
    assert code == 0, err
    assert f"note: nobody checked whether rows of eval are in train too: {said}" in " ".join(out.split())
