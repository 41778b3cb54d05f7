"""The torch model of a GGUF file: built from its config, with the dequantised weights and no quantisation marks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import ModelTensors
from finetooth_modelfiles.gguf.architectures import architecture_of, parameter_name, parameter_names, restored_rows
from finetooth_modelfiles.gguf.configs import config_values
from finetooth_modelfiles.gguf.container import Container
from finetooth_modelfiles.gguf.dequantising import parameter_numbers, tensor_pieces
from finetooth_modelfiles.gguf.stored import stored_tensors
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from finetooth_gguf.blocks import BlocksLinear

if TYPE_CHECKING:
    from finetooth_hooks.protocols import Quantizer
    from transformers import PreTrainedModel


def build_config(container: Container) -> PreTrainedConfig:
    """The transformers config of a file."""
    values = config_values(container)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def state_dict(container: Container, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All parameters of a file by their transformers names, dequantised in float32 and then rounded to `dtype`.

    Several at once, on as many threads as torch computes with: NumPy and torch let other threads run meanwhile.

    Raises:
        RecipeError: a tensor has no counterpart in the model, or is stored in a way that cannot be read.
    """
    values, names = config_values(container), torch_names(container)
    # made here: memory that another thread asks for comes from an arena of its own, which stays scattered
    state = {target: torch.empty(shape_of(container, parts, values), dtype=dtype) for target, parts in names.items()}
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="dequantise") as threads:
        for _ in threads.map(lambda target: _fill(state[target], container, names[target], values), names):
            pass
    return state


def torch_names(container: Container) -> dict[str, tuple[str, ...]]:
    """Names of a file's tensors by those of the model's parameters: transformers holds gates of experts and what they
    gate as one weight (experts, rows, columns), a gate's rows first."""
    names: dict[str, tuple[str, ...]] = {}
    for parameter, parts in parameter_names(container).items():
        if ".experts." in parameter and len(parts) == 1:
            parameter = re.sub(r"\.(gate|up)_proj\.weight$", ".gate_up_proj.weight", parameter).removesuffix(".weight")
        joined = tuple(sorted((*names.get(parameter, ()), *parts)))  # ffn_gate_exps, ffn_up_exps
        names[parameter] = parts if len(parts) > 1 else joined
    return names


