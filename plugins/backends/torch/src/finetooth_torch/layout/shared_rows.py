"""Examples that share a row of the model's input: the model's inputs, and whether the model keeps the examples apart.

The positions of every segment start from 0. transformers' mask builders read a restart as a new sequence and build a
block-diagonal mask, with windows and chunks counted by position, or tell flash kernels where sequences begin; but only
without an attention mask, since a mask of ones lets every position see every earlier one. A model whose code does not
pass its positions on gets ready masks.

A trial decides whether a model keeps segments apart: it detects recurrent layers, convolutions and other masks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from finetooth_hooks import Datum, PlanError
from finetooth_hooks.compute.attention import Lengths
from finetooth_kernels.memory import placed
from finetooth_steps.placed_rows import place_rows
from finetooth_steps.row_filling import ALLOWED, INDEPENDENT, TRIAL, Filling, leak, share, trial_tokens
from finetooth_steps.segments import pieces_of, positions_of, seen_by
from torch import Tensor, nn

from finetooth_torch.attention.handing import handing
from finetooth_torch.attention.interface import checked
from finetooth_torch.attention.slices import Slices
from finetooth_torch.decoder.trial_layers import narrow
from finetooth_torch.layout.angles import turn_by_length
from finetooth_torch.layout.rectangles import Rectangle
from finetooth_torch.layout.state_reset import Segments, replace_scans, states_reset
from finetooth_torch.offload.transfers import placed_together
from finetooth_torch.planning.attention import AttentionChoice
from finetooth_torch.planning.row_sharing import WITH_TOWERS, obstacle, scaled_by_length

Masks = Literal["own", "given", "told"]
"""What keeps segments of a row apart: a mask that the model makes from their positions, a mask that we make, or flash
attention of transformers, which gets their beginnings."""

TREE = (*range(-1, 11), 3, 12, 13, 5, 15, 16, 17)
"""Parents of the positions of a trial tree: a line, and two branches."""

MASKED = frozenset({"mask", "blocks"})
"""How attention with ready masks of transformers' mask builders keeps sequences apart."""


@dataclass(frozen=True)
class Rows:
    """How examples may share rows of a model's input.

    Attributes:
        filling: which examples do; None if none may.
        masks: what keeps them apart.
        obstacle: why segments of a row cannot be kept apart; empty if they can.
        trees: why segments that continue others cannot be computed; empty if they can.
    """

    filling: Filling | None = None
    masks: Masks = "own"
    obstacle: str = ""
    trees: str = "its attention takes no mask"


@dataclass(frozen=True)
class Packed:
    """The model's input rows.

    Attributes:
        tokens, positions: (R, W) input ids and position ids, which restart with every segment. Padding is a separate
            segment.
        cells_st: (S, T) index in the flattened (R, W) of each cell of the rectangle; 0 for padding.
        segments: lengths of each row's segments, padding included.
        seen: (R, W, W) see `Placed.seen`.
    """

    tokens: Tensor
    positions: Tensor
    cells_st: Tensor
    segments: Lengths
    seen: Tensor | None = None


def pack(rectangle: Rectangle, multiple: int = 1) -> Packed:
    """The rows of a micro-batch whose examples share rows (`MicroBatch.filled`) or have segments.

    Args:
        multiple: the row width is a multiple of it.
    """
    rows = place_rows(rectangle.batch, rectangle.pieces, multiple)
    arrays = [rows.source, rows.positions, rows.cells, *([] if rows.seen is None else [rows.seen])]
    source, positions, cells_st, *seen = placed_together(arrays, rectangle.tokens.device)
    return Packed(
        tokens=rectangle.tokens.flatten()[source],
        positions=positions,
        cells_st=cells_st,
        segments=rows.segments,
        seen=seen[0] if seen else None,
    )


