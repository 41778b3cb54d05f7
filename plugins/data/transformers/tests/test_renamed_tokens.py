"""A token with a part of its own keeps that part under another spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_hooks.models import TokenChanges
from finetooth_toolbox.text.tokenizers import FastTokenizer
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}


@pytest.fixture
def tokenizer() -> FastTokenizer:
    """Letters, an unknown token, and one that a template puts before every text."""
    made = Tokenizer(models.BPE(vocab=WORDS, merges=[], unk_token="<unk>"))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return FastTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", extra_special_tokens=["</s>"]
        )
    )


@pytest.mark.parametrize("id_", [0, 1, 2])
def test_every_text_has_the_ids_it_had(tokenizer: FastTokenizer, tmp_path: Path, id_: int) -> None:
    changed = tokenizer.changed(TokenChanges(renamed={id_: "<new>"}))
    changed.save(tmp_path)
    for there in (changed.wrapped, AutoTokenizer.from_pretrained(tmp_path)):
        assert [there(text)["input_ids"] for text in ("ab", "a?")] == [[1, 3, 4], [1, 3, 0]]
        assert (there.unk_token_id, there.bos_token_id, there.eos_token_id) == (0, 1, 2)
        assert there.convert_tokens_to_ids("<new>") == id_
        assert there.convert_tokens_to_ids("is not there") == 0  # this asked without end for the unknown token
        assert len(there) == len(WORDS)
    assert (changed.bos_id, changed.eos_id, changed.adds_bos) == (1, 2, True)
    assert tokenizer.wrapped.unk_token == "<unk>"  # the one it was made of is as it was
