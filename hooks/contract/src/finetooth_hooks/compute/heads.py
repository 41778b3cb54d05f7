"""The scalar head: one number for a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScalarHead:
    """A linear map from a position's last hidden state to one number, which trains together with the adapter.

    Attributes:
        bias: whether a constant is added.
        exported_as: the class of transformers that an artifact is loaded with: `sequence`, a sequence classifier with
            one label that scores a text at its last token, or `token`, a token classifier with two labels, bad and
            good, of which the number is the logit of the second. `none`: an artifact is the language model, and the
            head is separate from it (a critic).
    """

    bias: bool = False
    exported_as: Literal["sequence", "token", "none"] = "sequence"