def sliced_states(body: nn.Module, packed: Packed, slices: Slices) -> Tensor:
    """(R, n, D) states of this rank's positions of the rows, in the order of `Slices.columns`."""
    own = slices.columns(packed.tokens.shape[1], packed.tokens.device)
    of_rank = replace(packed, tokens=packed.tokens[:, own], positions=packed.positions[:, own])
    return packed_states(body, of_rank, "own", slices)


def packed_states(body: nn.Module, packed: Packed, masks: Masks, slices: Slices | None = None) -> Tensor:
    """(R, W, D) states of the body; with no attention mask, or one that keeps the segments apart.

    Args:
        slices: the tokens are those of one rank, and the segments of whole rows.
    """
    mask = None if masks == "own" else _masks(body, packed.positions)
    if packed.seen is not None:
        mask = _tree_masks(body, packed.positions, packed.seen)
    arguments = _flash_arguments(packed) if masks == "told" else {}
    if name := kinds_argument(body):
        arguments[name] = torch.zeros_like(packed.tokens)
    alone = slices is not None or all(len(row) == 1 for row in packed.segments)
    segments = None if alone else Segments(packed.segments, packed.tokens.device)
    with handing(packed.segments, slices), states_reset(segments):
        outputs = body(
            input_ids=packed.tokens, position_ids=packed.positions, attention_mask=mask, use_cache=False, **arguments
        )
    states: Tensor = outputs.last_hidden_state
    return states


def kinds_argument(body: nn.Module) -> str:
    """The token types that tell text from images; some models need zeros even for text. Empty: none."""
    if not any(getattr(body.config, name, None) is not None for name in WITH_TOWERS):
        return ""
    takes = inspect.signature(body.forward).parameters
    return next((name for name in ("mm_token_type_ids", "token_type_ids") if name in takes), "")


def _flash_arguments(packed: Packed) -> dict[str, Any]:
    """Arguments for flash attention of transformers, which it would otherwise derive from positions: all rows as one,
    with the beginnings of segments."""
    segments = [length for row in packed.segments for length in row]
    begins = placed(torch.tensor([0, *np.cumsum(segments)], dtype=torch.int32), packed.tokens.device)
    longest = max(segments)
    return {"cu_seq_lens_q": begins, "cu_seq_lens_k": begins, "max_length_q": longest, "max_length_k": longest}


def _masks(body: nn.Module, positions: Tensor) -> Any:
    """The masks that transformers makes of these positions: one, or one per kind of layer."""
    from transformers.masking_utils import create_masks_for_generate

    config: Any = body.config
    shaped = torch.zeros((), dtype=next(body.parameters()).dtype, device=positions.device).expand(*positions.shape, 1)
    return create_masks_for_generate(
        config=config, inputs_embeds=shaped, attention_mask=None, past_key_values=None, position_ids=positions
    )


def _tree_masks(body: nn.Module, positions: Tensor, seen: Tensor) -> Any:
    """As `_masks`, for trees: positions see their path, within the window.

    Raises:
        ValueError: a kind of layer with other masks.
    """
    config: Any = body.config
    config = config.get_text_config()
    made = _masks(body, positions)
    window = getattr(config, "sliding_window", None)
    whole = "sliding_attention" if window is not None and not getattr(config, "layer_types", None) else "full_attention"
    near = seen if window is None else seen & (positions[:, :, None] - positions[:, None] < window)
    of_kind = {"full_attention": seen, "sliding_attention": near}

    def of(kind: str, mask: Any) -> Any:
        if not isinstance(mask, Tensor) or mask.dim() != 4 or kind not in of_kind:  # (R, 1, W, W)
            raise ValueError(f"layers of the kind {kind} take no mask of pairs of positions")
        tree = of_kind[kind][:, None]
        if mask.dtype == torch.bool:
            return tree
        return torch.zeros_like(tree, dtype=mask.dtype).masked_fill(~tree, torch.finfo(mask.dtype).min)

    return {kind: of(kind, mask) for kind, mask in made.items()} if isinstance(made, dict) else of(whole, made)


