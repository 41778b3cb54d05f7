"""Dropout and noise keyed by example: the same in every layout, order and rank (decision 0007).

`Draws` replaces torch's generators in `nn.Dropout` modules, and in the function `dropout` in the code of modules with a
dropout share (attention weights of transformers' eager code). The numbers are those of `finetooth_steps.draws`. Draws
for weights and not for rows (a rotation's blocks) are keyed by seed, step and module. Rows other than positions of the
micro-batch (patches of a tower, tokens sorted by experts, chunks of an adapted head) have no key: they draw from the
stream of their micro-batch, and several ranks refuse them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial, wraps
from typing import Any

import numpy as np
import torch
from finetooth_hooks import EngineError
from finetooth_kernels.dropout import Dropped, keyed_dropout, mixed
from finetooth_kernels.memory import placed
from finetooth_steps.draws import GOLDEN, position_keys, threshold, words_of
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from finetooth_torch.randomness import seeded

ATTENTION_DIMENSIONS = 4
"""Dimensions of attention weights: rows, heads, queries, keys."""
BLOCKS = "MultiplicativeDropoutLayer"
"""peft's class that replaces blocks of a rotation at random."""


Laid = tuple[Tensor, tuple[int, ...], tuple[int, ...]]
"""Arguments of `Draws.lay_out`."""


