"""A folder whose tokenizer is mistral-common's file alone, as Mistral publishes its newest models."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from finetooth_hooks import RecipeError
from finetooth_kit import FakeContext
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.loader import TransformersLoader

SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
WORDS = (b"th", b"he", b"the", b" the", b"in", b"ing", "\N{LATIN SMALL LETTER N WITH TILDE}".encode())
TEXTS = ("thing in the  theme", "Ma\N{LATIN SMALL LETTER N WITH TILDE}ana, 12 345!\n\n\tdone", "[INST] said", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocabulary = [bytes([byte]) for byte in range(256)] + list(WORDS)
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "num_vocab_tokens": len(vocabulary), "default_vocab_size": len(vocabulary) + len(SPECIAL),
        "default_num_special_tokens": len(SPECIAL), "version": "v11",
    }  # fmt: skip
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(one).decode(), "token_str": None}
        for i, one in enumerate(vocabulary)
    ]
    special = [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(SPECIAL)]
    file = {"config": config, "vocab": vocab, "special_tokens": special}
    (tmp_path / "tekken.json").write_text(json.dumps(file), encoding="utf-8")
    transformers.MistralConfig(vocab_size=300, bos_token_id=1, eos_token_id=2).save_pretrained(tmp_path)
    return tmp_path


def loader(folder: Path) -> TransformersLoader:
    return TransformersLoader(TransformersOptions(), FakeContext(folder))


def test_tokens_are_those_of_mistral_common(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With offsets, which mistral-common's own class lacks; transformers picks that class where a new version of
    mistral-common is installed, and must not."""
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken", reason="mistral-common is not installed")
    judge = tekken.Tekkenizer.from_file(folder / "tekken.json")
    asked: list[Any] = []
    read = transformers.AutoTokenizer.from_pretrained

    def noted(*given: Any, **named: Any) -> Any:
        asked.append(named["mistral_format"])
        return read(*given, **named)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", noted)
    tokenizer = loader(folder).tokenizer(str(folder))
    assert asked == [False] and (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    for text in TEXTS:
        wanted = judge.encode(text, bos=False, eos=False)
        assert list(tokenizer.encode(text)) == wanted and tokenizer.decode(wanted) == text


def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> Any:
        raise ImportError("MistralConverter requires the mistral-common library but it was not found. Install it.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(RecipeError, match=r"install it: .*install mistral-common"):
        loader(folder).tokenizer(str(folder))
