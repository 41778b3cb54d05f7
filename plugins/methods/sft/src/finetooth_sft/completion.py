"""Tokens and weights of a raw prompt with its completion."""

from __future__ import annotations

from finetooth_hooks import DataError, PromptCompletion, Rendered
from finetooth_hooks.protocols import Tokenizer


def render_completion(example: PromptCompletion, tokenizer: Tokenizer, *, train_prompt: bool = False) -> Rendered:
    """`[bos] prompt completion eos`; the completion and the end-of-text token weigh 1.

    Prompt and completion are encoded as one text, so the tokens are those of the text; a token that holds characters
    of both does not train. The beginning-of-text token stands first if the tokenizer puts one before every text.

    Args:
        train_prompt: the prompt weighs 1 too.

    Raises:
        DataError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_id is None:
        raise DataError(
            "tokenizer",
            "it has no end-of-text token, so a completion cannot end",
            action="use a chat format (data.format: {name: prompt_completion, style: chat}) or another tokenizer",
        )
    text = example.prompt + example.completion
    tokens, offsets = tokenizer.encode_with_offsets(text)
    begin = 0 if train_prompt else len(example.prompt)
    weights = [1.0 if start >= begin and end > start else 0.0 for start, end in offsets]
    split = next((i for i, (start, _) in enumerate(offsets) if start >= len(example.prompt)), len(tokens))
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        tokens, weights, split = [tokenizer.bos_id, *tokens], [0.0, *weights], split + 1
    return Rendered(
        (*tokens, tokenizer.eos_id),
        (*weights, 1.0 if example.completion else 0.0),
        ((0, split), (split, len(tokens) + 1)),
    )
