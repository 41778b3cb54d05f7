"""finetooth-hooks: the contract between finetooth and its plugins.

Importing this package is cheap: each name is imported from its module on first use. Type checkers read the names in
`__init__.pyi`, which `tools/contract_surface.py --stub` writes from the table here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

CONTRACT_VERSION = "2.0.0"
"""Version of the contract, by SemVer: a removal, a new name, a new requirement or a new meaning is a major version; an
optional addition (a hook, an argument of one, a field with a default, a capability) a minor one, from the first release
on; texts and checks of the kit a patch. Each break has a line in `finetooth_hooks.changes`. Plugins require
`finetooth-hooks>=2,<3`, or later `>=2.N,<3` if they use an addition of 2.N."""

_NAMES = {
    "compute.attention": "AttentionNeeds AttentionServes LayerKind Lengths",
    "compute.backends": (
        "BackendPlan BasePart DataPart Device EngineRequest HardwareFacts PlacePart PlanRequest RoleRequest "
        "StepCost TextPart TrainsPart UpdatesPart"
    ),
    "bases": (
        "AdapterBase BASES ContractBase EngineBase EnvironmentBase EpisodeBase EvaluatorBase ExporterBase FaceBase "
        "LoaderBase MethodBase OptimizerBase QuantizerBase RendererBase SamplerBase SourceBase TokenizerBase "
        "TrackerBase"
    ),
    "checkpoints": "Candidate StepSnapshot SnapshotStore",
    "claims": "Claim",
    "compute.collectives": "Collective",
    "context": "Catalog CommandContext Context Opened Registered",
    "continuous": "RunningBatch Written",
    "data.datum": "AudioChunk BoolArray Chunk Datum FloatArray ImageChunk IntArray MediumChunk TokenChunk VideoChunk",
    "engine": (
        "Backward Counts Engine EngineInfo Forward Handle OBSERVERS_SPAN RoleModel STEP_SPAN Snapshot Spans "
        "StepSettings Stepped Usage"
    ),
    "entries": (
        "Adapter Attention Backend Command ENTRY_TYPES Entry Environment Evaluator Exporter Face Family Format "
        "Gate Hardware Kernel Launcher Loader Loss Method Optimizer Page Processor Quantizer ReleaseGate Renderer "
        "Reward Sampler Schedule Source Store Strategy Tier Together Tracker"
    ),
    "environments": "Answer Episode Observation Turn",
    "errors": (
        "DataError EngineError FinetoothError Interrupted NotFinite PlanError PluginError RecipeError StopRun "
        "StoreError UpstreamError UserError install_command"
    ),
    "data.examples": (
        "Audio Conversation Example Image Labelled LeftOut Medium MediumKind Message Pair Parsed Placed "
        "PromptCompletion ROLES ReadRow Rendered RenderedMedium Row Segments Side Stepwise Task Text TrainOn Video "
        "Weighted"
    ),
    "exporters": "ExportSource Exported",
    "faces": "Asgi FaceCaller FacePiece FaceRoute FaceService Json PageService StackPart",
    "data.format_functions": "row_format",
    "compute.heads": "ScalarHead",
    "compute.held": "Addition HeldAdapter",
    "compute.kernels": "ComputePart PickKernels PickedKernel KernelRequest",
    "compute.layers": "Experts LayerFacts",
    "compute.loss_totals": "LossTotals",
    "compute.losses": "Array Contribution LossData LossFn LossResult LossSpec LossState Metric Outputs Per",
    "markers": "hookimpl hookspec",
    "models": "Block Head LowRank ModelFacts ModelInfo ModelTensors Tokenizer",
    "options": "NoOptions Options",
    "compute.outputs": "OutputName",
    "plan": "Decision MemoryEstimate Pick Plan TrainSettings",
    "data.preparation": "Limit Preparation PreparedRows Render Rendering",
    "data.problems": "Problems",
    "compute.quantizers": "Stored",
    "releases": "ReleaseVersion Verdict",
    "renderers": "MediumPlace",
    "reports": "DataReport Evaluation Outcome Prepared Sample StepReport",
    "rollouts": "Prompt Rollout Sampled",
    "run": "Run",
    "sampling": "Completion Generated Sampling",
    "compute.savings": "Saving",
    "compute.serves": "Serves",
    "data.sources": "Examples Portion",
    "compute.strategies": "Rank",
}
"""Public names of each module."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted([*_MODULES, "CONTRACT_VERSION"])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"finetooth_hooks.{_MODULES[name]}"), name)
    return value
