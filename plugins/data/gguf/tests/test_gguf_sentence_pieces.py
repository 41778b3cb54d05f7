"""SentencePiece-like tokenizers: written and read with the same ids, as a naive merger by scores and the package
`sentencepiece` itself give them."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_gguf import writing
from finetooth_gguf.exporter import PROBES, _begun, _compared
from finetooth_hooks.errors import UserError
from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.tokenizer import build_tokenizer
from finetooth_toolbox.messages.openings import Opening
from finetooth_toolbox.text.tokenizers import FastTokenizer
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

WORDS = ["the", "lamp", "lighthouse", "harbour", "storm", "sea", "kitchen", "village", "wedding", "light", "11", "(a)"]
CORPUS = [" ".join(random.Random(n).choices(WORDS, k=9)) + "." for n in range(300)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = (*PROBES, *CORPUS[:20], "the light", "", "▁", "a" * 30, "sea\n\n\nsea", "<s>the", "the <|end|>  sea")


def trained(shape: str, folder: Path) -> Path:
    """A folder with a tiny tokenizer in one of the shapes that transformers' tokenizers of this kind have."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blanks: Any = normalizers.Replace(" ", "▁")
    if shape == "gemma":
        made.normalizer = blanks
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *BYTES]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False))
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    made = Tokenizer.from_str(json.dumps(state))
    if shape in ("always", "first"):
        made.normalizer = None
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=shape, split=False)
    made.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    made.add_tokens([AddedToken("lamplight", normalized=False)])
    if shape == "gemma":  # whose runs of blanks are tokens that it finds in a text before everything else
        made.add_tokens([AddedToken("▁▁▁", normalized=True)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    whole = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    whole.save_pretrained(folder)
    config = LlamaConfig(vocab_size=len(whole) + 2, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    config.save_pretrained(folder)
    return folder


def file_of(folder: Path, way: str, name: str = "mine") -> Path:
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    writing.write_vocabulary(folder, writing.spelling_of(folder, rows), way, folder / "model.gguf", "f32", name)
    return folder / "model.gguf"


def by_scores(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """Join the neighbours whose token has the highest score, the leftmost of equal ones, until none is left."""
    ids, parts = {token: index for index, token in enumerate(tokens)}, list(text)
    while True:
        found = [(scores[ids[a + b]], -at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not found:
            break
        at = -max(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [n for part in parts for n in ([ids[part]] if part in ids else [ids[BYTES[b]] for b in part.encode()])]


@pytest.mark.parametrize("shape", ["prepend", "gemma"])
def test_a_written_tokenizer_is_read_with_the_same_ids(shape: str, tmp_path: Path) -> None:
    folder = trained(shape, tmp_path)
    read = build_tokenizer(container.read(file_of(folder, "prefixed" if shape == "prepend" else "plain")))
    own = AutoTokenizer.from_pretrained(folder)
    assert ("   " in read.get_vocab()) == (shape == "gemma")
    for text in TEXTS:
        assert read(text)["input_ids"] == own(text)["input_ids"], text
        if not {"<", "▁"} & set(text):
            assert read.decode(read(text, add_special_tokens=False)["input_ids"]) == text
    assert (read.bos_token, read.eos_token, read.unk_token) == ("<s>", "</s>", "<unk>")
    read.save_pretrained(tmp_path / "again")
    LlamaConfig().save_pretrained(tmp_path / "again")  # whose model_type could make AutoTokenizer pick another class
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [again(text)["input_ids"] for text in TEXTS] == [own(text)["input_ids"] for text in TEXTS]


def test_what_is_written_is_what_llama_cpp_joins_by(tmp_path: Path) -> None:
    folder = trained("prepend", tmp_path)
    fields = GGUFReader(file_of(folder, "prefixed")).fields
    own = AutoTokenizer.from_pretrained(folder)
    tokens, scores, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True
    assert [types[own.convert_tokens_to_ids(token)] for token in ("<unk>", "<s>", "<|end|>", "lamplight")] == [
        2,
        3,
        3,
        4,
    ]
    assert {token for token, kind in zip(tokens, types, strict=True) if kind == 6} == set(BYTES)
    assert types[-2:] == [5, 5]
    assert writing.spelling_of(folder, len(tokens) - 3).tokens == tuple(tokens[:-3])
    for text in (*PROBES, *CORPUS):
        expected = own(text, add_special_tokens=False)["input_ids"]
        assert by_scores("▁" + text.replace(" ", "▁"), tokens, scores) == expected, text


@pytest.mark.parametrize(
    ("shape", "way", "said"),
    [
        ("prepend", "prefixed", "4 texts are cut into the same tokens"),
        ("gemma", "plain", "4 texts are cut into the same tokens"),
        ("always", "prefixed", "behind <s>; in llama.cpp a text gets one more if it begins with blanks"),
        ("first", "plain", "behind <s>; in llama.cpp a text gets no blank before it if no special token does"),
    ],
)
def test_the_exporter_says_what_llama_cpp_cuts_otherwise(shape: str, way: str, said: str, tmp_path: Path) -> None:
    folder = trained(shape, tmp_path)
    spelling, own = writing.spelling_of(folder, 384), FastTokenizer(AutoTokenizer.from_pretrained(folder))
    compared = {
        tried: _compared(own, FastTokenizer(build_tokenizer(container.read(file_of(folder, tried)))), spelling)
        for tried in ("prefixed", "plain")
    }
    assert compared[way].endswith(said)
    other = compared["plain" if way == "prefixed" else "prefixed"]
    assert not other


@pytest.mark.parametrize(
    ("chats", "prompt", "adds"), [(True, (5, 6), False), (True, (1, 5), True), (False, (5,), True)]
)
def test_a_file_begins_texts_as_the_runs_conversations_begin(
    chats: bool, prompt: tuple[int, ...], adds: bool, tmp_path: Path
) -> None:
    spelling = writing.spelling_of(trained("prepend", tmp_path), 384)
    assert spelling.adds_bos and spelling.ids["bos"] == 1
    if chats:
        Opening().write(tmp_path)
    source: Any = SimpleNamespace(
        artifact=tmp_path, context=SimpleNamespace(renderer=SimpleNamespace(prompt=lambda messages: prompt))
    )
    assert _begun(source, spelling).adds_bos is adds


def test_a_missing_byte_and_a_token_without_a_merge_are_named(tmp_path: Path) -> None:
    folder = trained("prepend", tmp_path)
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    last = "".join(merges[-1])
    path.write_text(json.dumps({**state, "model": {**state["model"], "merges": merges[:-1]}}), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"never makes its token {last!r} of two others")):
        writing.spelling_of(folder, 384)
    vocabulary["<0xZZ>"] = vocabulary.pop("<0x41>")
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(UserError, match=r"has no token <0x41>, and llama\.cpp needs one for each byte"):
        writing.spelling_of(folder, 384)


def test_only_phi_3_has_its_name(tmp_path: Path) -> None:
    folder = trained("prepend", tmp_path)
    for name, written in (("my-phi3-bot", "my-phi 3-bot"), ("Phi-3", "phi 3"), ("phi-4", "phi-4")):
        assert GGUFReader(file_of(folder, "prefixed", name)).fields["general.name"].contents() == written
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["added_tokens"].append({**state["added_tokens"][-1], "content": "<|endoftext|>", "id": 382})
    for token in state["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    path.write_text(json.dumps(state), encoding="utf-8")
    file = file_of(folder, "prefixed")
    assert GGUFReader(file).fields["general.name"].contents() == "mine (phi-3)"
    read, own = build_tokenizer(container.read(file)), AutoTokenizer.from_pretrained(folder)
    for text in ("<|end|>\n the", "<s>\nthe", "the <|end|>  sea"):
        assert read(text)["input_ids"] == own(text)["input_ids"]
    assert len(own("<|end|>\n the")["input_ids"]) < len(own("<s>\n the")["input_ids"])


def test_a_file_of_sentencepieces_own_vocabulary(writer: Callable[..., Path]) -> None:
    """Its pieces, scores and types as llama.cpp's converter writes them."""
    package = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=360, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    own = package.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = [(own.is_unknown, 2), (own.is_control, 3), (own.is_byte, 6)]
    size = own.get_piece_size()
    vocabulary = {
        "model": "llama",
        "tokens": [own.id_to_piece(n) for n in range(size)],
        "scores": [own.get_score(n) for n in range(size)],
        "types": [next((kind for test, kind in kinds if test(n)), 1) for n in range(size)],
        "unk": own.unk_id(),
        "bos": own.bos_id(),
        "eos": own.eos_id(),
    }
    read = build_tokenizer(container.read(writer("llama", LlamaConfig(vocab_size=size), None, vocabulary=vocabulary)))
    for text in (*PROBES, *CORPUS, "a" * 30, "sea\n\n\nsea"):
        assert read(text)["input_ids"] == [own.bos_id(), *own.encode(text)], text
