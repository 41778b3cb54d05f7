"""Options and builder of the loader `transformers`, apart from what it builds: a reader of its options
imports neither torch nor transformers."""

from __future__ import annotations

from finetooth_hooks import Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Loader
from finetooth_modelfiles.rope_scaling import RopeScaling


class TransformersOptions(Options):
    """Options of `transformers`."""

    revision: str | None = None
    """Branch, tag or commit of a hub id; null is the main branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. It can do anything you can do, so read it first."""
    rope_scaling: RopeScaling | None = None
    """Adds positions beyond those the model was made for, such as `{rope_type: yarn, factor: 4}`. A trained or merged
    model has them too; an adapter needs a base with the same scaling."""
    dequantize: bool = False
    """Of a model stored in fp8, MXFP8 or MXFP4: its weights are made plain numbers as they are read, so that `full` can
    train them, at twice to four times the memory."""


def build(options: TransformersOptions, context: Context) -> Loader:
    """Builder of the loader `transformers`."""
    from finetooth_transformers.loader import TransformersLoader

    return TransformersLoader(options, context)
