"""What a run leaves, loaded by strangers: plain transformers, plain peft, and a reader of GGUF files that is not ours.

Over tiny models of seven families and in three markups that none of the bases has: strangers ask by the chat template
in the folder and end by the ids in it, and give the run's greedy answers, token by token, up to the same end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import finetooth
import pytest
import torch
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import Message, Sampling

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 5,  # transformers makes its row of the embedding zero, so it must not be the end of text
    "initializer_range": 0.2,  # of transformers' own 0.02, no answer is learned in a few steps
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 128, "tie_word_embeddings": True},  # transformers reads no other size from a GGUF file
    "mistral": {"head_dim": 16},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256},  # transformers reads no other scale from a GGUF file
    "phi3": {},
    "glm4": {},
    "gemma3_text": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 16},
}
UNREAD = ("glm4",)
"""Families whose GGUF files llama.cpp reads and transformers does not."""
PIECES = ("gemma3_text",)
"""Families whose tokenizer is SentencePiece-like and puts a beginning-of-text token before what is encoded with special
tokens; the others' is SmolLM2's, of byte-level BPE."""
MARKUPS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"],
    "vicuna": [],
}
WORDS = ["red", "green", "blue", "white", "black", "brown", "grey", "pink", "gold", "silver"]
QUESTIONS = [f"What colour is number {n}?" for n in range(len(WORDS))]
LONGEST = 12
GRID = [(family, markup) for family in FAMILIES for markup in MARKUPS]
QUICK = [("llama", "llama3"), ("qwen3", "vicuna"), ("gemma2", "chatml")]
each_cell = pytest.mark.parametrize(
    ("family", "markup"),
    [pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow], id="-".join(cell)) for cell in GRID],
)


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A run that has learned ten answers and where they end, made once for each cell."""
    place = tmp_path_factory.mktemp("strangers")
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"It is {word}."}]}
        for asked, word in zip(QUESTIONS, WORDS, strict=True)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(family: str, markup: str) -> Path:
        run = place / f"{family}-{markup}"
        if not run.exists():
            tokenizer = pieces_in(place / "pieces") if family in PIECES else tiny_llama
            base = base_of(family, tokenizer, place / family)
            finetooth.run(
                {
                    "model": str(base),
                    "data": {"train": str(place / "rows.jsonl"), "renderer": markup},
                    "adapter": {"name": "lora", "rank": 8},
                    "optimizer": {"name": "adamw", "learning_rate": 1e-2},
                    "schedule": "constant",
                    "train": {"max_steps": 60, "batch_size": 10, "precision": "fp32"},
                    "evaluate": {"evaluators": []},
                    "trackers": [],
                    "output": str(run),
                }
            )
        return run

    return make


def base_of(family: str, tokenizer: Path, folder: Path) -> Path:
    """A base model with the tokens of all markups and no chat template; its texts end with <|endoftext|>."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not folder.exists():
        made = AutoTokenizer.from_pretrained(tokenizer, eos_token="<|endoftext|>")
        made.add_special_tokens({"additional_special_tokens": [*MARKUPS["chatml"], *MARKUPS["llama3"]]})
        made.chat_template = None
        made.save_pretrained(folder)
        config = AutoConfig.for_model(family, vocab_size=len(made), **SIZES, **FAMILIES[family])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def pieces_in(folder: Path) -> Path:
    """A tokenizer as Gemma's: merges over characters, blanks as `▁`, a token for each byte, and <s> before a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    kept = ["<|endoftext|>", "<s>", "<unk>"]
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    learned = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*kept, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    made.train_from_iterator([*QUESTIONS, *(f"It is {word}." for word in WORDS)], learned)
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in kept]
    made = Tokenizer.from_str(json.dumps(state))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>", pad_token="<unk>"
    ).save_pretrained(folder)
    return folder


def sampled_by(run: Path) -> tuple[list[Any], list[Any]]:
    """The run's own prompts, and its greedy answer to each."""
    opened = State(StartOptions()).open(str(run))
    prompts = [opened.context.renderer.prompt([Message("user", question)]) for question in QUESTIONS]
    sampled = opened.engine.generate(prompts, Sampling(max_tokens=LONGEST, temperature=0.0))
    assert sum(one.stop == "stop" for (one,) in sampled) >= 8, "it has not learned where answers end"
    if not run.name.endswith(
        "llama3"
    ):  # this tokenizer joins the line feeds that end such a prompt, as no row has them
        assert len({one.text for (one,) in sampled}) >= 4, "it has not learned the answers"
    return prompts, [one for (one,) in sampled]


