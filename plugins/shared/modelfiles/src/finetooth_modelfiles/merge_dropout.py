"""Tokenizers that draw: BPE-dropout leaves out merges at random (Provilkov et al., 2020, arXiv:1910.13267).

The library draws from a state of its own that nobody can seed: the same text would be other tokens each time, in other
data than those a cache keeps, and in prompts too. Unigram tokenizers do not keep such a setting in their files.
"""

from __future__ import annotations

from typing import Any


def without_dropout(tokenizer: Any) -> str:
    """Switch off the BPE-dropout of a transformers tokenizer.

    Returns:
        What was done, for the plan; empty if it has none.
    """
    model = tokenizer.backend_tokenizer.model
    share = getattr(model, "dropout", None)
    if not share:
        return ""
    model.dropout = None
    return (
        f"the tokenizer leaves out {100 * share:g} % of its merges at random (BPE-dropout), which nobody can seed; "
        "this is switched off, so that a text is always the same tokens"
    )
