"""A model put together module by module: what no file has is made by the model that initialises it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from finetooth_torchshared.assembled import CannotAssemble, assembled
from torch import nn

SIZE = 4


class Inner(nn.Module):
    def __init__(self, made: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE))
        self.register_buffer("table", made, persistent=False)


class Model(nn.Module):
    """As transformers has them: the table is made with the layer, or with the model around it.

    Args:
        made: the table; None: nobody makes it.
    """

    all_tied_weights_keys: ClassVar[dict[str, str]] = {}

    def __init__(self, made: Any, maker: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Inner(made.clone()) for _ in range(2))
        self.__dict__["made"], self.__dict__["maker"] = made, maker

    def get_output_embeddings(self) -> None:
        return None

    def tie_weights(self) -> None:
        pass

    def _init_weights(self, module: nn.Module) -> None:
        layers = {Inner: [module], Model: self.layers}.get(type(module), ()) if self.maker is type(module) else ()
        for layer in layers:
            layer.table.copy_(self.made)


TABLES = {
    "floats": torch.linspace(-1, 1, SIZE),
    "positions": torch.arange(SIZE).expand(1, -1),
    "turns": torch.polar(torch.ones(SIZE), torch.linspace(0, 3, SIZE)),
}


def assemble(model: Model) -> nn.Module:
    names = [name for name, _ in model.named_parameters()]
    return assembled(model, names, lambda name: torch.full((SIZE,), 2.0), dtype=torch.float32, device="cpu")


def without_memory(table: Any, maker: type[nn.Module]) -> Model:
    model = Model(table, maker).to("meta")
    model.__dict__["made"] = table
    return model


@pytest.mark.parametrize("maker", [Inner, Model])
@pytest.mark.parametrize("kind", TABLES)
def test_what_no_file_has_is_made(kind: str, maker: type[nn.Module]) -> None:
    made = assemble(without_memory(TABLES[kind], maker))
    tables = [buffer for name, buffer in made.named_buffers() if name.endswith("table")]
    assert len(tables) == 2 and all(torch.equal(table, TABLES[kind]) for table in tables)
    assert all(bool((parameter == 2).all()) for parameter in made.parameters())


@pytest.mark.parametrize("kind", TABLES)
def test_what_nobody_makes_is_named(kind: str) -> None:
    with pytest.raises(CannotAssemble, match=r"nothing makes layers\.0\.table"):
        assemble(without_memory(TABLES[kind], nn.Linear))


def test_what_cannot_be_told_from_nothing_is_refused() -> None:
    with pytest.raises(CannotAssemble, match=r"layers\.0\.table holds no numbers"):
        assemble(without_memory(torch.ones(SIZE, dtype=torch.bool), Inner))