def answers_of(run: Path) -> list[list[int]]:
    """The run's own greedy answers, each with the token that ended it."""
    return [list(answer.tokens) for answer in sampled_by(run)[1]]


def plain_answers(model: Any, tokenizer: Any, ends: Sequence[int] | int | None = None) -> list[list[int]]:
    """What a stranger gets who asks by the tokenizer's template."""
    answers = []
    for question in QUESTIONS:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        own = {} if ends is None else {"eos_token_id": ends}
        drawn = model.generate(**asked, max_new_tokens=LONGEST, do_sample=False, **own)[0]
        answers.append(drawn[asked["input_ids"].shape[1] :].tolist())
    return answers


@each_cell
def test_transformers_and_peft_give_the_runs_answers(
    trained: Callable[[str, str], Path], ft: Any, tmp_path: Path, family: str, markup: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    run = trained(family, markup)
    wanted, artifact = answers_of(run), run / "artifact"
    code, _, err = ft(
        "export", run, "--to", "safetensors", "precision=fp32", "--unmeasured", "--output", tmp_path / "a"
    )
    assert code == 0, err
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert plain_answers(whole, AutoTokenizer.from_pretrained(tmp_path / "a")) == wanted
    base = AutoModelForCausalLM.from_pretrained(run.parent / family, dtype=torch.float32)
    ends = GenerationConfig.from_pretrained(artifact).eos_token_id
    adapted = PeftModel.from_pretrained(base, str(artifact))
    assert plain_answers(adapted, AutoTokenizer.from_pretrained(artifact), ends) == wanted


@pytest.mark.parametrize(
    ("family", "markup"),
    [
        pytest.param(family, markup, marks=[] if (family, markup) in QUICK else [pytest.mark.slow])
        for family in FAMILIES
        for markup in MARKUPS
    ],
)
def test_readers_of_gguf_files_give_the_runs_answers(
    trained: Callable[[str, str], Path], ft: Any, tmp_path: Path, family: str, markup: str
) -> None:
    """The file alone: template, tokens and ends by the gguf package's reader, numbers by transformers' loader."""
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = trained(family, markup)
    words = ("export", run, "--to", "gguf", "stored=f32", "--unmeasured", "--output", tmp_path / "out")
    code, _, err = ft(*words)
    assert code == 0, err
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    ends = [fields[f"tokenizer.ggml.{role}_token_id"].contents() for role in ("eos", "eot", "eom")
            if f"tokenizer.ggml.{role}_token_id" in fields]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(run.parent / family)
    spelled = fields["tokenizer.ggml.tokens"]
    assert [spelled.contents(n) for n in range(len(tokenizer))] == tokenizer.convert_ids_to_tokens(
        range(len(tokenizer))
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"].contents()
    if family in UNREAD:
        return
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    assert plain_answers(model, tokenizer, ends) == answers_of(run)


@pytest.mark.slow
@pytest.mark.parametrize("markup", MARKUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_gives_the_runs_answers(
    trained: Callable[[str, str], Path], ft: Any, ask_llama_cpp: Any, tmp_path: Path, family: str, markup: str
) -> None:
    """Its server, asked as chat windows ask: it renders by the template in the file and ends by the ids in it."""
    run = trained(family, markup)
    code, _, err = ft("export", run, "--to", "gguf", "stored=f32", "--unmeasured", "--output", tmp_path / "out")
    assert code == 0, err
    greedy = {"temperature": 0, "top_k": 1, "max_tokens": LONGEST}
    asked = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": question}], **greedy})
        for question in QUESTIONS
    ]
    prompts, wanted = sampled_by(run)
    answers = ask_llama_cpp(tmp_path / "out" / "model.gguf", asked)
    for prompt, own, answer in zip(prompts, wanted, answers, strict=True):
        (choice,) = answer["choices"]
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert answer["usage"]["completion_tokens"] == len(own.tokens)
        assert (choice["message"]["content"], choice["finish_reason"]) == (own.text, own.stop)
