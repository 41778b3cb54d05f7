"""A pad token for a tokenizer that has none."""

from __future__ import annotations

from typing import Any

CANDIDATES = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|endoftext|>", "<unk>", "[UNK]")
"""Special tokens made for padding, and then some that text does not produce."""


def choose_pad(tokenizer: Any) -> str:
    """Set the pad token of a transformers tokenizer to a special token that is not the end-of-text token.

    Padding with that one would hide real ends from tools that mask by pad id. No token is added: the embedding stays.

    Returns:
        What was chosen, for the plan.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    chosen = next((name for name in CANDIDATES if name in special and name not in taken), None)
    if chosen is not None:
        tokenizer.pad_token = chosen
        return f"the tokenizer has no pad token; {chosen} serves as one"
    tokenizer.pad_token = tokenizer.eos_token
    return (
        f"the tokenizer has no pad token and no other to spare, so its end-of-text token {tokenizer.eos_token} pads; "
        "training masks by position and is not affected"
    )
