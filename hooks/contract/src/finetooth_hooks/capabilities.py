"""Capabilities: names of optional abilities of an object.

Callers check only the object's `capabilities`. The base class of a kind (`finetooth_hooks.bases`) has the methods of
every capability, which raise an error. Methods with a default answer (`Source.files`, `Adapter.low_rank`,
`Method.roles`, ...) need no capability: the base class answers "none".
"""

from __future__ import annotations

from collections.abc import Mapping

ENGINE: Mapping[str, str] = {
    "handles": "forward keeps a graph that backward can be asked for later (`backward`)",
    "gradients": "backward takes dL/dlogprob from the caller",
    "zero_grad": "accumulated gradients can be dropped (`zero_grad`)",
    "generate": "samples with a KV cache (`generate`)",
    "continuous": "requests join and leave a batch that is being sampled (`running_batch`)",
    "adapters": "rows of one running batch may sample adapters that the engine holds in addition to its own (`hold`)",
    "full_state": "save and load carry everything that trains, bit for bit",
    "snapshots": "its state can be copied in memory and taken back (`snapshot`, `rollback`)",
    "interrupt": "a primitive can be broken off between two micro-batches (`interrupt_when`)",
    "reference": "the policy without its adapter serves as the reference role",
    "depths": "gives `hidden` of any layer, by its number or as a fraction of the depth (`OutputName`)",
    "trees": "computes data whose segments continue one another (`Datum.parents`), where the model's code allows it",
    "head": "built with the scalar head that a method asks for, it gives `values` and `scores` and trains the head",
    "usage": "says what it takes of its device, and what the device can do (`usage`, `peak_flops`)",
    "profile": "records what its steps spend time and memory on (`profile`)",
    "roles": "holds frozen copies of the policy and other models as roles (`RoleModel`, `move_role`)",
    "step_settings": "a step takes numbers of its own in place of the recipe's (`StepSettings`)",
    "shared_base": "engines of one process can hold one copy of a frozen base (option `share_base`)",
    "module": "the framework's own model can be had, with gradients that `step` applies (`module`)",
    "release": "a handle can be given up (`release`)",
    "ranks": "trains with other ranks: gradients are summed over a `PlacePart.collective`, and a call may hold no data",
    "own_prompts": "ranks may sample different prompts at the same time (`generate`), or none",
    "own_requests": "ranks may have different requests in their running batches (`running_batch`), or none",
    "optimizers": "does what every capability of an optimizer asks for (`OPTIMIZER`)",
    "temperature": "log-probabilities and entropies are taken at the temperature of a loss (`LossSpec.temperature`)",
    "min_p": "samples among tokens that are likely enough compared with the likeliest (`Sampling.min_p`)",
    "repetition_penalty": "samples with a repetition penalty, and takes log-probabilities and entropies with that of a "
    "loss (`Sampling.repetition_penalty`, `LossSpec.repetition_penalty`)",
    "additions": "samples with additions to logits (`Sampling.presence_penalty`, `Sampling.frequency_penalty`, "
    "`Sampling.logit_bias`)",
    "embedding_noise": "embeddings of what trains get noise (`TrainSettings.embedding_noise`)",
    "schema": "completions can be held to a form (`Sampling.schema`, `regex` and `grammar`)",
    "weights": "what trains can be read and set, in the precision that the optimizer holds (`weights`, `set_weights`)",
}
"""Beyond forward, forward_backward, step, logprobs, save, load, export and restore. A backend's entry lists the most
that its engines can do; an engine lists its own."""

SOURCE: Mapping[str, str] = {
    "portions": "rows lie in bytes that are quickly cut into portions, so that several processes can read them "
    "(`portions`, `read`, `refusal`)",
}
"""Beyond `rows`."""

ADAPTER: Mapping[str, str] = {
    "disable": "the model can compute as its base does (`disabled`); the entry says so too (`can_disable`)",
    "additions": "an artifact can be read as low-rank additions to linear modules of the base (`additions`)",
    "changes": "it changes the model between steps: layers take turns, an addition is merged and started again "
    "(`at_step`, `after_step`, `held`, `rate_factor`)",
    "makes_up": "begins with what a quantizer takes from the base, which a recipe's `quantization` must store",
    "begins_apart": "before the first step the model does not compute as its base does (`resume_from`): the base "
    "cannot be the reference, which is a copy of what trains, as the run begins with it",
    "rounds": "an artifact holds the trained weights as the model computed with them, rounded, not as they trained",
    "low_rank": "as its options stand, `low_rank` says what every layer over plain numbers computes, in training too: "
    "a backend that computes that itself keeps nothing of `token_bytes`",
    "draws": "its modules draw again for every row, as dropout does: rows that begin alike are computed apart",
    "fold": "an artifact can be folded into its base (`fold`), so that a run can be the model of another",
    "fold_tensors": "an artifact can be folded into a base that is read tensor by tensor (`fold_tensors`)",
}
"""Beyond `trained_parameters`, `apply`, `export` and `restore`."""

