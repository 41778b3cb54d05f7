"""finetooth-hooks: the contract between finetooth and its plugins.

Importing this package is cheap: entries, markers and errors are loaded at once, everything else (pydantic, NumPy) on
first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from finetooth_hooks.entries import (
    ENTRY_TYPES,
    Adapter,
    Backend,
    Claim,
    Command,
    Entry,
    Evaluator,
    Family,
    Format,
    Gate,
    Hardware,
    Loader,
    Loss,
    Method,
    Optimizer,
    Processor,
    Quantizer,
    Renderer,
    Reward,
    ScalarHead,
    Schedule,
    Source,
    Store,
    Tracker,
)
from finetooth_hooks.errors import (
    DataError,
    EngineError,
    FinetoothError,
    Interrupted,
    NotFinite,
    PlanError,
    PluginError,
    RecipeError,
    StopRun,
    StoreError,
    UserError,
)
from finetooth_hooks.markers import hookimpl, hookspec

if TYPE_CHECKING:
    from finetooth_hooks.checkpoints import Candidate
    from finetooth_hooks.context import Catalog, CommandContext, Context
    from finetooth_hooks.datum import Chunk, Datum, ImageChunk, TokenChunk
    from finetooth_hooks.engine import (
        Backward,
        Completion,
        Engine,
        EngineInfo,
        Forward,
        Generated,
        Handle,
        Sampling,
        Stepped,
    )
    from finetooth_hooks.examples import Conversation, Example, Message, Parsed, PromptCompletion, Rendered, Row, Text
    from finetooth_hooks.format_functions import row_format
    from finetooth_hooks.losses import Contribution, LossData, LossFn, LossResult, LossSpec, LossState, Metric, Outputs
    from finetooth_hooks.options import NoOptions, Options
    from finetooth_hooks.plan import Decision, MemoryEstimate, Pick, Plan, TrainSettings
    from finetooth_hooks.reports import DataReport, Evaluation, Outcome, Prepared, Sample, StepReport
    from finetooth_hooks.run import Run

CONTRACT_VERSION = "1.0.0"
"""Version of the contract; plugins require `finetooth-hooks>=1,<2`."""

_LAZY = {
    "Catalog": "context",
    "CommandContext": "context",
    "Context": "context",
    "Candidate": "checkpoints",
    "Chunk": "datum",
    "Datum": "datum",
    "ImageChunk": "datum",
    "TokenChunk": "datum",
    "Backward": "engine",
    "Completion": "engine",
    "Engine": "engine",
    "EngineInfo": "engine",
    "Forward": "engine",
    "Generated": "engine",
    "Handle": "engine",
    "Sampling": "engine",
    "Stepped": "engine",
    "Conversation": "examples",
    "Example": "examples",
    "Message": "examples",
    "Parsed": "examples",
    "PromptCompletion": "examples",
    "Rendered": "examples",
    "Row": "examples",
    "Text": "examples",
    "row_format": "format_functions",
    "Contribution": "losses",
    "LossData": "losses",
    "LossFn": "losses",
    "LossResult": "losses",
    "LossSpec": "losses",
    "LossState": "losses",
    "Metric": "losses",
    "Outputs": "losses",
    "NoOptions": "options",
    "Options": "options",
    "Decision": "plan",
    "MemoryEstimate": "plan",
    "Pick": "plan",
    "Plan": "plan",
    "TrainSettings": "plan",
    "DataReport": "reports",
    "Evaluation": "reports",
    "Outcome": "reports",
    "Prepared": "reports",
    "Sample": "reports",
    "StepReport": "reports",
    "Run": "run",
}

__all__ = [
    "Adapter",
    "Backend",
    "Backward",
    "CONTRACT_VERSION",
    "Candidate",
    "Catalog",
    "Chunk",
    "Claim",
    "Command",
    "CommandContext",
    "Completion",
    "Context",
    "Contribution",
    "Conversation",
    "DataError",
    "DataReport",
    "Datum",
    "Decision",
    "ENTRY_TYPES",
    "Engine",
    "EngineError",
    "EngineInfo",
    "Entry",
    "Evaluation",
    "Evaluator",
    "Example",
    "Family",
    "FinetoothError",
    "Format",
    "Forward",
    "Gate",
    "Generated",
    "Handle",
    "Hardware",
    "ImageChunk",
    "Interrupted",
    "Loader",
    "Loss",
    "LossData",
    "LossFn",
    "LossResult",
    "LossSpec",
    "LossState",
    "MemoryEstimate",
    "Message",
    "Method",
    "Metric",
    "NoOptions",
    "NotFinite",
    "Optimizer",
    "Options",
    "Outcome",
    "Outputs",
    "Parsed",
    "Pick",
    "Plan",
    "PlanError",
    "PluginError",
    "Prepared",
    "Processor",
    "PromptCompletion",
    "Quantizer",
    "RecipeError",
    "Rendered",
    "Renderer",
    "Reward",
    "Row",
    "Run",
    "Sample",
    "Sampling",
    "ScalarHead",
    "Schedule",
    "Source",
    "StepReport",
    "Stepped",
    "StopRun",
    "Store",
    "StoreError",
    "Text",
    "TokenChunk",
    "Tracker",
    "TrainSettings",
    "UserError",
    "hookimpl",
    "hookspec",
    "row_format",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"finetooth_hooks.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
