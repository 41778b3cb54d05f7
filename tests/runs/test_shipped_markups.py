"""What is shipped, asked by strangers: plain transformers and readers of GGUF files, over a base of another markup.

Truth: the run's own renderer and stop ids. Nothing here uses them to ask what was shipped.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_chatml.hermes import Hermes
from finetooth_core.plugins import builders
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_kit import FakeContext
from finetooth_kit.shared_data import shared
from finetooth_kit.templates import CLOCK, template_tokenizer
from finetooth_saving.learned_templates import template_of
from finetooth_toolbox.messages.chat_templates import shaped
from finetooth_toolbox.messages.openings import Opening
from finetooth_toolbox.messages.written_templates import CALLING, WITH_TOOLS
from jinja2 import TemplateError

__all__ = ["shared"]

PRICE = {"type": "function", "function": {
    "name": "price", "description": "What it \"costs\".", "parameters": {"type": "object", "properties": {
        "thing": {"type": "string", "description": "Its name."}}, "required": ["thing"]}}}  # fmt: skip
QUESTIONS = [f"Is {number} a number?" for number in range(16)]
NAME = "You are Lumi, the assistant of the shop Lumo."
UNSAID = ("cohere2",)
"""Renderers whose markup depends on what comes later, so that no template is learned."""
OF_THEIR_OWN = (
    "deepseek_r1", "deepseek_v3", "deepseek_v3_2", "deepseek_v4", "gemma4", "harmony", "nemotron3", "qwen3_coder",
)  # fmt: skip
"""Renderers whose tools no learning finds: what is learned refuses tools, and never leaves them out."""
UNESCAPED = ("v3", "v3-tekken")
"""Versions of Mistral's markup in which a tool's description is written as it is, quotes too."""
VARIANTS = {
    "kimi_k2": [{"version": "thinking"}], "lfm2": [{"version": "2.5"}], "llama3": [{"dated": True}],
    "mistral": [{"version": name} for name in ("v3-tekken", "small-3.2", "v13")],
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: texts end with another token than ChatML's, and there is no chat template."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "eos_token": "<|endoftext|>"}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.7, "do_sample": true}')
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has learned one answer and its end."""
    folder = tmp_path_factory.mktemp("shipped")
    rows = [
        {
            "messages": [
                {"role": "system", "content": NAME},
                {"role": "user", "content": question},
                {"role": "assistant", "content": "Yes it is"},
            ]
        }
        for question in QUESTIONS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = finetooth.run(
        {
            "model": str(base),
            "data": {"train": str(folder / "rows.jsonl"), "renderer": "chatml"},
            "adapter": {"name": "lora", "rank": 8},
            "optimizer": {"name": "adamw", "learning_rate": 2e-2},
            "schedule": "constant",
            "train": {"max_steps": 30, "batch_size": 8, "precision": "fp32"},
            "trackers": [],
            "output": str(folder / "run"),
        }
    )
    assert outcome.exit_code == 0
    return folder / "run"


def plainly(model: Any, folder: Path, **how: Any) -> str:
    """What a stranger gets who knows the folder alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTIONS[3]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=24, do_sample=False, **how)[0][asked["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer))


def test_transformers_and_peft_ask_and_end_as_the_run_does(run: Path, base: Path, ft: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    code, said, err = ft("chat", run, "--system", NAME, "--prompt", QUESTIONS[3], "--max-tokens", "24")
    assert (code, said.strip()) == (0, "Yes it is"), err
    for words in (
        ("export", run, "--to", "safetensors", "precision=fp32", "--unmeasured", "--output", tmp_path / "whole"),
        ("export", run, "--to", "mlx", "precision=fp32", "--unmeasured", "--output", tmp_path / "mlx"),
        ("export", run, "--to", "vllm-lora", "--output", tmp_path / "lora"),
        ("merge", run, "--output", tmp_path / "merged"),
    ):
        code, said, err = ft(*words)
        assert code == 0, err
        assert words[0] == "merge" or words[3] == "vllm-lora" or "7 conversations begin and end" in said
    for name in ("whole", "mlx", "merged"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert plainly(model, tmp_path / name) == "Yes it is<|im_end|>"
        assert model.generation_config.temperature == 0.7, "what else the base says of sampling stays"
    for folder in (run / "artifact", tmp_path / "lora"):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
        assert plainly(model, folder, eos_token_id=ends) == "Yes it is<|im_end|>"


def test_a_gguf_file_says_by_itself_how_it_is_asked_and_ended(run: Path, ft: Any, tmp_path: Path) -> None:
    from gguf import GGUFReader

    code, said, err = ft("export", run, "--to", "ollama", "stored=f32", "--unmeasured", "--output", tmp_path / "out")
    assert code == 0 and "7 conversations begin and end" in said, err
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    tokens, template = fields["tokenizer.ggml.tokens"], fields["tokenizer.chat_template"].contents()
    ends = [fields[f"tokenizer.ggml.{role}_token_id"].contents() for role in ("eos", "eot", "eom")]
    assert [tokens.contents(index) for index in ends] == ["<|im_end|>", "<|im_end|>", "<|endoftext|>"]
    assert NAME in template and "<|im_start|>" in template


def test_rows_without_messages_keep_the_end_of_text(base: Path, tmp_path: Path) -> None:
    """They train it; and a run of them alone leaves everything as the base has it."""
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(talk) + "\n")
    (tmp_path / "text.jsonl").write_text('{"prompt": "Once upon", "completion": " a time"}\n')
    text = {"name": "jsonl", "path": str(tmp_path / "text.jsonl")}
    text["format"] = {"name": "prompt_completion", "style": "raw"}
    for name, train in (("both", [str(tmp_path / "talk.jsonl"), text]), ("text", [text])):
        made = {
            "model": str(base),
            "data": {"train": train, "renderer": "chatml"},
            "train": {"max_steps": 1, "precision": "fp32"},
            "trackers": [],
            "output": str(tmp_path / name),
        }
        assert finetooth.run(made).exit_code == 0
        artifact = tmp_path / name / "artifact"
        assert json.loads((artifact / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
        assert (artifact / "chat_template.jinja").is_file() == (name == "both")
        assert (artifact / "generation_config.json").is_file() == (name == "both")


def renderers() -> list[Any]:
    every = list(finetooth.session({"model": "nothing"}).plugins.catalog.all("renderer"))
    ways = [(one, way) for one in every for way in ({}, *VARIANTS.get(one.entry.name, ()))]
    return [pytest.param(*one, id="-".join([one[0].entry.name, *map(str, one[1].values())])) for one in ways]


def built(registered: Any, way: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """A renderer over a tokenizer of bytes without a template."""
    special = ["<|endoftext|>", "<bos>"]
    while True:
        tokenizer = template_tokenizer(None, special, eos="<|endoftext|>", bos="<bos>")
        context = FakeContext(folder, tokenizer=tokenizer)
        try:
            return builders.built(registered, builders.options_model(registered.entry)(**way), context), tokenizer
        except RecipeError as error:
            special.append(re.search(r"has no (\S+), so", str(error))[1])  # type: ignore[index]


def by_transformers(
    tokenizer: Any, template: str, talk: Any, tools: Any = None, *, ask: bool = True, parts: bool = False
) -> tuple[int, ...]:
    """Tokens as transformers makes them of a template, with contents as lists of parts where `parts` says so."""
    tokenizer.wrapped.chat_template = template
    said = [shaped(message) for message in talk]
    if parts:
        for message in said:
            content = str(message["content"])
            message["content"] = [{"type": "text", "text": text} for text in (content[:2], content[2:])]
    text = tokenizer.wrapped.apply_chat_template(said, tools=tools, tokenize=False, add_generation_prompt=ask)
    return tuple(tokenizer.wrapped(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(("registered", "way"), renderers())
def test_a_template_is_learned_for_every_renderer(registered: Any, way: dict[str, Any], tmp_path: Path) -> None:
    """Compared in another reader of templates: transformers'."""
    name = registered.entry.name
    if name == "jinja":
        pytest.skip("it renders by a template")
    renderer, tokenizer = built(registered, way, tmp_path)
    opening = Opening(system="You are 'Lumi'\n\\of {{ x }}.")
    talk = [Message("user", " Why?\n"), Message("assistant", "So.\n"), Message("user", "2 < 3 & \t4"),
            Message("assistant", " Ü"), Message("user", "<b>")]  # fmt: skip
    for begun in (Opening(), opening):
        template = template_of(renderer, tokenizer, begun)
        assert (template is None) == (name in UNSAID)
        if template is None:
            continue
        for parts in (False, True):
            said = by_transformers(tokenizer, template, talk, parts=parts)
            assert said == tuple(renderer.prompt(begun.before(talk)))
        for whole in (talk[:1], talk[:2], talk[:3], talk[:4], talk):  # llama.cpp tries such before it takes a template
            said = by_transformers(tokenizer, template, whole, ask=False)
            assert said == tuple(renderer.render(Conversation(tuple(begun.before(whole)))).tokens)
        try:
            renderer.prompt(begun.before(talk), (CLOCK,))
        except DataError:  # what is learned has no tools either, and never leaves them out
            assert name not in OF_THEIR_OWN
            refuses = True
        else:
            refuses = name in OF_THEIR_OWN
        if refuses:
            with pytest.raises(TemplateError, match="without tools"):
                by_transformers(tokenizer, template, talk, [CLOCK])
            with pytest.raises(TemplateError, match=r"can stand here|without calls"):
                by_transformers(tokenizer, template, CALLING[0])
            continue
        price = PRICE
        if name == "mistral" and way.get("version", "v3") in UNESCAPED:
            with pytest.raises(TemplateError, match="no quotes can stand"):
                by_transformers(tokenizer, template, talk, [PRICE])
            price = json.loads(json.dumps(PRICE).replace('\\"', ""))
        compared = 0
        for called in (talk, *WITH_TOOLS, *CALLING):
            for tools in ([CLOCK], [CLOCK, price]):
                try:
                    asked = renderer.prompt(begun.before(called), tools)
                except DataError:
                    continue  # text beside a call, an identifier of another form
                assert by_transformers(tokenizer, template, called, tools) == tuple(asked)
                compared += 1
        assert compared >= 8


def test_a_template_of_the_base_that_leaves_tools_out_is_not_shipped(shared: Path, tmp_path: Path) -> None:
    """SmolLM2's own says what `hermes` says, but for tools, which it leaves out without a word."""
    own = (shared / "templates/chatml.jinja").read_text(encoding="utf-8")
    tokenizer = template_tokenizer(own, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    renderer = Hermes(tokenizer)
    assert template_of(renderer, tokenizer) == renderer.template
    del renderer.template
    learned = template_of(renderer, tokenizer)
    assert learned not in (None, own) and "it was trained without tools" in str(learned)


def test_a_jinja_renderer_ships_its_own_template_with_its_arguments(base: Path, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] ~ (' please' if polite and m['role'] == 'user') }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "own.jinja").write_text(template)
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    renderer = {"name": "jinja", "template": str(tmp_path / "own.jinja"), "arguments": {"polite": True}}
    made = {
        "model": str(base),
        "data": {"train": str(tmp_path / "rows.jsonl"), "renderer": renderer},
        "train": {"max_steps": 1, "precision": "fp32"},
        "trackers": [],
        "output": str(tmp_path / "run"),
    }
    assert finetooth.run(made).exit_code == 0
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "artifact")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<|im_start|>user please\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template in (tmp_path / "run" / "artifact" / "chat_template.jinja").read_text()


