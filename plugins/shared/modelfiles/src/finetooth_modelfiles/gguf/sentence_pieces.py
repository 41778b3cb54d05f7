"""SentencePiece-like tokenizers: byte-pair merges over characters, blanks as `▁`, bytes for characters without a token.

A file holds a score for each token and no merges: llama.cpp joins the two neighbours whose token has the highest score,
the leftmost of equal ones. Merges and scores say the same where each token that two others could form comes from a
merge, and the score of a token is the place of its first merge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetooth_hooks.errors import UserError
from tokenizers import Tokenizer, decoders, models, normalizers

from finetooth_modelfiles.gguf.special_tokens import NORMAL, UNUSED, USER_DEFINED

BLANK = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
PREFIXES: Mapping[str, bool] = {"prefixed": True, "plain": False}
"""Whether a blank goes before a text and before what follows a special token, by what a splitting is called here."""
STRIPPED = "phi-3"
"""In a model's name, it makes llama.cpp take away blanks behind special tokens other than `KEPT`, as Phi-3's are."""
KEPT = ("<unk>", "<s>", "<|endoftext|>")
NEEDED = (*KEPT, "</s>")
"""Tokens without which llama.cpp cannot read a file of such a name."""


def strips(name: object) -> bool:
    """Whether special tokens of a model of this name take the blanks behind them."""
    return any(part in str(name).lower() for part in (STRIPPED, "phi3"))


def scores_of(tokens: Sequence[str], types: Sequence[int], merges: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """The score of each token.

    Raises:
        UserError: a byte has no token, or llama.cpp would form a token that no merge makes.
    """
    if missing := set(BYTES) - set(tokens):
        raise UserError(
            f"the tokenizer has no token {min(missing)}, and llama.cpp needs one for each byte",
            action="export it with --to safetensors",
        )
    places: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        places.setdefault(left + right, place)
    parts = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    for token in parts - places.keys():
        if any(token[:cut] in parts and token[cut:] in parts for cut in range(1, len(token))):
            raise UserError(
                f"the tokenizer never makes its token {token!r} of two others, and llama.cpp would",
                action="export it with --to safetensors",
            )
    return tuple(-float(places.get(token, len(merges))) for token in tokens)


def build(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], unknown: str | None, *, prefixed: bool
) -> Tokenizer:
    """The tokenizer of a file's vocabulary."""
    ids = {token: index for index, token in enumerate(tokens)}
    parts = {token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER_DEFINED, UNUSED)}
    pairs = [
        (-scores[ids[token]], ids[token[:cut]], ids[token[cut:]])
        for token in parts
        for cut in range(1, len(token))
        if token[:cut] in parts and token[cut:] in parts
    ]
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(pairs)]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend(BLANK)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])
    ends = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return tokenizer