class Draws:
    """The random numbers of a model's modules.

    Attributes:
        laid: see `lay_out`; None: no micro-batch is computed.
        wanted: see `narrow`; None: all.
        note: tells the user once that a module drops without a key.

    Args:
        device: of the model.
        strict: refuse modules without keys.
        dropout: the operation `keyed_dropout`.
    """

    def __init__(
        self, device: torch.device, *, strict: bool = False, dropout: Callable[..., Any] = keyed_dropout
    ) -> None:
        self._device, self._strict, self._dropout = device, strict, dropout
        self.note: Callable[..., None] | None = None
        self._seed, self._step, self._places = 0, 0, tuple[int, ...]()
        self.laid: Laid | None = None
        self._made: Tensor | None = None  # its keys, (P, 2), after the first draw
        self.wanted: Tensor | None = None
        self._piece: tuple[int, int] | None = None  # see `piece`

    def __deepcopy__(self, memo: dict[int, Any]) -> Draws:
        return self  # a copy of a model shares its draws

    @contextmanager
    def entered(self, seed: int, step: int, places: Sequence[int]) -> Iterator[None]:
        """Inside the `with` block, rows of a rectangle are the examples at these places of the step."""
        before = self._seed, self._step, self._places
        self._seed, self._step, self._places = seed, step, tuple(places)
        try:
            yield
        finally:
            self._seed, self._step, self._places = before
            self.laid = self._made = self.wanted = None

    def lay_out(self, cells_st: Tensor, lengths: Sequence[int], shape: Sequence[int]) -> None:
        """Set the positions that the model computes, until the micro-batch ends: its backward pass may recompute
        layers.

        Args:
            cells_st: (S, T) which of the computed positions each cell of the rectangle is.
            lengths: (S,) of the sequences.
            shape: of the model's states: rows and positions, or positions only.
        """
        self.laid, self._made, self.wanted = (cells_st, tuple(lengths), tuple(shape)), None, None

    def narrow(self, wanted: Tensor) -> None:
        """Set the positions computed after the last layer's attention, (M,) indices."""
        self.wanted = wanted

    @contextmanager
    def piece(self, start: int, whole: int) -> Iterator[None]:
        """Inside the `with` block, rows are some of `whole` rows, from `start`."""
        before, self._piece = self._piece, (start, whole)
        try:
            yield
        finally:
            self._piece = before

    def real(self) -> Tensor:
        """(N,) the computed positions of examples, row by row, without padding."""
        assert self.laid is not None
        cells_st, lengths, _ = self.laid
        return torch.cat([cells_st[row, :length] for row, length in enumerate(lengths)])

    def attach(self, model: nn.Module) -> None:
        """Make all dropout in `model` draw from here; called again after modules were added."""
        for path, module in model.named_modules():
            if isinstance(module, Keyed):
                continue
            if type(module) is nn.Dropout:
                module.__class__ = KeyedDropout
            elif type(module).__name__ == BLOCKS:
                module.__class__ = _keyed(type(module), _once)  # type: ignore[arg-type]
            elif any("drop" in name and _is_share(value) for name, value in vars(module).items()) or _lends(module):
                module.__class__ = _keyed(type(module), _watched)  # type: ignore[arg-type]
            else:
                continue
            vars(module).update(draws=self, site=path)

    def drop(self, tensor: Tensor, share: float, site: str, *, inplace: bool = False) -> Tensor:
        """`tensor` with a share of its numbers set to 0 and the others scaled to the same mean.

        Raises:
            EngineError: its rows have no key, and they need one.
        """
        dropped = self.dropped(tensor, share, site)
        if dropped is not None:
            rows = tensor.reshape(-1, tensor.shape[-1])
            return self._dropout(rows, *dropped[:4]).view(tensor.shape)  # type: ignore[no-any-return]
        words = self._words_of_attention(tensor, site)
        if words is None:
            if self._strict:
                raise EngineError(
                    f"dropout: the module {site!r} drops from rows that are not the positions of the data "
                    f"{tuple(tensor.shape)}, which ranks cannot do alike",
                    action="set its dropout to 0, or train on one rank",
                )
            if self.laid is not None and self.note is not None:
                self.note(
                    f"the module {site!r} drops from rows that are not the positions of the data, so what it drops "
                    "follows train.micro_batch_tokens; set its dropout to 0 for losses that do not",
                    topic="dropout without a key",
                )
            return functional.dropout(tensor, share, training=True, inplace=inplace)
        return tensor * (words >= threshold(share)).to(tensor.dtype).mul_(1.0 / (1.0 - share))

    def dropped(self, tensor: Tensor, share: float, site: str) -> Dropped | None:
        """What decides on the numbers of `tensor`; None if its rows have no keys."""
        halves = self._halves(tensor, site)
        return None if halves is None else Dropped(*halves, threshold(share), 1.0 / (1.0 - share), self._dropout)

    def uniform(self, tensor: Tensor, site: str) -> Tensor:
        """fp32, shaped as `tensor`, uniform in -1 to 1; its rows are the positions."""
        halves = self._halves(tensor, site)
        if halves is None:
            return torch.empty_like(tensor, dtype=torch.float32).uniform_(-1.0, 1.0)
        rows, columns = halves
        return mixed(rows[:, None] ^ columns).to(torch.float32).mul_(2.0**-31).view(tensor.shape)

    def _words_of_attention(self, tensor: Tensor, site: str) -> Tensor | None:
        """Uniform random int32 in the shape of attention weights; None if `tensor` is something else."""
        keys = self._keys()
        if keys is None or not self._is_attention(tensor.shape):
            return None
        *_, queries, seen = tensor.shape
        rows = len(keys) // queries
        heads = tensor.numel() // (rows * queries * seen)
        of = keys.view(rows, queries, 2)
        words = torch.stack([_drawn(of, words_of("site", f"{site}#{head}")) for head in range(heads)], 1)
        # a column is the key's position in its example, so that preceding examples change nothing
        columns = _drawn(of, words_of("site", f"{site}#columns"))[:, None, None, :seen]
        return mixed(words[..., None] ^ columns).view(tensor.shape)

    def _halves(self, tensor: Tensor, site: str) -> tuple[Tensor, Tensor] | None:
        """Random int32 of rows and of columns, to be mixed in pairs; None if the rows of `tensor` have no keys."""
        keys = self._keys()
        if keys is None or tensor.dim() == 0 or self._is_attention(tensor.shape):
            return None
        site_words = words_of("site", site)
        count = tensor.numel() // tensor.shape[-1] if tensor.numel() else 0
        start, whole = (0, count) if self._piece is None else self._piece
        if self.wanted is not None and whole == len(self.wanted) != len(keys):
            keys = keys[self.wanted]
        if whole == len(keys):
            keys = keys[start : start + count]
        if count != len(keys):
            return None
        first = _drawn(keys, site_words)
        at = torch.arange(tensor.shape[-1], dtype=torch.int32, device=keys.device)
        return first, mixed(at * _signed(GOLDEN) + _signed(site_words[1]))

    def _keys(self) -> Tensor | None:
        """(P, 2) int32 keys, 0 for padding; None if no micro-batch is computed."""
        if self._made is None and self.laid is not None:
            cells_st, lengths, shape = self.laid
            keys = torch.zeros((math.prod(shape), 2), dtype=torch.int32, device=cells_st.device)
            of_rows = [
                position_keys(self._seed, self._step, place, length)
                for place, length in zip(self._places, lengths, strict=True)
            ]
            if of_rows:
                words = np.concatenate(of_rows).view(np.int32)
                keys[self.real()] = placed(torch.from_numpy(words), keys.device)
            self._made = keys
        return self._made

    def _is_attention(self, shape: torch.Size) -> bool:
        if self.laid is None or shape[-2:] != (self.laid[2][-1],) * 2:
            return False
        rows = math.prod(self.laid[2][:-1])
        if len(shape) == ATTENTION_DIMENSIONS - 1:  # rows and heads are one dimension, as XGLM has it
            return shape[0] > rows and shape[0] % rows == 0
        return len(shape) == ATTENTION_DIMENSIONS and shape[0] == rows

    def stream(self, site: str) -> AbstractContextManager[None]:
        """torch's generators for what a module draws once a step."""
        return seeded(self._device, self._seed, self._step, site)


