"""`ft chat` with what training leaves behind: a run, its adapter, an adapter without its run, a reward model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_chat import command as chat
from finetooth_chat import held_adapters
from safetensors.numpy import load_file, save_file

Run = Callable[..., tuple[int, str, str]]
ASK = ("--prompt", "Who is that?", "--max-tokens", "12", "--temperature", "1", "--seed", "3")
HOW = ("train.precision=fp32", "data.renderer=chatml")


@pytest.fixture
def trained(recipe: Callable[..., dict[str, Any]]) -> Path:
    """A run of two steps that leave a mark."""
    made = recipe(train={"batch_size": 8, "max_steps": 2, "precision": "fp32", "max_length": 256}, trackers=[])
    finetooth.run({**made, "optimizer": {"name": "adamw", "learning_rate": 0.03}})
    return Path(made["output"])


def test_a_run_its_adapter_and_an_adapter_alone_say_the_same(ft: Run, trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained / "artifact" / name, alone)
    answers = [ft("chat", place, *ASK, *HOW) for place in (trained, trained / "artifact", alone)]
    assert [code for code, _, _ in answers] == [0, 0, 0], answers
    said = {out for _, out, _ in answers}
    base = json.loads((alone / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert len(said) == 1 and said != {ft("chat", base, *ASK, *HOW)[1]}
    assert answers[0][2].startswith(f"loading {trained} ...")


def test_an_adapter_that_names_no_base_says_so(ft: Run, trained: Path) -> None:
    alone = trained / "artifact" / "adapter_config.json"
    content = json.loads(alone.read_text())
    shutil.move(trained / "artifact", trained.parent / "alone")
    (trained.parent / "alone" / alone.name).write_text(json.dumps({**content, "base_model_name_or_path": None}))
    code, out, err = ft("chat", trained.parent / "alone", *ASK)
    assert (code, out) == (2, "")
    assert "the adapter does not name the model that it was made for" in err


def test_what_is_shown_as_it_comes_is_the_answer(ft: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ft("chat", trained, *ASK)[1]
    pieces: list[str] = []
    monkeypatch.setattr(chat, "whole", chat.show)  # as on a terminal
    monkeypatch.setattr(chat, "_say", pieces.append)
    code, _, err = ft("chat", trained, *ASK)
    assert code == 0 and "".join(pieces) == whole.removesuffix("\n")
    assert len(pieces) > 1 and "(cut at --max-tokens 12)" in err


def test_a_model_that_gives_scores_is_not_talked_to(
    ft: Run, recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 8)
    finetooth.run(
        recipe(method="rm", data={"train": str(tmp_path / "pairs.jsonl"), "renderer": "chatml"},
               train={"max_steps": 1, "batch_size": 4}, trackers=[])
    )  # fmt: skip
    for place in (tmp_path / "run", tmp_path / "run" / "artifact"):
        code, out, err = ft("chat", place, *ASK)
        assert (code, out) == (2, "")
        assert "is a reward model: it gives scores, not answers" in err


def test_scores_of_a_run_whose_recipe_left_the_method_open(
    ft: Run, recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    made = recipe(train={"max_steps": 1, "batch_size": 4}, trackers=[])
    del made["method"]
    finetooth.run(made)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2+2?", "completion": "4"}\n')
    code, _, err = ft("score", made["output"], tmp_path / "rows.jsonl")
    assert code == 2
    assert "model: it has no scalar head, so it gives no scores" in err


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("runs/mien", "no such run: runs/mien; there is runs/mine (did you mean runs/mine?)"),
        ("runs/zzzzzz", "no such run: runs/zzzzzz; there is runs/mine (name a run, another folder, or a model)"),
    ],
)
def test_a_run_that_is_not_there(
    ft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    for name in ("recipe.yaml", "plan.json"):
        (tmp_path / "runs/mine" / name).touch()
    code, out, err = ft("chat", model, "--prompt", "x")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"error: model: {said}"


@pytest.mark.slow
def test_adapters_of_one_base_are_held_beside_each_other_and_swapped(
    ft: Run, recipe: Callable[..., dict[str, Any]], trained: Path, tmp_path: Path
) -> None:
    """Each says what it says alone, whatever its rank."""
    made = recipe(
        train={"batch_size": 8, "max_steps": 2, "precision": "fp32", "max_length": 256, "seed": 1}, trackers=[],
        adapter={"name": "lora", "rank": 2}, output=str(tmp_path / "other"),
    )  # fmt: skip
    finetooth.run({**made, "optimizer": {"name": "adamw", "learning_rate": 0.05}})
    base = json.loads((trained / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"]
    alone = {place: ft("chat", place, *ASK, *HOW)[1] for place in (trained, tmp_path / "other", base)}
    beside = {place: ft("chat", base, *ASK, *HOW, "--adapter", place) for place in (trained, tmp_path / "other")}
    assert all(code == 0 for code, _, _ in beside.values()), beside
    assert {place: out for place, (_, out, _) in beside.items()} == {
        place: out for place, out in alone.items() if place != base
    }
    assert len(set(alone.values())) == 3
    both = [part for place in (trained, tmp_path / "other") for part in ("--adapter", place)]
    code, out, err = ft("chat", base, *ASK, *HOW, *both, "--compare")
    assert code == 0, err
    wanted = {base: base, trained: str(trained), tmp_path / "other": str(tmp_path / "other")}
    assert out == "".join(f"{name}:\n{alone[place]}\n" for place, name in wanted.items())


def test_an_adapter_that_is_more_than_an_addition_answers_beside_the_others(
    ft: Run, recipe: Callable[..., dict[str, Any]], trained: Path, tmp_path: Path
) -> None:
    """DoRA says what it says alone; no sum can have it."""
    train = {"batch_size": 8, "max_steps": 2, "precision": "fp32", "max_length": 256}
    dora = tmp_path / "dora"
    made = recipe(train=train, trackers=[], adapter={"name": "lora", "dora": True}, output=str(dora))
    finetooth.run({**made, "optimizer": {"name": "adamw", "learning_rate": 0.05}})
    base = json.loads((trained / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"]
    alone = {place: ft("chat", place, *ASK, *HOW)[1] for place in (base, dora, trained)}
    assert len(set(alone.values())) == 3
    code, out, err = ft("chat", base, *ASK, *HOW, "--adapter", dora, "--adapter", trained, "--compare")
    assert code == 0, err
    assert out == "".join(f"{place}:\n{said}\n" for place, said in alone.items())
    code, out, err = ft("chat", base, *ASK, *HOW, "--adapter", f"{trained}+{dora}")
    assert (code, out) == (2, "") and "a sum needs low-rank additions to linear modules only" in err


def test_versions_of_a_registry_are_summed_by_name(
    ft: Run, recipe: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a run and half of its copy are the run."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Who is that?", "completion": "Me."}\n' * 4)
    made = recipe(data={"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml"}, trackers=[],
                  train={"batch_size": 2, "max_steps": 2, "precision": "fp32"})  # fmt: skip
    finetooth.run({**made, "optimizer": {"name": "adamw", "learning_rate": 0.03}})
    trained = Path(made["output"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("FT_REGISTRY_KEY", "ci.pem")
    policy = tmp_path / "registry/policy.yaml"
    for words in (("init", "registry"), ("key", "ci.pem"), ("trust", "ci", "ci.pem.pub")):
        assert ft("registry", *words)[0] == 0
    policy.write_text("channels: {production: {}}")
    for _ in range(2):
        assert ft("registry", "add", trained, "--name", "bot")[0] == 0
    assert ft("registry", "promote", "bot@v0", "--to", "production")[0] == 0
    base = json.loads((trained / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"]
    how = ("chat", base, *ASK, *HOW, "--adapter")
    code, said, err = ft(*how, "registry:bot@production*0.5+registry:bot@v1*0.5")
    assert code == 0 and said == ft("chat", trained, *ASK, *HOW)[1] != ft(*how, "registry:bot@v1*0.01")[1], err
    code, said, err = ft(*how, "registry:bot@production+registry:bot@v7")
    assert (code, said) == (2, "") and "bot has neither a version nor a channel 'v7'" in err


def test_a_run_and_the_one_that_went_on_from_it_answer_side_by_side(
    ft: Run, recipe: Callable[..., dict[str, Any]], trained: Path, tmp_path: Path
) -> None:
    """The first is the base of the second, folded."""
    train = {"batch_size": 8, "max_steps": 2, "precision": "fp32", "max_length": 256}
    made = recipe(model=str(trained), train=train, trackers=[], output=str(tmp_path / "later"))
    del made["data"]["renderer"]
    finetooth.run({**made, "optimizer": {"name": "adamw", "learning_rate": 0.05}})
    how = (*ASK, "train.precision=fp32")
    alone = {place: ft("chat", place, *how)[1] for place in (trained, tmp_path / "later")}
    assert len(set(alone.values())) == 2
    for name in (tmp_path / "later", f"{tmp_path / 'later'}*1"):
        code, out, err = ft("chat", trained, *how, "--adapter", name, "--compare")
        assert code == 0, err
        assert out == f"{trained}:\n{alone[trained]}\n{name}:\n{alone[tmp_path / 'later']}\n"
    base = json.loads((trained / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"]
    code, out, err = ft("chat", base, *ASK, *HOW, "--adapter", tmp_path / "later")
    assert (code, out) == (2, "") and f" was trained over {trained}, but the base given here is {base}" in err, (
        "a base that can be named"
    )


def test_what_was_said_becomes_a_training_row(ft: Run, trained: Path, tmp_path: Path) -> None:
    """The recipe's own reader takes the file."""
    rows = tmp_path / "kept.jsonl"
    tools = tmp_path / "tools.json"
    takes = {"type": "object", "properties": {}}
    weather = {"type": "function", "function": {"name": "weather", "description": "now", "parameters": takes}}
    tools.write_text(json.dumps([weather]))
    answer = ft("chat", trained, *ASK, "--save", rows, "--system", "Be brief.")[1]
    code, _, err = ft("chat", trained, *ASK, "--save", rows, "--tools", tools, "data.renderer=hermes")
    assert code == 0, err
    first, second = map(json.loads, rows.read_text().splitlines())
    assert [one["role"] for one in first["messages"]] == ["system", "user", "assistant"]
    assert first["messages"][2]["content"].strip() == answer.strip() and second["tools"] == [weather]
    base = json.loads((trained / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert ft("check", f"--model={base}", f"--data={rows}", "--method=sft", "data.renderer=hermes", "-q")[0] == 0
    for arguments, said in (
        (("--compare",), "--compare needs --prompt (type /compare TEXT in the conversation)"),
        (("--prompt", "x", "--tools", tmp_path / "none"), "--tools: "),
        (("--prompt", "x", "--tools", rows), "is not JSON"),
    ):
        code, _, err = ft("chat", trained, *arguments)
        assert code == 2 and said in err and "loading" not in err


def lora_delta(folder: Path) -> dict[str, np.ndarray]:
    """scale * B A of each module of an adapter, in float64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {name: x.astype(np.float64) for name, x in load_file(folder / "adapter_model.safetensors").items()}
    scale, tail = config["lora_alpha"] / config["r"], ".lora_A.weight"
    return {
        name.removeprefix("base_model.model.").removesuffix(tail): scale * tensors[name.replace("_A.", "_B.")] @ a
        for name, a in tensors.items()
        if name.endswith(tail)
    }


@pytest.fixture
def second(trained: Path, tmp_path: Path) -> Path:
    """An adapter of the same base, made elsewhere: other numbers, and half of the modules."""
    folder = tmp_path / "a+b"  # a name with a plus in it
    folder.mkdir()
    shutil.copy(trained / "artifact" / "adapter_config.json", folder)
    drawn, tensors = np.random.default_rng(2), load_file(trained / "artifact" / "adapter_model.safetensors")
    kept = {n: drawn.normal(0, 0.3, x.shape).astype(np.float32) for n, x in tensors.items() if "layers.0" in n}
    save_file(kept, folder / "adapter_model.safetensors")
    return folder


def test_a_stack_of_adapters_is_the_base_with_the_weighted_sum_of_what_they_add(
    ft: Run, trained: Path, second: Path, tmp_path: Path
) -> None:
    """Held against a whole model whose weights were summed in float64."""
    base = Path(json.loads((trained / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"])
    summed = tmp_path / "summed"
    shutil.copytree(base, summed)
    weights = {name: x.astype(np.float64) for name, x in load_file(base / "model.safetensors").items()}
    for folder, weight in ((trained / "artifact", 1.0), (second, -0.5)):
        for module, delta in lora_delta(folder).items():
            weights[f"{module}.weight"] += weight * delta
    save_file({n: x.astype(np.float32) for n, x in weights.items()}, summed / "model.safetensors", {"format": "pt"})
    wanted = ft("chat", summed, *ASK, *HOW)[1]
    code, said, err = ft("chat", base, *ASK, *HOW, "--adapter", f"{trained}+{second}*-0.5")
    assert code == 0, err
    others = {ft("chat", base, *ASK, *HOW, "--adapter", one)[1] for one in (trained, second, f"{trained}+{second}")}
    assert said == wanted and said not in others


def test_a_stack_that_cannot_be_is_refused(ft: Run, trained: Path, second: Path, tmp_path: Path) -> None:
    base = json.loads((trained / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"]
    other = tmp_path / "other"
    shutil.copytree(trained / "artifact", other)
    made = json.loads((other / "manifest.json").read_text())
    made |= {"base": {"model.safetensors": "0" * 64}, "model": "another-base"}
    (other / "manifest.json").write_text(json.dumps(made))
    config = json.loads((second / "adapter_config.json").read_text()) | {"base_model_name_or_path": "acme/strange"}
    for name, said in (
        (f"{trained}+nobody", "+nobody: no adapter has the name 'nobody'"),
        (f"{trained}+{second}*0", f"the weight '0' of {second} must be a number other than 0"),
        (f"{trained}+{trained}", f"it names {trained} twice"),
        (f"{trained}+{other}", f"--adapter {other} was trained over "),
        (f"{trained}+{second}", f"--adapter {second} was trained over acme/strange, but the base given here is {base}"),
    ):
        (second / "adapter_config.json").write_text(json.dumps(config))
        code, out, err = ft("chat", base, *ASK, *HOW, "--adapter", name)
        last = err.splitlines()[-1]
        assert (code, out) == (2, "") and said in last, err


def test_what_cannot_be_held_is_refused(ft: Run, trained: Path, tmp_path: Path) -> None:
    code, out, err = ft("chat", trained, *ASK, "--adapter", tmp_path / "nothing")
    assert (code, out) == (2, "") and "is not a readable adapter" in err


def test_words_swap_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    talking: Any = SimpleNamespace(adapters={"a": 1, "b": 2}, adapter="a")
    held_adapters.swap("b", talking)
    assert talking.adapter == "b" and "* b" in capsys.readouterr().err
    held_adapters.swap("c", talking)
    assert talking.adapter == "b" and "no adapter has the name c" in capsys.readouterr().err
    held_adapters.swap("none", talking)
    assert talking.adapter == "" and "* none" in capsys.readouterr().err


def test_words_compare_and_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from finetooth_chat.conversation import Answer
    from finetooth_hooks import Message

    talking: Any = SimpleNamespace(
        side_by_side=lambda text: {"": Answer(f"base on {text}", "stop"), "a": Answer("a", "stop")},
        messages=[Message("user", "Hi"), Message("assistant", "Hello")], tools=(), takes_turns=True,
    )  # fmt: skip
    chat._apart("/compare what?", talking)
    assert capsys.readouterr().out == "the model itself:\nbase on what?\n\na:\na\n\n"
    chat._apart(f"/save {tmp_path / 'rows.jsonl'}", talking)
    assert "(2 messages added to " in capsys.readouterr().err
    assert json.loads((tmp_path / "rows.jsonl").read_text())["messages"][1] == {"role": "assistant", "content": "Hello"}
    turns = (("user", "Hm?"), ("assistant", " \n"), ("user", "What is it?"), ("assistant", ""), ("user", "So?"))
    talking.messages += [Message(role, text) for role, text in turns] + [Message("assistant", "", reasoning="Why?")]
    chat._apart(f"/save {tmp_path / 'more.jsonl'}", talking)
    assert "(4 messages added to" in (told := capsys.readouterr().err) and "2 blank answers left out" in told
    (row,) = map(json.loads, (tmp_path / "more.jsonl").read_text().splitlines())
    assert [one["content"] for one in row["messages"]] == ["Hi", "Hello", "So?", ""]
    talking.messages = talking.messages[2:4]
    chat._apart(f"/save {tmp_path / 'none.jsonl'}", talking)
    assert "nothing added" in capsys.readouterr().err and not (tmp_path / "none.jsonl").exists()
    chat._apart("/save", talking)
    talking.messages = [Message("user", "Hi"), Message("assistant", "Hello")]
    chat._apart(f"/save {tmp_path}", talking)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "error: /save needs a file (/help says how)" and "cannot be written" in told[1]


TEXT = ("--prompt", "Once upon a", "--max-tokens", "12")


@pytest.fixture
def base_model(tiny_model: Path, tmp_path: Path) -> Path:
    """As base models are: without a chat template."""
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    return folder


def continued(folder: Path, text: str, tokens: int) -> str:
    """What transformers alone continues the text with, the likeliest token each time."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    written = model.generate(asked, max_new_tokens=tokens, do_sample=False)[0, asked.shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True))


def test_a_model_without_a_chat_template_continues_a_text(ft: Run, base_model: Path) -> None:
    code, out, err = ft("chat", base_model, *TEXT, "train.precision=fp32")
    assert code == 0 and "no chat template: it continues what you type" in err, err
    assert out.strip() == continued(base_model, "Once upon a", 12).strip()
    code, _, err = ft("chat", base_model, *TEXT, "--system", "Be brief.")
    assert code == 2 and "the tokenizer has no chat template" in err


def test_a_model_with_a_template_continues_a_text_if_it_shall(ft: Run, tiny_model: Path) -> None:
    code, out, _ = ft("chat", tiny_model, *TEXT, "--text", "train.precision=fp32")
    assert code == 0 and out.strip() == continued(tiny_model, "Once upon a", 12).strip()
    assert out != ft("chat", tiny_model, *TEXT, "train.precision=fp32")[1]
    code, _, err = ft("chat", tiny_model, *TEXT, "--text", "--save", "rows.jsonl")
    assert code == 2 and "--save cannot be used with --text" in err


def test_a_text_grows_by_what_is_typed(ft: Run, base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["ab", "/save rows.jsonl", "cd ", "/quit"])
    monkeypatch.setattr("click.prompt", lambda *a, **k: next(said))
    code, out, err = ft("chat", base_model, "--max-tokens", "8", "train.precision=fp32")
    first = continued(base_model, "ab", 8)
    assert continued(base_model, f"ab{first}cd ", 8) != continued(base_model, f"ab{first}cd", 8)
    assert code == 0 and "/save: with --text the model continues one text, which has no turns" in err, err
    assert out.split("\n")[1].strip() == continued(base_model, f"ab{first}cd ", 8).strip()
