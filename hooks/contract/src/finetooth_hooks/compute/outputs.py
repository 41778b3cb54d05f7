"""Names of the outputs that a loss needs and a call returns."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks.errors import PlanError


@dataclass(frozen=True)
class OutputName:
    """The parts of a name in `needs` or `returns`, `KIND[:DEPTH][@ROLE]`. `OutputName.of("hidden:0.5@reference")`.

    Attributes:
        kind: `logprobs`, `entropy`, `hidden`, `logits`, `scores` or `values`.
        depth: of `hidden`: a fraction of the model's layers (written with a point, `hidden:0.5`), or the number of a
            layer (`hidden:12`). 0 is the embeddings, k the residual stream after the k-th layer, and the last layer or
            1.0 is `hidden` itself, after the final norm: the numbers of transformers' `hidden_states`. A fraction
            between two layers means the lower one. None: no depth.
        role: of the output; empty for the call's own.
    """

    kind: str
    depth: float | int | None = None
    role: str = ""

    @classmethod
    def of(cls, name: str) -> OutputName:
        """The parts of a name.

        Raises:
            PlanError: the depth is not a number, out of range, or of something other than `hidden`.
        """
        rest, _, role = name.partition("@")
        kind, colon, text = rest.partition(":")
        if not colon:
            return cls(kind, None, role)
        fraction = "." in text
        whole, _, part = text.partition(".")
        numeric = whole.isdecimal() and (part.isdecimal() if fraction else True)
        depth = (float(text) if fraction else int(text)) if numeric else -1
        if kind != "hidden" or depth < 0 or (fraction and depth > 1):
            raise PlanError(
                f"output {name!r}: only hidden has a depth, a fraction from 0.0 to 1.0 or the number of a layer",
                action="write hidden:0.5 for the middle layer, or hidden:12 for the twelfth",
            )
        return cls(kind, depth, role)

    def layer(self, layers: int) -> int:
        """The number of the layer, from 0 (embeddings) to `layers` (after the final norm), in a model with `layers`.

        Raises:
            PlanError: the model has fewer layers.
        """
        if self.depth is None:
            return layers
        if isinstance(self.depth, float):
            return int(self.depth * layers + 1e-9)
        if self.depth > layers:
            raise PlanError(
                f"output {self.kind}:{self.depth}: the model has {layers} layers",
                action=f"name a layer from 0 to {layers}, or a fraction of the depth such as hidden:0.5",
            )
        return self.depth
