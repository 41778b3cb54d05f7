"""Levels against the papers' and bitsandbytes', rounding to the nearest of them, and what is kept."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from finetooth_torchshared import few_bit_states  # noqa: E402
from finetooth_torchshared.few_bit_states import FewBits, dynamic_levels, even_levels  # noqa: E402


@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (4, True)])
def test_dynamic_levels_are_those_of_bitsandbytes(bits: int, signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.create_dynamic_map(signed, bits - 1, bits)
    theirs = theirs[theirs != 0] if bits < 8 else theirs  # which fills up to 256 with zeros
    own = dynamic_levels(bits, signed=signed)
    assert len(own) == 2**bits
    assert torch.allclose(own[own != 0] if bits < 8 else own, theirs, atol=1e-7)


@pytest.mark.parametrize("levels", [dynamic_levels(4, signed=True), dynamic_levels(8, signed=True)])
@pytest.mark.parametrize("shape", [(4096,), (70, 61), (4099,)])
@pytest.mark.parametrize("piece", [2**20, 1024])
def test_every_number_becomes_the_nearest_level(
    levels: torch.Tensor, shape: tuple[int, ...], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all of them are turned at once or not."""
    monkeypatch.setattr(few_bit_states, "PIECE", piece)
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    few, state = FewBits(levels, block=128), {}
    few.write(state, "mean", numbers)
    back = few.read(state, "mean", numbers)
    scale = torch.nn.functional.pad(numbers.flatten(), (0, -numbers.numel() % 128)).view(-1, 128).abs().amax(1)
    scale = scale.repeat_interleave(128)[: numbers.numel()].view(shape)
    wanted = ((numbers / scale).unsqueeze(-1) - levels).abs().amin(-1) * scale
    assert torch.allclose((back - numbers).abs(), wanted, atol=1e-6)
    assert sum(kept.nbytes for kept in state.values()) == few.bytes_of(numbers.numel())


def test_zeros_stay_zeros_and_small_tensors_as_they_are() -> None:
    few, state = FewBits(even_levels(4), block=128), {}
    few.write(state, "square", torch.zeros(5000))
    assert not few.read(state, "square", torch.zeros(5000)).any()
    few.write(state, "small", torch.arange(9.0))
    assert torch.equal(few.read(state, "small", torch.zeros(9)), torch.arange(9.0)) and few.bytes_of(9) == 36
    assert not few.read(state, "none", torch.ones(3, 2)).any()
