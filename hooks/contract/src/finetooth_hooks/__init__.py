"""finetooth-hooks: the contract between finetooth and its plugins.

Importing this package is cheap: entries, markers and errors are loaded at once, everything else (pydantic, NumPy) on
first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from finetooth_hooks.attention import AttentionServes
from finetooth_hooks.claims import Claim
from finetooth_hooks.entries import (
    ENTRY_TYPES,
    Adapter,
    Attention,
    Backend,
    Command,
    Entry,
    Environment,
    Evaluator,
    Exporter,
    Face,
    Family,
    Format,
    Gate,
    Hardware,
    Kernel,
    Launcher,
    Loader,
    Loss,
    Method,
    Optimizer,
    Page,
    Processor,
    Quantizer,
    ReleaseGate,
    Renderer,
    Reward,
    Sampler,
    Schedule,
    Source,
    Store,
    Strategy,
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
    UpstreamError,
    UserError,
)
from finetooth_hooks.heads import ScalarHead
from finetooth_hooks.markers import hookimpl, hookspec
from finetooth_hooks.savings import Saving
from finetooth_hooks.serves import Serves

if TYPE_CHECKING:
    from finetooth_hooks.attention import AttentionNeeds, LayerKind, Lengths
    from finetooth_hooks.backends import (
        BackendPlan,
        BasePart,
        DataPart,
        Device,
        EngineRequest,
        HardwareFacts,
        PlacePart,
        PlanRequest,
        RoleRequest,
        StepCost,
        TextPart,
        TrainsPart,
        UpdatesPart,
    )
    from finetooth_hooks.bases import (
        BASES,
        AdapterBase,
        Capable,
        EngineBase,
        EnvironmentBase,
        EpisodeBase,
        EvaluatorBase,
        ExporterBase,
        FaceBase,
        LoaderBase,
        MethodBase,
        OptimizerBase,
        QuantizerBase,
        RendererBase,
        SamplerBase,
        SourceBase,
        TokenizerBase,
        TrackerBase,
    )
    from finetooth_hooks.checkpoints import Candidate, Kept, SnapshotStore
    from finetooth_hooks.collectives import Collective
    from finetooth_hooks.context import Catalog, CommandContext, Context, Opened, Registered
    from finetooth_hooks.continuous import RunningBatch, Written
    from finetooth_hooks.datum import (
        AudioChunk,
        BoolArray,
        Chunk,
        Datum,
        FloatArray,
        ImageChunk,
        IntArray,
        MediumChunk,
        TokenChunk,
        VideoChunk,
    )
    from finetooth_hooks.engine import (
        OBSERVERS_SPAN,
        STEP_SPAN,
        Backward,
        Counts,
        Engine,
        EngineInfo,
        Forward,
        Handle,
        RoleModel,
        Snapshot,
        Spans,
        Stepped,
        StepSettings,
        Usage,
    )
    from finetooth_hooks.entries import Tier, Together
    from finetooth_hooks.environments import Answer, Episode, Observation, Turn
    from finetooth_hooks.examples import (
        ROLES,
        Audio,
        Conversation,
        Example,
        Image,
        Labelled,
        LeftOut,
        Medium,
        MediumKind,
        Message,
        Pair,
        Parsed,
        Placed,
        PromptCompletion,
        ReadRow,
        Rendered,
        RenderedMedium,
        Row,
        Segments,
        Side,
        Stepwise,
        Task,
        Text,
        TrainOn,
        Video,
        Weighted,
    )
    from finetooth_hooks.exporters import Exported, ExportSource
    from finetooth_hooks.faces import Asgi, FaceCaller, FacePiece, FaceRoute, FaceService, Json, PageService, StackPart
    from finetooth_hooks.format_functions import row_format
    from finetooth_hooks.held import Addition, HeldAdapter
    from finetooth_hooks.kernels import ComputePart, PickedKernel, PickKernels, Wanted
    from finetooth_hooks.layers import Experts, LayerFacts
    from finetooth_hooks.loss_totals import LossTotals
    from finetooth_hooks.losses import (
        Array,
        Contribution,
        LossData,
        LossFn,
        LossResult,
        LossSpec,
        LossState,
        Metric,
        Outputs,
        Per,
    )
    from finetooth_hooks.models import (
        Block,
        Head,
        LowRank,
        ModelFacts,
        ModelInfo,
        ModelTensors,
        Tokenizer,
    )
    from finetooth_hooks.options import NoOptions, Options
    from finetooth_hooks.outputs import OutputName
    from finetooth_hooks.plan import Decision, MemoryEstimate, Pick, Plan, TrainSettings
    from finetooth_hooks.preparation import Limit, Preparation, PreparedRows, Render, Rendering
    from finetooth_hooks.problems import Problems
    from finetooth_hooks.quantizers import Stored
    from finetooth_hooks.releases import ReleaseVersion, Verdict
    from finetooth_hooks.renderers import MediumPlace
    from finetooth_hooks.reports import DataReport, Evaluation, Outcome, Prepared, Sample, StepReport
    from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
    from finetooth_hooks.run import Run
    from finetooth_hooks.sampling import Completion, Generated, Sampling
    from finetooth_hooks.sources import Examples, Portion
    from finetooth_hooks.strategies import Rank

CONTRACT_VERSION = "2.0.0"
"""Version of the contract, by SemVer: what is removed, renamed, newly required or means something else is a major
version; what is added and may be left out (a hook, an argument of one, a field with a default, a capability) a minor
one, from the first release on; words and checks of the kit a patch. Each break has a line in
`finetooth_hooks.changes`. Plugins require `finetooth-hooks>=2,<3`, and later `>=2.N,<3` where they use what came with
2.N."""

# fmt: off
_LAZY = {
    name: module
    for module, names in {
        "attention": "AttentionNeeds LayerKind Lengths",
        "backends": (
            "BackendPlan BasePart DataPart Device EngineRequest HardwareFacts PlacePart PlanRequest RoleRequest "
            "StepCost TextPart TrainsPart UpdatesPart"
        ),
        "bases": (
            "AdapterBase BASES Capable EngineBase EnvironmentBase EpisodeBase EvaluatorBase ExporterBase FaceBase "
            "LoaderBase MethodBase OptimizerBase QuantizerBase RendererBase SamplerBase SourceBase TokenizerBase "
            "TrackerBase"
        ),
        "checkpoints": "Candidate Kept SnapshotStore",
        "collectives": "Collective",
        "context": "Catalog CommandContext Context Opened Registered",
        "continuous": "RunningBatch Written",
        "datum": "AudioChunk BoolArray Chunk Datum FloatArray ImageChunk IntArray MediumChunk TokenChunk VideoChunk",
        "engine": (
            "Backward Counts Engine EngineInfo Forward Handle OBSERVERS_SPAN RoleModel STEP_SPAN Snapshot Spans "
            "StepSettings Stepped Usage"
        ),
        "entries": "Tier Together",
        "environments": "Answer Episode Observation Turn",
        "examples": (
            "Audio Conversation Example Image Labelled LeftOut Medium MediumKind Message Pair Parsed Placed "
            "PromptCompletion ROLES ReadRow Rendered RenderedMedium Row Segments Side Stepwise Task Text TrainOn Video "
            "Weighted"
        ),
        "exporters": "ExportSource Exported",
        "faces": "Asgi FaceCaller FacePiece FaceRoute FaceService Json PageService StackPart",
        "format_functions": "row_format",
        "held": "Addition HeldAdapter",
        "kernels": "ComputePart PickKernels PickedKernel Wanted",
        "loss_totals": "LossTotals",
        "losses": "Array Contribution LossData LossFn LossResult LossSpec LossState Metric Outputs Per",
        "layers": "Experts LayerFacts",
        "models": "Block Head LowRank ModelFacts ModelInfo ModelTensors Tokenizer",
        "options": "NoOptions Options",
        "outputs": "OutputName",
        "plan": "Decision MemoryEstimate Pick Plan TrainSettings",
        "preparation": "Limit Preparation PreparedRows Render Rendering",
        "problems": "Problems",
        "quantizers": "Stored",
        "releases": "ReleaseVersion Verdict",
        "renderers": "MediumPlace",
        "reports": "DataReport Evaluation Outcome Prepared Sample StepReport",
        "rollouts": "Prompt Rollout Sampled",
        "run": "Run",
        "sampling": "Completion Generated Sampling",
        "sources": "Examples Portion",
        "strategies": "Rank",
    }.items()
    for name in names.split()
}
"""Where names are that are loaded on first use."""

__all__ = [
    "Adapter", "AdapterBase", "Addition", "Answer", "Array", "Asgi", "Attention", "AttentionNeeds", "AttentionServes",
    "Audio", "AudioChunk", "BASES", "Backend", "BackendPlan", "Backward", "BasePart", "Block", "BoolArray",
    "CONTRACT_VERSION", "Candidate", "Capable", "Catalog", "Chunk", "Claim", "Collective", "Command", "CommandContext",
    "Completion", "ComputePart", "Context", "Contribution", "Conversation", "Counts", "DataError", "DataPart",
    "DataReport", "Datum", "Decision", "Device", "ENTRY_TYPES", "Engine", "EngineBase", "EngineError", "EngineInfo",
    "EngineRequest", "Entry", "Environment", "EnvironmentBase", "Episode", "EpisodeBase", "Evaluation", "Evaluator",
    "EvaluatorBase", "Example", "Examples", "Experts",
    "ExportSource", "Exported", "Exporter", "ExporterBase", "Face", "FaceBase",
    "FaceCaller", "FacePiece", "FaceRoute", "FaceService", "Family", "FinetoothError", "FloatArray", "Format",
    "Forward", "Gate", "Generated", "Handle", "Hardware", "HardwareFacts", "Head", "HeldAdapter", "Image", "ImageChunk",
    "IntArray", "Interrupted", "Json", "Kept", "Kernel", "Labelled", "Launcher", "LayerFacts",
    "LayerKind", "LeftOut", "Lengths",
    "Limit", "Loader", "LoaderBase", "Loss", "LossData", "LossFn", "LossResult", "LossSpec", "LossState", "LossTotals",
    "LowRank", "Medium", "MediumChunk", "MediumKind", "MediumPlace", "MemoryEstimate", "Message", "Method",
    "MethodBase", "Metric", "ModelFacts", "ModelInfo", "ModelTensors", "NoOptions", "NotFinite", "OBSERVERS_SPAN",
    "Observation", "Opened", "Optimizer", "OptimizerBase", "Options", "Outcome", "OutputName", "Outputs", "Page",
    "PageService", "Pair", "Parsed", "Per", "Pick", "PickKernels", "PickedKernel", "PlacePart", "Placed", "Plan",
    "PlanError", "PlanRequest", "PluginError", "Portion", "Preparation", "Prepared", "PreparedRows", "Problems",
    "Processor", "Prompt", "PromptCompletion", "Quantizer", "QuantizerBase", "ROLES", "Rank", "ReadRow", "RecipeError",
    "Registered", "ReleaseGate", "ReleaseVersion", "Render", "Rendered", "RenderedMedium", "Renderer", "RendererBase",
    "Rendering",
    "Reward", "RoleModel", "RoleRequest", "Rollout", "Row", "Run", "RunningBatch", "STEP_SPAN", "Sample", "Sampled",
    "Sampler", "SamplerBase", "Sampling", "Saving", "ScalarHead", "Schedule", "Segments", "Serves", "Side", "Snapshot",
    "SnapshotStore", "Source", "SourceBase", "Spans", "StackPart", "StepCost", "StepReport", "StepSettings", "Stepped",
    "Stepwise", "StopRun", "Store", "StoreError", "Stored", "Strategy", "Task", "Text", "TextPart", "Tier", "Together",
    "TokenChunk", "Tokenizer", "TokenizerBase", "Tracker", "TrackerBase", "TrainOn", "TrainSettings", "TrainsPart",
    "Turn", "UpdatesPart", "UpstreamError", "Usage", "UserError", "Verdict", "Video", "VideoChunk", "Wanted",
    "Weighted", "Written", "hookimpl", "hookspec", "row_format",
]
# fmt: on


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"finetooth_hooks.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