def shape_of(container: Container, parts: Sequence[str], values: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a parameter that a file holds in parts: rows of the later ones follow, expert by expert; or
    otherwise (`Change`)."""
    architecture = architecture_of(container)
    if stated := architecture.stated_weight(parts[0]):
        return stated[2]
    if change := architecture.change_of(parts[0]):
        return change.shape_read([container.tensors[part].shape for part in parts], values)
    first = container.tensors[parts[0]].shape
    if len(parts) == 1:
        return (1, *first) if parts[0].endswith(architecture.one_row) else first
    return first[0], sum(container.tensors[part].shape[1] for part in parts), first[2]


def _fill(numbers: torch.Tensor, container: Container, parts: Sequence[str], values: Mapping[str, Any]) -> None:
    start, architecture = 0, architecture_of(container)
    if architecture.change_of(parts[0]) or architecture.stated_weight(parts[0]):
        numbers.copy_(torch.from_numpy(parameter_numbers(container, parts, values)))
        return
    for part in parts:
        shape = container.tensors[part].shape
        own = numbers if len(parts) == 1 else torch.empty(shape, dtype=numbers.dtype)
        for place, piece in tensor_pieces(container, part, values):
            own.view(-1)[place] = torch.from_numpy(piece)
        if own is not numbers:
            numbers[:, start : start + shape[1]] = own
            start += shape[1]


def build_model(container: Container, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model in evaluation mode on the CPU.

    Raises:
        RecipeError: the file lacks a parameter of the model, or holds one of another shape.
    """
    state = state_dict(container, dtype)
    with _without_progress_bar():
        # the auto class insists on a name; the class itself takes a config and a state dict, and builds uninitialised
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    for what, names in (
        ("lacks", report["missing_keys"]),
        ("holds, in another shape than the model's,", report["mismatched_keys"]),
        ("holds beyond the model's parameters", report["unexpected_keys"]),
    ):
        if names:
            raise _misfit(container, what, map(str, names))
    loaded: PreTrainedModel = model
    return loaded


def build_quantised(
    container: Container, config: PreTrainedConfig, dtype: torch.dtype, device: str, quantizer: Quantizer | None = None
) -> PreTrainedModel:
    """The same with linear weights in fewer bits, tensor by tensor: no more than one of them is ever held as numbers.

    Args:
        quantizer: stores the linear weights; None: they stay as the file stores them.

    Raises:
        RecipeError: see `build_model`, and `stored_tensors`.
    """
    from finetooth_torchshared.assembled import CannotAssemble, assembled

    model = _without_memory(config)
    values = config_values(container)
    names = torch_names(container)
    in_blocks = {} if quantizer is not None else stored_tensors(container)
    paths = {parameter_name(container, name).removesuffix(".weight"): name for name in in_blocks}

    def read(name: str) -> torch.Tensor:
        numbers = torch.empty(shape_of(container, names[name], values), dtype=dtype)
        _fill(numbers, container, names[name], values)
        return numbers

    def reader(path: str, name: str) -> Any:
        def make(module: Any) -> BlocksLinear:
            entry = container.tensors[name]
            if entry.shape != (module.out_features, module.in_features):
                raise _misfit(container, "holds, in another shape than the model's,", [f"{path}.weight"])
            rows = restored_rows(container, name, container.blocks(entry), values)
            bias = read(f"{path}.bias") if f"{path}.bias" in names else None
            return BlocksLinear(torch.from_numpy(rows.copy()), entry.ggml_type, bias)

        return make

    stored = {path: reader(path, name) for path, name in paths.items()}
    plain = {name for name in names if name.rpartition(".")[0] not in stored}
    try:
        made: Any = assembled(model, plain, read, dtype=dtype, device=device, quantizer=quantizer, stored=stored)
    except CannotAssemble as error:
        raise RecipeError("model", f"{container.path}: {error}", action="fetch or convert it again") from error
    return made  # type: ignore[no-any-return]


def tensors(
    container: Container, config: PreTrainedConfig, dtype: torch.dtype, *, keep_quantised: bool
) -> ModelTensors:
    """The numbers of a file's model, one tensor in memory.

    Args:
        dtype: type of weights that are not stored in blocks.
        keep_quantised: linear weights are those that stay in blocks: in fp32.

    Raises:
        RecipeError: see `build_model`, and `stored_tensors`.
    """
    model, values = _without_memory(config), config_values(container)
    names = torch_names(container)
    blocks = {parameter_name(container, name) for name in (stored_tensors(container) if keep_quantised else ())}
    tied = set(model.all_tied_weights_keys)
    shapes = {name: of.shape for name, of in model.state_dict().items() if name not in tied}
    for what, parameters in (
        ("lacks", shapes.keys() - names.keys()),
        ("holds beyond the model's parameters", names.keys() - tied - shapes.keys()),
    ):
        if parameters:
            raise _misfit(container, what, parameters)
    if odd := [name for name, shape in shapes.items() if shape_of(container, names[name], values) != tuple(shape)]:
        raise _misfit(container, "holds, in another shape than the model's,", odd)

    def read(name: str) -> torch.Tensor:
        numbers = torch.empty(shapes[name], dtype=torch.float32 if name in blocks else dtype)
        _fill(numbers, container, names[name], values)
        return numbers

    return ModelTensors(model, dict.fromkeys(shapes, container.path.name), read)


def _without_memory(config: PreTrainedConfig) -> Any:
    """The model of a config on torch's device `meta`."""
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        return model_class(config)


def _misfit(container: Container, what: str, names: Iterable[str]) -> RecipeError:
    """The file and its model differ in some parameters."""
    listed = sorted(names)
    more = " and more" if len(listed) > 3 else ""
    return RecipeError(
        "model", f"{container.path} {what} {', '.join(listed[:3])}{more}", action="fetch or convert it again"
    )


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """The weights are in memory by now: the bar would flash by and leave its line."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
