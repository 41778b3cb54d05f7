"""Optimizers against their papers in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_hooks import RecipeError
from finetooth_standard import optimizers as built
from finetooth_torchshared.optimizers import ONE_PASS
from pydantic import ValidationError

torch.set_num_threads(1)
STEPS = 7


def gradients(seed=0):
    """STEPS gradients for a matrix (3, 4) and a vector (4,), spread over several orders of magnitude."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-3, 2, size=(STEPS, 1, 1))
    return scale * rng.standard_normal((STEPS, 3, 4)), rng.standard_normal((STEPS, 4))


def start(seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((3, 4)), rng.standard_normal(4)


def train(optimizer, rates=None):
    """Weights after STEPS updates in float64: (matrix, vector)."""
    parameters = [torch.nn.Parameter(torch.tensor(values)) for values in start()]
    made = optimizer.create([("proj.weight", parameters[0]), ("norm.weight", parameters[1])])
    for step in range(STEPS):
        for group in made.param_groups:
            group["lr"] = optimizer.learning_rate * (1 if rates is None else rates[step])
        for parameter, values in zip(parameters, gradients(), strict=True):
            parameter.grad = torch.tensor(values[step])
        made.step()
    return [parameter.detach().numpy() for parameter in parameters], made


def adamw(p, grads, lr, betas, eps, decay, rates):
    m = v = np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        p = p * (1 - lr * rate * decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def lion(p, grads, lr, betas, decay, rates):
    m = np.zeros_like(p)
    for g, rate in zip(grads, rates, strict=True):
        p = p - lr * rate * (np.sign(betas[0] * m + (1 - betas[0]) * g) + decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
    return p


def sgd(p, grads, lr, momentum, decay, nesterov, rates):
    m = None
    for g, rate in zip(grads, rates, strict=True):
        g = g + decay * p
        m = g if m is None else momentum * m + g
        p = p - lr * rate * (g + momentum * m if nesterov else m)
    return p


def adafactor(p, grads, lr, clip, decay, rates):
    """Shazeer & Stern (2018), algorithms 4 and 5, with relative steps; vectors keep the whole second moment."""
    eps1, eps2 = np.finfo(np.float64).eps, 1e-3
    row, column, whole = np.zeros((*p.shape[:-1], 1)), np.zeros((1, p.shape[-1])), np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        keep = 1 - t**-0.8
        p_lr = lr * rate
        size = max(eps2, np.sqrt(np.mean(p**2))) * min(p_lr, 1 / np.sqrt(t))
        p = p * (1 - p_lr * decay)
        if p.ndim > 1:
            row = keep * row + (1 - keep) * np.mean(g**2, axis=-1, keepdims=True)
            column = keep * column + (1 - keep) * np.mean(g**2, axis=-2, keepdims=True)
            v = row @ column / np.maximum(np.mean(row, axis=-2, keepdims=True), eps1)
        else:
            whole = keep * whole + (1 - keep) * g**2
            v = whole
        update = g / np.sqrt(np.maximum(v, eps1**2))
        update = update / max(1.0, np.sqrt(np.mean(update**2)) / clip)
        p = p - size * update
    return p


RATES = np.linspace(1, 0.2, STEPS)


def check(optimizer, oracle):
    got, made = train(optimizer, RATES)
    matrix, vector = gradients()
    starts = start()
    np.testing.assert_allclose(got[0], oracle(starts[0], matrix, 0.1), rtol=1e-9)
    np.testing.assert_allclose(got[1], oracle(starts[1], vector, 0.0), rtol=1e-9)
    return made


def test_adamw_is_the_papers():
    options = built.AdamWOptions(learning_rate=0.03, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    check(built.build_adamw(options, None), lambda p, g, wd: adamw(p, g, 0.03, (0.8, 0.95), 1e-6, wd, RATES))


@pytest.mark.parametrize(("apart", "decay"), [(False, 0.1), (True, 5e-4)])
def test_optimi_adamw_is_that_of_optimi(apart, decay):
    optimi = pytest.importorskip("optimi")
    options = built.OptimiAdamWOptions(learning_rate=0.03, weight_decay=decay, decouple_lr=apart)
    got, _ = train(built.build_optimi_adamw(options, None), RATES)
    theirs = [torch.nn.Parameter(torch.tensor(values)) for values in start()]
    groups = [{"params": [theirs[0]]}, {"params": [theirs[1]], "weight_decay": 0.0}]
    made = optimi.AdamW(groups, lr=0.03, weight_decay=decay, decouple_lr=apart, triton=False, foreach=False)
    for step in range(STEPS):
        for group in made.param_groups:
            group["lr"] = 0.03 * RATES[step]
        for parameter, values in zip(theirs, gradients(), strict=True):
            parameter.grad = torch.tensor(values[step])
        made.step()
    for own, other in zip(got, theirs, strict=True):
        np.testing.assert_allclose(own, other.detach().numpy(), rtol=1e-9)


def test_lion_is_the_papers():
    options = built.LionOptions(learning_rate=0.03, betas=(0.85, 0.98), weight_decay=0.1)
    check(built.build_lion(options, None), lambda p, g, wd: lion(p, g, 0.03, (0.85, 0.98), wd, RATES))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_the_formula(momentum, nesterov):
    options = built.SgdOptions(learning_rate=0.03, momentum=momentum, nesterov=nesterov, weight_decay=0.1)
    check(built.build_sgd(options, None), lambda p, g, wd: sgd(p, g, 0.03, momentum, wd, nesterov, RATES))


def test_adafactor_is_the_papers():
    options = built.AdafactorOptions(learning_rate=0.03, clip=1.2, weight_decay=0.1)
    check(built.build_adafactor(options, None), lambda p, g, wd: adafactor(p, g, 0.03, 1.2, wd, RATES))


ALL = [
    (built.build_adamw, built.AdamWOptions, {"exp_avg", "exp_avg_sq", "step"}),
    (built.build_sgd, built.SgdOptions, {"momentum_buffer"}),
    (built.build_adafactor, built.AdafactorOptions, {"row_var", "col_var", "variance", "step"}),
    (built.build_lion, built.LionOptions, {"momentum"}),
]


@pytest.mark.parametrize(("build", "options", "_"), ALL)
def test_norms_and_biases_decay_only_when_asked(build, options, _):
    parameters = [
        ("layer.weight", torch.nn.Parameter(torch.ones(2, 2))),
        ("layer.bias", torch.nn.Parameter(torch.ones(2))),
        ("norm.weight", torch.nn.Parameter(torch.ones(2))),
    ]
    groups = build(options(weight_decay=0.1), None).create(parameters).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (2, 0.0)]
    groups = build(options(weight_decay=0.1, decay_norms=True), None).create(parameters).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(3, 0.1)]
    groups = build(options(), None).create(parameters[1:]).param_groups
    assert [len(g["params"]) for g in groups] == [2]
    with pytest.raises(ValueError, match="no parameter"):
        build(options(), None).create([])


@pytest.mark.parametrize(("build", "options", "names"), ALL)
def test_state_continues_exactly(build, options, names):
    """What `state_dict` holds is all there is: an optimizer restored from it goes on as if never stopped."""
    optimizer = build(options(), None)

    def fresh():
        parameter = torch.nn.Parameter(torch.tensor(start()[0]))
        return parameter, optimizer.create([("w", parameter)])

    straight, made = fresh()
    for values in gradients()[0]:
        straight.grad = torch.tensor(values)
        made.step()
    stopped, first = fresh()
    for values in gradients()[0][:3]:
        stopped.grad = torch.tensor(values)
        first.step()
    _, second = fresh()
    second.param_groups[0]["params"][0].data.copy_(stopped.data)
    second.load_state_dict(first.state_dict())
    resumed = second.param_groups[0]["params"][0]
    for values in gradients()[0][3:]:
        resumed.grad = torch.tensor(values)
        second.step()
    assert torch.equal(resumed, straight)
    for state in made.state_dict()["state"].values():
        assert set(state) <= names


@pytest.mark.parametrize(
    "refused",
    [
        lambda: built.AdamWOptions(learning_rate=0),
        lambda: built.AdamWOptions(betas=(0.9, 1.0)),
        lambda: built.AdamWOptions(betas=(0.9,)),
        lambda: built.AdamWOptions(learning_rate=float("nan")),
        lambda: built.LionOptions(weight_decay=-1),
        lambda: built.SgdOptions(momentum=1.5),
        lambda: built.AdafactorOptions(beta2_decay=0.1),
        lambda: built.AdamWOptions(lr=1e-3),
    ],
)
def test_options_out_of_range_are_refused(refused):
    with pytest.raises(ValidationError):
        refused()


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(RecipeError, match=r"optimizer\.nesterov"):
        built.build_sgd(built.SgdOptions(nesterov=True), None)


def test_parameters_without_a_gradient_stay():
    for build, options, _ in ALL:
        parameter = torch.nn.Parameter(torch.ones(2, 2))
        made = build(options(weight_decay=0.5), None).create([("w", parameter)])
        made.step()
        assert torch.equal(parameter, torch.ones(2, 2))


@pytest.mark.parametrize("build", [built.build_adamw, built.build_sgd, built.build_lion, built.build_adafactor])
@pytest.mark.parametrize("turned", ["weight", "gradient"])
def test_how_weights_and_gradients_lie_in_memory_changes_nothing(build, turned):
    """A kernel that reads memory as it lies would take the gradient of another weight."""

    def turn(values, yes):
        return torch.tensor(values.T.copy()).t() if yes else torch.tensor(values)

    def trained(turned):
        options = {
            built.build_adamw: built.AdamWOptions, built.build_sgd: built.SgdOptions,
            built.build_lion: built.LionOptions, built.build_adafactor: built.AdafactorOptions,
        }[build](learning_rate=0.02, weight_decay=0.1)  # fmt: skip
        weight = torch.nn.Parameter(turn(start()[0], turned == "weight"))
        made = build(options, None).create([("proj.weight", weight)])
        for values in gradients()[0]:
            weight.grad = turn(values, turned == "gradient")
            made.step()
        return weight.detach()

    np.testing.assert_allclose(trained(turned), trained(""), rtol=1e-12)


def test_adamw_is_fused_where_torch_has_a_kernel_for_the_device():
    made = built.build_adamw(built.AdamWOptions(), None)
    for device, fused in (("cpu", True), ("meta", None)):
        optimizer = made.create([("w", torch.nn.Parameter(torch.ones(2, 2, device=device)))])
        assert optimizer.defaults["fused"] is fused and bool(optimizer.defaults["foreach"]) is not bool(fused)
    from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

    assert set(_get_fused_kernels_supported_devices()) >= ONE_PASS >= {"cpu", "cuda"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_keeps_a_number_for_each_weight_only_with_momentum(momentum: float) -> None:
    optimizer = built.build_sgd(built.SgdOptions(momentum=momentum), None)
    _, made = train(optimizer)
    kept = sum(t.numel() for state in made.state.values() for t in state.values() if isinstance(t, torch.Tensor))
    assert optimizer.state_bytes(None) == 4 * kept / sum(values.size for values in start())