def test_what_the_rows_begin_with_is_the_default_and_is_said(run: Path, ft: Any, tmp_path: Path) -> None:
    asked, named = ("--prompt", QUESTIONS[3], "--max-tokens", "24"), ("--system", NAME)
    code, said, err = ft("chat", run, *asked, "--save", tmp_path / "kept.jsonl")
    assert code == 0 and said == ft("chat", run, *asked, *named)[1]
    assert f'begins with system message "{NAME}", as 16 of 16 training rows do; --system' in err
    assert json.loads((tmp_path / "kept.jsonl").read_text())["messages"][0] == {"role": "system", "content": NAME}
    code, _, err = ft("chat", run, *asked, "--system", "You are Hob.", "--save", tmp_path / "own.jsonl")
    assert json.loads((tmp_path / "own.jsonl").read_text())["messages"][0]["content"] == "You are Hob."
    code, _, err = ft("export", run, "--to", "ollama", "stored=f32", "--unmeasured", "--output", tmp_path / "ollama")
    assert code == 0 and f'SYSTEM """{NAME}"""' in (tmp_path / "ollama" / "Modelfile").read_text(), err


def test_services_begin_as_the_rows_do(run: Path) -> None:
    """The names of a server: a run, and an adapter over its base."""
    from types import SimpleNamespace

    from finetooth_core.cli.start_options import StartOptions
    from finetooth_core.cli.state import State
    from finetooth_mcp.arguments import Prompt
    from finetooth_mcp.rows import Readers
    from finetooth_openai.asking import _prompts
    from finetooth_openai.requests import ChatRequest
    from finetooth_openai.served import Models

    state, base = State(StartOptions()), json.loads((run / "artifact" / "manifest.json").read_text())["model"]
    served = {"mine": {"model": str(run)}, "base": {"model": base, "data": {"renderer": "chatml"}}}
    service = SimpleNamespace(context=state, served=served, adapters={str(run): "base"}, checkpoints=lambda caller: [])
    models = {one.name: one for one in Models(service).all(None)}  # type: ignore[arg-type]
    renderer = models["mine"].context.renderer
    user, lumi, hob = Message("user", "Hi"), Message("system", NAME), Message("system", "You are Hob.")
    for name, given, wanted in (
        ("mine", [user], [lumi, user]),
        (str(run), [user], [lumi, user]),
        ("base", [user], [user]),
        ("mine", [hob, user], [hob, user]),
    ):
        plain = [{"role": one.role, "content": one.content} for one in given]
        (found,) = _prompts(models[name], ChatRequest(model=name, messages=plain))
        assert tuple(found) == tuple(renderer.prompt(wanted))
    reader = Readers(service).of({"base": "mine", "recipe": {}})  # type: ignore[arg-type]
    found = reader.prompt(Prompt(messages=[{"role": "user", "content": "Hi"}]), "prompts[0]")
    assert tuple(found) == tuple(renderer.prompt([lumi, user]))


def test_it_can_be_turned_off(base: Path, tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "system", "content": NAME},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
        ]
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = {"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml", "opening": "off"}
    made = {"model": str(base), "data": data, "train": {"max_steps": 1, "precision": "fp32"}, "trackers": []}
    assert finetooth.run({**made, "output": str(tmp_path / "run")}).exit_code == 0
    artifact = tmp_path / "run" / "artifact"
    assert NAME not in (artifact / "chat_template.jinja").read_text() + (artifact / "opening.json").read_text()
