"""Tokenizers: equal to a naive byte-pair merger written here, whole after a save, and with a pad token of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_gguf import exporter, writing
from finetooth_hooks.errors import RecipeError
from finetooth_kit import draws
from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.container import Container
from finetooth_modelfiles.gguf.special_tokens import special_tokens
from finetooth_modelfiles.gguf.tokenizer import SPLITTINGS, build_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

ENGLISH = (
    "The lighthouse had stood on the point for more than a hundred years, and in all that time its lamp had failed "
    "only twice. Old Mr. Harding, who kept it, said that the first failure came with the great storm of 1887, when the "
    "sea broke the lower windows and put out the fire in the kitchen. Nobody was hurt, but the supply boat could not "
    "land for nine days, and he lived on biscuits and cold tea. The second time was his own fault: he had gone down to "
    "the village for his daughter's wedding and trusted the light to a boy of fourteen, who fell asleep.\n"
)

# the splitting patterns for ASCII text, where letters and digits can be spelled out for Python's re
LETTERS = r"[^\r\nA-Za-z0-9]?[A-Za-z]+"
TAIL = r" ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED, SHORT = r"[^\r\nA-Za-z0-9]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SLASHED = TAIL.replace(r"[\r\n]*", r"[\r\n/]*")
ASCII_SPLITS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+",
    "qwen2": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{LETTERS}|[0-9]|{TAIL}",
    "llama-bpe": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{LETTERS}|[0-9]{{1,3}}|{TAIL}",
    "dbrx": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{LETTERS}|[0-9]{{1,3}}|{TAIL}",
    "tekken": rf"{CASED}[A-Z]*[a-z]+|{CASED}[A-Z]+[a-z]*|[0-9]|{SLASHED}",
    "gpt-4o": rf"{CASED}[A-Z]*[a-z]+{SHORT}|{CASED}[A-Z]+[a-z]*{SHORT}|[0-9]{{1,3}}|{SLASHED}",
}
ASCII_SPLITS |= dict.fromkeys(("lfm2", "falcon-h1"), ASCII_SPLITS["llama-bpe"])
PUNCTUATION = r"[!-/:-@\[-`{-~]"
ASCII_SPLITS["deepseek-v3"] = (
    rf"{PUNCTUATION}[A-Za-z]+|[^\r\nA-Za-z!-/:-@\[-`{{-~]?[A-Za-z]+| ?{PUNCTUATION}+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ASCII_SPLITS |= dict.fromkeys(("glm4", "chatglm-bpe"), ASCII_SPLITS["dbrx"])


def with_metadata(header: Container, **changes: Any) -> Container:
    """The same file, stating other things."""
    merged = {**header.metadata, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    return replace(header, metadata={key: value for key, value in merged.items() if value is not None})


def pieces(text: str, pre: str) -> list[str]:
    """Cut ASCII text as the vocabulary wants it."""
    if pre == "deepseek-v3":  # digits go first, and what is between them is cut by itself
        parts = re.split("([0-9]{1,3})", text)
        return [
            piece for part in parts for piece in ([part] if part.isdigit() else re.findall(ASCII_SPLITS[pre], part))
        ]
    if pre != "smollm":
        return re.findall(ASCII_SPLITS[pre], text)
    cut = [part for part in re.split(r"([0-9])", text) if part]
    return [piece for part in cut for piece in re.findall(ASCII_SPLITS["gpt-2"], part)]


def spell(text: str) -> list[str]:
    """ASCII characters in the byte alphabet: printable ones stand for themselves, others are shifted past 255."""
    shifted = [byte for byte in range(256) if not (33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255)]
    return [chr(256 + shifted.index(byte)) if byte in shifted else chr(byte) for byte in text.encode()]


def naive_bpe(
    piece: str, ranks: Mapping[tuple[str, str], int], vocabulary: Mapping[str, int], whole: bool
) -> list[int]:
    """Merge the best-ranked pair, leftmost first, until none is left."""
    parts = spell(piece)
    if whole and "".join(parts) in vocabulary:
        return [vocabulary["".join(parts)]]
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged: list[str] = []
        index = 0
        while index < len(parts):
            if tuple(parts[index : index + 2]) == best:
                merged.append("".join(best))
                index += 2
            else:
                merged.append(parts[index])
                index += 1
        parts = merged
    return [vocabulary[part] for part in parts]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Container) -> PreTrainedTokenizerFast:
    return build_tokenizer(smollm2)


@pytest.fixture(scope="module")
def tables(smollm2: Container) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    merges = smollm2.metadata["tokenizer.ggml.merges"]
    ranks = {(merge.split(" ")[0], merge.split(" ")[1]): rank for rank, merge in enumerate(merges)}
    return ranks, {token: index for index, token in enumerate(smollm2.metadata["tokenizer.ggml.tokens"])}


@pytest.fixture(scope="module")
def by_pre(smollm2: Container) -> dict[str, PreTrainedTokenizerFast]:
    """SmolLM2's vocabulary under every way of splitting."""
    return {pre: build_tokenizer(with_metadata(smollm2, pre=pre)) for pre in SPLITTINGS}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "wanted"), [("glm4_moe", "glm4"), ("llama", "dbrx")])