TRACKER: Mapping[str, str] = {
    "resume": "takes back what lies beyond the step at which a run resumes (`resume`); others are started again",
}
"""Beyond `start`, `step`, `evaluated` and `end`."""

TOKENIZER: Mapping[str, str] = {
    "stretches": "encodes several texts at once and says where a part of each begins (`encode_from`)",
    "changes": "gives a copy of itself with other tokens (`changed`)",
}
"""Beyond encoding and decoding."""

METHOD: Mapping[str, str] = {
    "own_engine": "as its options stand it draws from the engine that trains, which must `generate`",
    "several_calls": "as its options stand it gives the data of a step in several calls, which the plan counts",
}
"""Beyond `prepare` and `steps`."""

SAMPLER: Mapping[str, str] = {
    "own_engine": "draws from the engine that trains, whose own pass over the same data then says, bit for bit, the "
    "log-probabilities of what was drawn",
    "other_weights": "gives what other weights than this run's may have drawn, whatever version it says: how far they "
    "are from the trainer's is allowed",
}
"""Beyond `sample`."""

ENVIRONMENT: Mapping[str, str] = {
    "seeded": "task, seed and turns decide all that an episode says, so that a run can be done again bit for bit",
    "concurrent": "its episodes may be called from several threads at a time",
}
"""Beyond `episode`."""

FACE: Mapping[str, str] = {
    "modelless": "has nothing to do with models: a server of such faces alone needs none",
    "stdio": "speaks through standard input and output to the process that started the server (`stdio`)",
}
"""Beyond `app`."""

OPTIMIZER: Mapping[str, str] = {
    "averages": "the weights to evaluate and to keep are averages of those at which gradients are taken (`averaged`)",
    "in_turn": "trains some of the parameters at a time, and needs no gradients of the others (`active`)",
    "in_backward": "its update of a parameter asks for nothing but that parameter's gradient, and is made as soon as "
    "backward has it; the gradient is then dropped. One backward is one step, and nothing is clipped to a common norm",
    "masterless": "updates weights in bf16 as they are, without copies of them in fp32",
    "corrected": "keeps one byte more of state for each weight than it says: what rounding it lost",
    "host_state": "keeps its state in host memory, and on the device that of one parameter at a time",
    "disk_state": "keeps its state in files, and in memory that of one parameter at a time",
}
"""Beyond `create` and `state_bytes`. Only a backend whose engines have the capability `optimizers` takes one that has
any."""
QUANTIZER: Mapping[str, str] = {
    "calibrate": "stores the linear modules of a model by what they read (`calibrate`); for that it is loaded whole",
}
"""Beyond `takes` and `linear`."""

LOADER: Mapping[str, str] = {
    "meta": "gives a model without memory for its weights (`load` with `meta`)",
    "modules": "says which linear modules a model has, and their sizes (`modules`)",
    "tensors": "gives a model tensor by tensor (`tensors`), for writers of one that is larger than memory",
    "widen": "gives a loaded model room for more tokens (`widen`)",
    "write": "writes a model in transformers' layout (`write`)",
}
"""Beyond `describe`, `tokenizer` and `load`."""

STRATEGY: Mapping[str, str] = {
    "islands": "groups of ranks train apart, or compute the same rows: an engine gets a line of its own (`island`)",
    "optimizer": "divides the optimizer's state, and nothing else, among ranks (`shard_optimizer`)",
    "shards": "divides the model, its layers, or the positions of rows, among ranks: each holds a part (`sharding`)",
    "traffic": "says what ranks will send, before a run (`traffic`)",
}
"""Capabilities of an entry: what a strategy has beyond `open`, `wrap`, `spread`, `digest` and `close`."""

LAUNCHER: Mapping[str, str] = {
    "machines": "starts ranks on several machines (`start` takes `nodes`)",
}
"""Capabilities of an entry: what a launcher has beyond `rank` and `start`."""

CAPABILITIES: Mapping[str, Mapping[str, str]] = {
    "engine": ENGINE,
    "source": SOURCE,
    "adapter": ADAPTER,
    "tracker": TRACKER,
    "tokenizer": TOKENIZER,
    "face": FACE,
    "sampler": SAMPLER,
    "environment": ENVIRONMENT,
    "quantizer": QUANTIZER,
    "method": METHOD,
    "evaluator": {},
    "exporter": {},
    "loader": LOADER,
    "optimizer": OPTIMIZER,
    "renderer": {},
}
"""The capabilities of each kind. Evaluators, exporters and renderers have none yet."""

__all__ = [
    "ADAPTER", "CAPABILITIES", "ENGINE", "ENVIRONMENT", "FACE", "LAUNCHER", "LOADER", "METHOD", "OPTIMIZER", "SAMPLER",
    "SOURCE", "STRATEGY", "TOKENIZER", "TRACKER",
]  # fmt: skip
