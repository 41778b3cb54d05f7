"""The tensors of files under the names that a model has for them, where transformers renames or joins them as it loads
a model: experts that a file holds one by one and the model as one weight, for one.

The library's own table and operations are used, tensor by tensor: what is held is one tensor of the model and what it
is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from finetooth_torchshared.assembled import CannotAssemble
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key


@dataclass(frozen=True)
class TensorSource:
    """The parts of a tensor of the model.

    Attributes:
        parts: the names of tensors in the files, each with the pattern by which the converter knows it.
        converter: the library's, which joins them; None: there is one, and it is the tensor.
    """

    parts: tuple[tuple[str, str], ...]
    converter: Any = None

    def tensor(self, name: str, model: Any, read: Callable[[str], Tensor]) -> Tensor:
        """It, from those of the files.

        Args:
            name: of it.
            read: one of a file's.

        Raises:
            CannotAssemble: the library makes something else of them.
        """
        if self.converter is None:
            return read(self.parts[0][1])
        converter = copy.deepcopy(self.converter)
        for pattern, part in self.parts:
            converter.add_tensor(name, part, pattern, read(part))
        converted: Any = converter.convert(name, model=model, config=model.config)
        if converted.keys() != {name}:
            raise CannotAssemble(f"{name} is not what transformers makes of {self.parts[0][1]}")
        made = converted[name]
        tensor: Tensor = made[0] if isinstance(made, list) else made
        return tensor


def tensor_sources(model: nn.Module, names: Collection[str]) -> dict[str, TensorSource]:
    """Of each tensor that files say, under its name in the model, what it is made of. `model` keeps what was used of
    the library's table, by which it saves its tensors as the files have them.

    Args:
        model: of transformers, which may be without memory.
        names: of all tensors in the files.
    """
    whole: Any = model
    table: Any = get_model_conversion_mapping(whole)
    renamings = [conversion for conversion in table if isinstance(conversion, WeightRenaming)]
    converters = [conversion for conversion in table if isinstance(conversion, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted: Any = model.state_dict()
    prefix = whole.base_model_prefix
    parts: dict[str, list[tuple[str, str]]] = {}
    joined: dict[str, Any] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = name, None
        if pattern is not None:
            if len(by_pattern[pattern].target_patterns) > 1:
                pattern, target = None, name  # cut into several: such a model is loaded whole
            else:
                joined.setdefault(target, by_pattern[pattern])
        parts.setdefault(target, []).append((pattern or name, name))
    whole._weight_conversions = [conversion for conversion in table if conversion.was_used()]
    return {target: TensorSource(tuple(sources), joined.get(target)) for target, sources in parts.items()}
