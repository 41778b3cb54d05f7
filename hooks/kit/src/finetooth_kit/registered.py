"""Imports every module that registers checks; the order here is the order in which they run."""

from __future__ import annotations

from finetooth_kit.entries import (
    attention,
    backend,
    capability,
    data,
    entry,
    environment,
    face,
    kernel,
    loss,
    method,
    model,
    observer,
    processor,
    quantizer,
    release,
    renderer,
    sampler,
    scale,
    store,
    training,
)

__all__ = [
    "attention",
    "backend",
    "data",
    "entry",
    "environment",
    "face",
    "kernel",
    "loss",
    "method",
    "model",
    "capability",
    "observer",
    "processor",
    "quantizer",
    "release",
    "renderer",
    "sampler",
    "scale",
    "store",
    "training",
]
