"""Registers attention entries in transformers' registries of attention and masks.

A model's code makes a mask once for each kind of layer and hands it to every layer with its queries, keys and values.
If an entry's function computes, a `Rows` replaces the mask: the lengths of the sequences in each row, from the layout,
and the window. It is an argument of a layer, so a layer that is recomputed in the backward pass gets it again. If two
kinds of layers have different entries, it names the kind and holds the mask for the implementation of transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from finetooth_hooks import EngineError, PlanError
from finetooth_hooks.compute.attention import Lengths
from finetooth_torchshared.attention import implementation, visible
from torch import Tensor, nn

from finetooth_torch.attention.handing import handed, handed_slices, newest
from finetooth_torch.attention.slices import Slices
from finetooth_torch.planning.attention import SETTING

Computes = str | Callable[..., Tensor]
"""An implementation of transformers by name, or an entry's function."""


@dataclass(frozen=True)
class Rows:
    """What layers get instead of a mask.

    Attributes:
        kind: of the layers, `full` or `sliding`.
        lengths: of the sequences in each row, counted in keys; empty if `mask` replaces them.
        window: positions that each position sees; None: all.
        mask: for an implementation of transformers.
        slices: this rank's share of the positions; None: all.
    """

    kind: str
    lengths: Lengths = ()
    window: int | None = None
    mask: Any = None
    slices: Slices | None = None


_NUMBERS = itertools.count(1)
_REGISTERED: dict[tuple[tuple[str, Computes], ...], str] = {}
_CHECKED: ContextVar[bool] = ContextVar("checked", default=False)


def install(base: nn.Module, computes: Mapping[str, Computes]) -> bool:
    """Make a model use this attention.

    Args:
        base: a model of transformers.
        computes: by kind of layer, `full` or `sliding`.

    Returns:
        False if a single implementation of transformers computes it.

    Raises:
        PlanError: the model's code does not accept the implementation of transformers.
    """
    model: Any = base
    only = set(computes.values())
    if len(only) == 1 and isinstance(name := next(iter(only)), str):
        if model.config._attn_implementation != name and _attends(model.config.get_text_config()):
            try:
                model.set_attn_implementation(name)
            except (ValueError, ImportError, OSError) as error:
                problem = f"{SETTING}: {type(model).__name__} does not compute attention with {name}"
                package = "" if isinstance(error, ValueError) else f": {' '.join(str(error).split())}"
                raise PlanError(problem + package, action=f"set {SETTING} to auto") from error
        return False
    name = registered(computes)
    parts = {key: getattr(model.config, key, None) for key in getattr(model.config, "sub_configs", {})}
    text = model.config.get_text_config()
    towers = {key: part._attn_implementation for key, part in parts.items() if part is not None and part is not text}
    model.set_attn_implementation({"": name, **{key: towers.get(key, name) for key in parts}} if parts else name)
    return True


def _attends(config: Any) -> bool:
    """Whether a model has attention at all: Mamba has none."""
    return getattr(config, "num_attention_heads", None) is not None


def registered(computes: Mapping[str, Computes]) -> str:
    """The name in transformers' registers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    key = tuple(sorted(computes.items()))
    if key not in _REGISTERED:
        name = f"finetooth_{next(_NUMBERS)}"
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, _mask_of(computes))
        ALL_ATTENTION_FUNCTIONS.register(name, _attention_of(computes))
        _REGISTERED[key] = name
    return _REGISTERED[key]


@contextmanager
def checked() -> Iterator[None]:
    """Inside the `with` block, the model's own mask must equal the one of lengths and window."""
    token = _CHECKED.set(True)
    try:
        yield
    finally:
        _CHECKED.reset(token)


def _mask_of(computes: Mapping[str, Computes]) -> Callable[..., Rows]:
    def mask(**asked: Any) -> Rows:
        """See `transformers.masking_utils.sdpa_mask`."""
        window = asked.get("local_size")
        kind = "full" if window is None else "sliding"
        computing = _of(computes, kind)
        if isinstance(computing, str):
            from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

            return Rows(kind, mask=ALL_MASK_ATTENTION_FUNCTIONS[computing](**asked))
        if asked.get("use_vmap") or "allow_is_bidirectional_skip" in asked:
            raise _refused("makes masks of its own, such as for images or both directions")
        rows, keys = int(asked["batch_size"]), int(asked["kv_length"])
        lengths, slices = handed(), handed_slices()
        if lengths is not None and slices is not None:
            return Rows(kind, lengths, window, slices=slices)
        if lengths is None:
            if asked.get("attention_mask") is not None or not asked.get("allow_is_causal_skip", True):
                raise _refused("is given padding or several sequences a row, and nobody says their lengths")
            lengths = ((keys,),) * rows
        mask_rows = Rows(kind, newest(lengths, keys), window)
        if _CHECKED.get():
            _check(asked, mask_rows)
        return mask_rows

    return mask


def _check(asked: Mapping[str, Any], rows: Rows) -> None:
    """
    Raises:
        PlanError: the model's code makes another mask.
    """
    from transformers.masking_utils import sdpa_mask

    own = sdpa_mask(**{**asked, "allow_is_causal_skip": False})
    whole = tuple((sum(row),) for row in rows.lengths)  # for code that does not pass its positions on
    device, positions = asked.get("device", "cpu"), int(asked["q_length"])
    masks = [
        visible(lengths, positions, causal=True, window=rows.window, device=device) for lengths in (rows.lengths, whole)
    ]
    if own is None or not any(torch.equal(own.expand_as(mask), mask) for mask in masks):
        raise _refused("lets positions see others than those of a causal sequence and its window")


def _attention_of(computes: Mapping[str, Computes]) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, dropout: float = 0.0,
        scaling: float | None = None, softcap: float | None = None, s_aux: Tensor | None = None, **more: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """See `transformers.integrations.sdpa_attention.sdpa_attention_forward`."""
        rows = attention_mask
        if not isinstance(rows, Rows):
            raise _refused("does not make its masks with transformers' mask builders")
        computing = _of(computes, rows.kind)
        if isinstance(computing, str):
            options = {"dropout": dropout, "scaling": scaling, **more}
            options |= {} if softcap is None else {"softcap": softcap}
            options |= {} if s_aux is None else {"s_aux": s_aux}
            named: Any = implementation(computing, module)
            attended: tuple[Tensor, None] = named(_as(module, computing), query, key, value, rows.mask, **options)
            return attended[0], None
        if dropout or more.get("position_bias") is not None:
            raise _refused("drops weights of attention or adds to its scores, which this attention does not")
        if rows.slices is None and any(sum(row) != key.shape[2] for row in rows.lengths):
            raise EngineError(f"attention: rows of {rows.lengths} positions meet {key.shape[2]} keys")
        attending = computing if rows.slices is None else partial(rows.slices.attend, computing)
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        out = attending(
            query, key, value, scale=scale, lengths=rows.lengths, causal=True, window=rows.window, softcap=softcap,
            sinks=s_aux,
        )  # fmt: skip
        return out.transpose(1, 2).contiguous(), None

    return attend


def _of(computes: Mapping[str, Computes], kind: str) -> Computes:
    return computes[kind] if kind in computes else next(iter(computes.values()))


def _as(module: nn.Module, name: str) -> Any:
    """The module with a config that names an implementation of transformers: some implementations read it."""
    return _Named(module, name)


class _Named:
    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self.config = module, SimpleNamespace(_attn_implementation=name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _refused(what: str) -> PlanError:
    return PlanError(
        f"backend.attention: the model's code {what}", action="set backend.attention to auto or one of transformers"
    )