@torch.no_grad()
def find_rows(body: nn.Module, attention: AttentionChoice) -> Rows:
    """How examples may share rows of the body's input.

    Args:
        body: in evaluation mode; a few tokens are tried, unless its config or attention excludes sharing.
        attention: what computes it.
    """
    config: Any = getattr(body, "config", None)
    if config is None:
        return Rows(obstacle="the model has no config of transformers that says how its layers attend")
    settings = config.to_dict()
    by_length, (scaling, _) = turn_by_length(body), scaled_by_length(settings)
    reason = obstacle(settings, attention)
    if scaling and not by_length:
        reason = f"the model's own code turns positions by the longest sequence in the batch ({scaling})"
    if reason:
        return Rows(obstacle=reason)
    replace_scans(body)
    filling = attention.filling
    with narrowed(config):
        for masks in _ways(attention):
            try:
                leak = _leak(body, masks, one_row=filling == "stream")
            except Exception as error:  # of the model's own code
                leak = f"the model failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if not leak:
                several = f"its rotary angles ({scaling}) depend on the length of a sequence, and paths have several"
                return Rows(filling, masks, trees=several if scaling else _tree_obstacle(body, masks, attention))
            reason = reason or leak
    return Rows(obstacle=reason)


def _ways(attention: AttentionChoice) -> tuple[Masks, ...]:
    if not attention.implementation:  # its functions get the lengths with the model's mask
        return ("own",)
    return ("own", "given") if attention.segments <= MASKED else ("told", "own")


