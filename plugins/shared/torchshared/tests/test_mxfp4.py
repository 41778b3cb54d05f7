"""MXFP4 as a file holds it, against a float64 reading by the specification's tables."""

from __future__ import annotations

import numpy as np
import torch
from finetooth_torchshared.mxfp4 import PackedMxfp4Linear, encoded
from finetooth_torchshared.packed_files import packing_of

LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def oracle(weight: np.ndarray) -> np.ndarray:
    """Nearest level under the power of two of each block."""
    blocks = weight.astype(np.float64).reshape(len(weight), -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    power = 2.0 ** (np.floor(np.log2(np.where(largest > 0, largest, 1))) - 2)
    apart = np.abs(np.abs(blocks / power)[..., None] - LEVELS)
    return (np.sign(blocks) * LEVELS[apart.argmin(-1)] * power).reshape(weight.shape)


def test_a_packed_module_reads_what_was_packed_and_packs_it_again() -> None:
    """What is on the levels already comes back bit for bit: a model trained for the format loses nothing."""
    weight = np.random.default_rng(0).standard_normal((24, 96)).astype(np.float32)
    given = {"format": "mxfp4-pack-quantized", "quant_method": "compressed-tensors", "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 32}}}}  # fmt: skip
    packing = packing_of(given, "here")
    assert packing is not None
    found = torch.from_numpy(weight)
    for _ in range(2):
        codes, scales = encoded(found.view(24, -1, 32))
        tensors = {"weight_packed": codes.flatten(1), "weight_scale": scales.flatten(1)}
        module = packing.module(tensors.__getitem__)
        assert isinstance(module, PackedMxfp4Linear) and (module.out_features, module.in_features) == (24, 96)
        read = module.dequantised(torch.float32)
        np.testing.assert_allclose(read.numpy(), oracle(weight), rtol=0, atol=0)
        found = read
    x = torch.randn(3, 96, requires_grad=True)
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, read.sum(0).expand(3, -1))
