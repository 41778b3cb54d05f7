"""NEFTune's noise: as large as the paper says, for each sequence by its own length, and only where it is asked for."""

from __future__ import annotations

import math

import pytest
import torch
from finetooth_torch.draws import Draws
from finetooth_torch.embedding_noise import EmbeddingNoise

ALPHA, WIDTH = 5.0, 64
LENGTHS = (100, 400)


@pytest.fixture
def embedding() -> torch.nn.Embedding:
    made = torch.nn.Embedding(7, WIDTH)
    torch.nn.init.zeros_(made.weight)
    return made


DRAWS = Draws(torch.device("cpu"))


def added(embedding: torch.nn.Embedding, noise: EmbeddingNoise, cells: torch.Tensor, shape: tuple[int, ...]):
    with DRAWS.entered(3, 0, (0, 1)):
        DRAWS.lay_out(cells, LENGTHS, shape)
        with noise.over(cells, LENGTHS, math.prod(shape)):
            return embedding(torch.zeros(shape, dtype=torch.long)).detach().flatten(0, -2)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "stream"])
def test_the_noise_is_uniform_within_the_papers_bound(embedding: torch.nn.Embedding, packed: bool) -> None:
    """alpha / sqrt(L D), variance a third of its square; a sequence's place in the layout does not matter."""
    cells = torch.zeros(2, 400, dtype=torch.long)
    cells[0, :100] = torch.arange(100) + (400 if packed else 0)
    cells[1] = torch.arange(400) + (0 if packed else 400)
    shape = (500,) if packed else (2, 400)
    found = added(embedding, EmbeddingNoise(embedding, ALPHA, DRAWS), cells, shape)
    for row, length in enumerate(LENGTHS):
        bound = ALPHA / math.sqrt(length * WIDTH)
        values = found[cells[row, :length]].double()
        assert values.abs().max() <= bound < values.abs().max() * 1.01
        assert values.mean().abs() < 4 * bound / math.sqrt(3 * values.numel())
        assert values.var() == pytest.approx(bound**2 / 3, rel=0.03)


def test_nothing_is_added_where_nothing_trains(embedding: torch.nn.Embedding) -> None:
    noise = EmbeddingNoise(embedding, ALPHA, DRAWS)
    assert not embedding(torch.zeros(3, dtype=torch.long)).any()  # generation, for one
    embedding.eval()
    cells = torch.arange(800).view(2, 400)
    assert not added(embedding, noise, cells, (2, 400)).any()
    embedding.train()
    assert added(embedding, noise, cells, (2, 400)).any()