@torch.no_grad()
def _leak(body: nn.Module, masks: Masks, *, one_row: bool) -> str:
    """The problem with the states of segments that share rows; empty if there is none."""
    first = next(body.parameters())
    device, size = first.device, first.element_size()
    vocabulary = int(body.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    parts, others = ([torch.from_numpy(part).to(device) for part in of] for of in trial_tokens(vocabulary))
    grid = [[0, 1, 2, 3]] if one_row else [[0, 1], [2, 3]]

    def together(segments: list[Tensor]) -> list[Tensor]:
        tokens = torch.stack([torch.cat([segments[i] for i in row]) for row in grid])
        counted = [torch.cat([torch.arange(TRIAL[i], device=device) for i in row]) for row in grid]
        lengths = tuple(tuple(TRIAL[i] for i in row) for row in grid)
        packed = Packed(tokens, torch.stack(counted), tokens, lengths)
        with checked():
            rows = packed_states(body, packed, masks)
        split = [part for states, row in zip(rows, grid, strict=True) for part in states.split([TRIAL[i] for i in row])]
        return [part.cpu().double() for part in split]

    alone = [body(input_ids=part[None], use_cache=False).last_hidden_state[0].cpu().double() for part in parts]
    shared, exchanged = together(parts), together(others)
    own, rows, others_rows = ([of.cpu().numpy() for of in states] for states in (alone, shared, exchanged))
    return leak(own, rows, others_rows, size)


def _tree_obstacle(body: nn.Module, masks: Masks, attention: AttentionChoice) -> str:
    """Why segments that continue others cannot be computed; empty if a trial tree has the states of its paths."""
    if not attention.implementation or not attention.segments <= MASKED:
        return f"attention {attention.names} takes no mask of pairs of positions (sdpa and eager do)"
    first = next(body.parameters())
    vocabulary = int(body.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    ids = [place * 5 % (vocabulary - 1) + 1 for place in range(len(TREE))]
    tokens = torch.from_numpy(np.array([ids])).to(first.device)
    pieces = pieces_of(replace(Datum.from_tokens([*ids, 0]), parents=np.array(TREE)))
    positions, seen = (torch.from_numpy(of).to(first.device)[None] for of in (positions_of(pieces), seen_by(pieces)))
    lengths = (tuple(piece.stop - piece.start for piece in pieces),)
    try:
        states = packed_states(body, Packed(tokens, positions, tokens, lengths, seen), masks)[0].cpu().double()
        worst = 0.0
        for leaf in sorted(set(range(len(TREE))) - set(TREE)):
            path = seen[0, leaf].nonzero()[:, 0]
            alone = body(input_ids=tokens[:, path], use_cache=False).last_hidden_state[0].cpu().double()
            worst = max(worst, share(states[path.cpu()].numpy(), alone.numpy()))
    except Exception as error:  # of the model's own code
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if worst > ALLOWED[first.element_size()]:
        return f"a path gets other states in a tree than alone ({worst:.1e} apart)"
    return ""


@torch.no_grad()
def check_causal(body: nn.Module) -> None:
    """Compares states of a row's first half when its second half changes: a language model learns to predict the next
    token, and a model that sees later positions just copies it.

    Args:
        body: a model of transformers in evaluation mode. One whose code cannot be called alone, or whose states are
            not finite, is not checked. Both rows are one batch, so that scales over a whole batch do not look like a
            dependence on later positions.

    Raises:
        PlanError: positions see later ones.
    """
    device, half = next(body.parameters()).device, 8
    tokens = (torch.arange(2 * half, device=device) * 5).repeat(2, 1)
    tokens[1, half:] += 3
    try:
        vocabulary = int(body.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        states: Tensor = body(input_ids=tokens % (vocabulary - 1) + 1, use_cache=False).last_hidden_state[:, :half]
    except Exception:  # of the model's own code
        return
    first, second = states.cpu().double().numpy()
    seen = share(first, second) if np.isfinite(first).all() else 0.0
    if seen > INDEPENDENT[states.element_size()]:
        raise PlanError(
            f"model: {type(body).__name__} is not causal: positions see those after them ({seen:.1e} of their states "
            "change with them), so it would copy the next token instead of predicting it",
            action="choose a causal model; for BERT and its relatives set is_decoder: true in its config.json",
        )


@torch.no_grad()
def check_slices(body: nn.Module, rows: Rows, slices: Slices) -> None:
    """Compares divided positions with a whole forward on trial tokens.

    Raises:
        PlanError: ranks that divide positions do not compute the same as one rank.
    """
    problem = rows.obstacle
    if not problem:
        device = next(body.parameters()).device
        width = -(-sum(TRIAL) // slices.pieces) * slices.pieces
        segments = (*TRIAL, width - sum(TRIAL)) if width > sum(TRIAL) else TRIAL
        vocabulary = int(body.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        tokens = ((torch.arange(width, device=device) * 5) % (vocabulary - 1) + 1)[None]
        counted = torch.cat([torch.arange(length, device=device) for length in segments])[None]
        packed = Packed(tokens, counted, tokens, (segments,))
        with narrowed(body.config):
            whole, sliced = packed_states(body, packed, rows.masks), sliced_states(body, packed, slices)
        own = torch.zeros(1, width, dtype=torch.bool, device=device)
        own[:, slices.columns(width, device)] = True
        placed = torch.zeros_like(whole).masked_scatter(
            own[..., None], sliced[:, slices.columns(width, device).argsort()]
        )
        difference = share(*(of[0].cpu().double().numpy() for of in (slices.whole(placed, own), whole)))
        if difference > ALLOWED[whole.element_size()]:
            problem = f"it computes other states where ranks divide the positions ({difference:.1e} apart)"
    if problem:
        raise PlanError(
            f"scale.strategy: positions of this model's rows cannot be divided: {problem}",
            action="set scale.strategy: ddp",
        )


@contextmanager
def narrowed(config: Any) -> Iterator[None]:
    """Shorten the config's windows, which mask builders read, so that a few positions show them."""
    original = dict(vars(config))
    narrow(vars(config))
    try:
        yield
    finally:
        vars(config).update(original)
