"""A tokenizer of one token a byte, and a template's control tokens: small enough to be made anew wherever it is needed,
here and in LLaMA-Factory's own environment, with the same ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_tokenizer(folder: Path, speaks: Mapping[str, Any]) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`.

    Args:
        speaks: `controls`, in the order of their ids from 256 on; `bos` (may be null) and `eos`, of them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(speaks["controls"]))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": speaks["eos"], "pad_token": speaks["eos"]}
    if speaks["bos"]:
        config["bos_token"] = speaks["bos"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