class Keyed:
    """Mixin that `Draws.attach` adds to a module's class.

    Attributes:
        draws: what it draws from.
        site: its path in the model.
    """

    draws: Draws
    site: str


def _once(module: Any, forward: Callable[..., Any], args: Any, more: Any) -> Any:
    with module.draws.stream(module.site):
        return forward(*args, **more)


def _watched(module: Any, forward: Callable[..., Any], args: Any, more: Any) -> Any:
    with _Watching(module.draws, module.site):
        return forward(*args, **more)


@cache
def _keyed(kind: type[nn.Module], around: Callable[..., Any]) -> type[nn.Module]:
    """A class like `kind` whose forward in training goes through `around`."""

    @wraps(kind.forward)
    def forward(self: Any, *args: Any, **more: Any) -> Any:
        own = partial(kind.forward, self)
        return around(self, own, args, more) if self.training else own(*args, **more)

    return type(kind.__name__, (Keyed, kind), {"forward": forward, "__module__": kind.__module__})


class KeyedDropout(Keyed, nn.Dropout):
    """`nn.Dropout` whose numbers `Draws` gives.

    Attributes:
        columns: this rank's first column, and how many columns there are in all; None: it has all.
    """

    columns: tuple[int, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Dropout` does."""
        if not self.training or self.p == 0.0:
            return input
        if self.p == 1.0:
            return super().forward(input)
        if self.columns is None:
            return self.draws.drop(input, self.p, self.site, inplace=self.inplace)
        first, width = self.columns[0], input.shape[-1]
        whole = nn.functional.pad(input, (first, self.columns[1] - first - width))
        return self.draws.drop(whole, self.p, self.site)[..., first : first + width]

    def keyed(self, x_nd: Tensor) -> Dropped | None:
        """See `finetooth_kernels.dropout.DropsByKeys`."""
        known = self.columns is None and _is_share(self.p)
        return self.draws.dropped(x_nd, self.p, self.site) if known else None


class _Watching(TorchFunctionMode):
    """Inside the `with` block, `torch.nn.functional.dropout` draws from `Draws`."""

    def __init__(self, draws: Draws, path: str) -> None:
        super().__init__()
        self._draws, self._path, self._calls = draws, path, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.dropout:
            return func(*args, **kwargs)
        x, share, training = _of_dropout(*args, **kwargs)
        if not training or share in (0.0, 1.0):
            return func(*args, **kwargs)
        self._calls += 1
        return self._draws.drop(x, share, f"{self._path}#{self._calls}")


def _of_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Tensor, float, bool]:
    del inplace
    return input, p, training


def _lends(module: nn.Module) -> bool:
    """Whether it is an attention that passes the share of its `nn.Dropout` to a function (GPT-2)."""
    drops = (child for child in module.children() if isinstance(child, nn.Dropout))
    return "attention" in type(module).__name__.lower() and any(_is_share(child.p) for child in drops)


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0.0 < value < 1.0


def _drawn(keys: Tensor, site: tuple[int, int]) -> Tensor:
    """A random int32 per key, (..., 2) to (...): the rows of `finetooth_steps.draws.uniform_words`."""
    first, second = _signed(site[0]), _signed(site[1])
    return mixed((mixed(keys[..., 0] ^ first) + keys[..., 1]) ^ second)


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word