def test_of_equal_ways_to_cut_text_a_model_is_written_with_its_own(
    kind: str, wanted: str, by_pre: dict[str, PreTrainedTokenizerFast], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.for_model(kind).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_pre["glm4"].save_pretrained(tmp_path)
    monkeypatch.setattr(exporter, "_spoken", lambda source, head: "")
    context = SimpleNamespace(model=SimpleNamespace(config=config), tokenizer=FastTokenizer(by_pre["glm4"]))
    source: Any = SimpleNamespace(context=context, scratch=tmp_path, run=SimpleNamespace(name="run"))
    spelling = writing.spelling_of(tmp_path, len(by_pre["glm4"]))
    made = exporter.GgufExporter(exporter.GgufOptions())
    assert made._splitting(source, tmp_path, spelling)[0] == wanted


MISSING = "\x04\x06\x13\x14\x16\x1d"  # control characters that SmolLM2's vocabulary lacks

ascii_text = st.text(
    alphabet=st.characters(min_codepoint=9, max_codepoint=126, exclude_characters="\x0b\x0c"), max_size=60
)
words = st.lists(
    st.sampled_from(
        [*ENGLISH.split(" "), "12345", "\n\n", "  ", "I'll", "WE'RE", "x=1;", "\t", "HelloWorld", "JSONfile's", "//\n/"]
    )
).map(" ".join)


@pytest.mark.parametrize("pre", sorted(SPLITTINGS))
@settings(max_examples=draws(20), deadline=None, derandomize=True)
@given(text=ascii_text | words)
def test_ids_equal_a_naive_byte_pair_merger(
    pre: str,
    text: str,
    by_pre: dict[str, PreTrainedTokenizerFast],
    tables: tuple[dict[tuple[str, str], int], dict[str, int]],
) -> None:
    text = re.sub(r"[\x0e-\x1f]", "", text)  # Python's \s holds \x1c-\x1f, Unicode's White_Space does not
    expected = [
        token for piece in pieces(text, pre) for token in naive_bpe(piece, *tables, whole=SPLITTINGS[pre].whole_words)
    ]
    assert by_pre[pre](text, add_special_tokens=False)["input_ids"] == expected


@settings(max_examples=draws(20), deadline=None, derandomize=True)
@given(
    text=st.text(
        alphabet=st.characters(exclude_characters=MISSING, exclude_categories=["Cs"], max_codepoint=0x3FFFF),
        max_size=60,
    )
)
def test_text_decodes_to_itself(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_known_ids_of_the_published_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("Hello world")["input_ids"] == [19556, 905]
    assert tokenizer("<|im_start|>user\n")["input_ids"] == [1, 4093, 198]
    assert len(tokenizer("2024")["input_ids"]) == 4  # digits one by one


def test_the_pad_token_is_not_the_end_token(smollm2: Container, tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")
    assert smollm2.metadata["tokenizer.ggml.padding_token_id"] == tokenizer.eos_token_id  # what the file says
    assert tokenizer.pad_token == "<|endoftext|>"
    assert len(tokenizer) == 49152


def test_the_choice_of_the_pad_token(smollm2: Container) -> None:
    assert special_tokens(with_metadata(smollm2, padding_token_id=7)).pad == 7
    assert special_tokens(with_metadata(smollm2, padding_token_id=None)).pad == 0
    assert special_tokens(with_metadata(smollm2, eos_token_id=0, padding_token_id=0)).pad is None
    assert special_tokens(with_metadata(smollm2, token_type=[1] * 49152)).pad is None
    with pytest.raises(RecipeError, match="names token 49152 as its eos token and has 49152 tokens"):
        special_tokens(with_metadata(smollm2, eos_token_id=49152))


def test_it_is_whole_after_a_save_even_beside_the_models_config(
    tokenizer: PreTrainedTokenizerFast, smollm2_model: PreTrainedModel, tmp_path: Path
) -> None:
    smollm2_model.config.save_pretrained(tmp_path)  # its model_type could make AutoTokenizer pick another class
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in (ENGLISH, "a\n\n  b\tc 3.14159 naïve 中文 🙂", "<|im_start|>user\nhi<|im_end|>\n", ""):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == text
    for role in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "model_max_length", "chat_template"):
        assert getattr(again, role) == getattr(tokenizer, role), role


def test_the_chat_template_is_the_files(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    )


def bits_per_byte(model: PreTrainedModel, ids: list[int], text: str) -> float:
    inputs = torch.tensor([ids])
    with torch.no_grad():
        nats = model(input_ids=inputs, labels=inputs).loss.item() * (len(ids) - 1)
    return float(nats / torch.log(torch.tensor(2.0)).item() / len(text.encode()))


@pytest.mark.slow
def test_english_costs_little_and_a_broken_tokenizer_much(
    tokenizer: PreTrainedTokenizerFast, smollm2_model: PreTrainedModel
) -> None:
    ids = tokenizer(ENGLISH)["input_ids"]
    assert bits_per_byte(smollm2_model, ids, ENGLISH) < 1.8
    # the known fault: every space and newline becomes the end token
    broken = [
        token
        for word in re.findall(r"\S+|\s", ENGLISH)
        for token in ([2] if word.isspace() else tokenizer(word)["input_ids"])
    ]
    assert bits_per_byte(smollm2_model, broken, ENGLISH) > 3


def test_a_start_token_is_added_if_the_file_asks(smollm2: Container) -> None:
    framed = build_tokenizer(with_metadata(smollm2, add_bos_token=True, add_eos_token=True))
    assert framed("Hello world")["input_ids"] == [1, 19556, 905, 2]
    assert framed("Hello world", add_special_tokens=False)["input_ids"] == [19556, 905]


def test_user_defined_tokens_stay_whole_and_are_not_special(smollm2: Container) -> None:
    types = list(smollm2.metadata["tokenizer.ggml.token_type"])
    types[3] = 4  # <repo_name>
    tokenizer = build_tokenizer(with_metadata(smollm2, token_type=types))
    assert tokenizer("a<repo_name>b")["input_ids"][1] == 3
    assert tokenizer.decode([3], skip_special_tokens=True) == "<repo_name>"
    assert tokenizer.decode([4], skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": "llama"}, "holds no score for each token"),
        ({"model": "bert"}, "tokenizer 'bert', which is not supported"),
        ({"pre": "falcon"}, "pre-tokenizer 'falcon', which is not supported"),
        ({"pre": None}, "pre-tokenizer 'None', which is not supported"),
        ({"tokens": None}, "holds no vocabulary"),
        ({"merges": None}, "holds no merges"),
        ({"merges": ["qqqq zzzz"]}, "holds unusable merges"),
        ({"token_type": [1]}, "has 49152 tokens and 1 token types"),
    ],
)
def test_other_tokenizers_are_refused_by_name(changes: dict[str, Any], line: str, smollm2: Container) -> None:
    with pytest.raises(RecipeError, match=line):
        build_tokenizer(with_metadata(smollm2, **changes))


def small_vocabulary(pre: str) -> dict[str, Any]:
    """Nine characters, four digits, and words; "abc" is a token that no merge makes."""
    letters = [*spell("abcdefgh "), *"1234"]
    words = ["ab", "cd", "abcd", "abc", "12", "123"]
    return {
        "tokens": ["<pad>", "<s>", "</s>", *letters, *words],
        "types": [3, 3, 3, *[1] * (len(letters) + len(words))],
        "merges": ["a b", "c d", "ab cd", "1 2", "12 3"],
        "pre": pre,
        "bos": 1,
        "eos": 2,
        "pad": 0,
    }


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("gpt-2", "abcd ab</s>", ["abcd", "Ġ", "ab", "</s>"]),
        ("gpt-2", "abc 1234", ["ab", "c", "Ġ", "123", "4"]),
        ("smollm", "abc 1234", ["ab", "c", "Ġ", "1", "2", "3", "4"]),
        ("qwen2", "abc 1234", ["ab", "c", "Ġ", "1", "2", "3", "4"]),
        ("llama-bpe", "abc 1234", ["abc", "Ġ", "123", "4"]),
        ("dbrx", "abc 1234", ["ab", "c", "Ġ", "123", "4"]),
        ("tekken", "abc 1234", ["abc", "Ġ", "1", "2", "3", "4"]),
        ("gpt-4o", "abc 1234", ["ab", "c", "Ġ", "123", "4"]),
    ],
)
def test_each_splitting_on_a_written_vocabulary(
    pre: str, text: str, tokens: list[str], writer: Callable[..., Path]
) -> None:
    path = writer("llama", LlamaConfig(vocab_size=22), None, vocabulary=small_vocabulary(pre))
    tokenizer = build_tokenizer(container.read(path))
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == tokens
    assert tokenizer.pad_token_id == 0
