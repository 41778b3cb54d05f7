"""Imports every module that registers checks; the order here is the order in which they run."""

from __future__ import annotations

from finetooth_kit import (
    attention_checks,
    backend_checks,
    capability_checks,
    data_checks,
    entry_checks,
    environment_checks,
    face_checks,
    kernel_checks,
    loss_checks,
    method_checks,
    model_checks,
    observer_checks,
    processor_checks,
    quantizer_checks,
    release_checks,
    renderer_checks,
    sampler_checks,
    scale_checks,
    store_checks,
    training_checks,
)

__all__ = [
    "attention_checks",
    "backend_checks",
    "data_checks",
    "entry_checks",
    "environment_checks",
    "face_checks",
    "kernel_checks",
    "loss_checks",
    "method_checks",
    "model_checks",
    "capability_checks",
    "observer_checks",
    "processor_checks",
    "quantizer_checks",
    "release_checks",
    "renderer_checks",
    "sampler_checks",
    "scale_checks",
    "store_checks",
    "training_checks",
]
