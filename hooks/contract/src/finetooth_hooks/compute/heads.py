"""The scalar head: one number for a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScalarHead:
    """A linear map from a position's last hidden state to one number, which trains together with the adapter.

    Attributes:
        bias: whether a constant is added.
        exported_as: transformers' class for the artifact: `sequence`, a sequence classifier with one label that scores
            a text at its last token, or `token`, a token classifier with two labels, bad and good, with the number as
            the logit of the second. `none`: the artifact is the language model, and the head (a critic's) is a separate
            file.
    """

    bias: bool = False
    exported_as: Literal["sequence", "token", "none"] = "sequence"
