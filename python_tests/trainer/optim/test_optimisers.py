"""Every optimiser against a calculation by hand, tensor by tensor in numpy, over five steps; and its state on disk."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldreg_kernels.trainer.config.optim import OptimiserConfig
from ldreg_kernels.trainer.methods.base import Group, Time
from ldreg_kernels.trainer.optim import LARC, LARS, build_optimiser, learning_rate, set_learning_rate

STEPS = 5
SHAPES = {
    "layer.weight": (3, 2),
    "layer.bias": (3,),
    "norm.weight": (3,),
    "zero.weight": (2, 2),  # starts at 0
    "flat.weight": (2, 2),  # its gradient is 0
    "flat.bias": (2,),  # the same, and starts at 0
    "unused.weight": (2, 3),  # has no gradient
    "late.weight": (2, 2),  # has none in the first two steps
    "predictor.weight": (2, 2),  # in a group of its own: ten times the rate, constant
}


def starts_and_gradients() -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray | None]]]:
    random = np.random.default_rng(0)
    starts = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    gradients: dict[str, list[np.ndarray | None]] = {
        name: [random.normal(size=shape) for _ in range(STEPS)] for name, shape in SHAPES.items()
    }
    for name in ("zero.weight", "flat.bias"):
        starts[name] = np.zeros(SHAPES[name])
    for name in ("flat.weight", "flat.bias"):
        gradients[name] = [np.zeros(SHAPES[name])] * STEPS
    gradients["unused.weight"] = [None] * STEPS
    gradients["late.weight"][:2] = [None, None]
    return starts, gradients


def by_hand(
    config: OptimiserConfig,
    name: str,
    start: np.ndarray,
    gradients: Sequence[np.ndarray | None],
    rates: Sequence[float],
) -> np.ndarray:
    """One tensor's way, in float64, number by number where that matters."""
    theta = [float(t) for t in start.ravel()]
    bias_or_norm = start.ndim == 1
    decay = config.weight_decay if config.decay_all or not bias_or_norm else 0.0
    first, second, count = [0.0] * len(theta), [0.0] * len(theta), 0

    def length(v: Sequence[float]) -> float:
        return math.sqrt(math.fsum(x * x for x in v))

    for gradient, rate in zip(gradients, rates, strict=True):
        if gradient is None:
            continue
        g = [float(x) for x in gradient.ravel()]
        count += 1
        if config.name == "adamw":
            b1, b2 = config.betas
            for i in range(len(theta)):
                theta[i] -= rate * decay * theta[i]
                first[i] = b1 * first[i] + (1 - b1) * g[i]
                second[i] = b2 * second[i] + (1 - b2) * g[i] ** 2
                top, bottom = first[i] / (1 - b1**count), math.sqrt(second[i] / (1 - b2**count)) + 1e-8
                theta[i] -= rate * top / bottom
            continue
        if config.name == "larc":
            size, slope = length(theta), length(g)
            if size != 0 and slope != 0:
                ratio = config.trust_coefficient * size / (slope + decay * size + 1e-8)
                d = [(g[i] + decay * theta[i]) * ratio for i in range(len(theta))]
            else:
                d = g
        else:
            d = [g[i] + decay * theta[i] for i in range(len(theta))]
            if config.name == "lars" and not bias_or_norm and length(theta) > 0 and length(d) > 0:
                ratio = config.trust_coefficient * length(theta) / length(d)
                d = [x * ratio for x in d]
        for i in range(len(theta)):
            first[i] = config.momentum * first[i] + d[i]
            theta[i] -= rate * (d[i] + config.momentum * first[i] if config.nesterov else first[i])
    return np.array(theta).reshape(start.shape)


def setting(starts: dict[str, np.ndarray]) -> tuple[dict[str, nn.Parameter], list[Group]]:
    parameters = {name: nn.Parameter(torch.tensor(start)) for name, start in starts.items()}
    rest = {name: p for name, p in parameters.items() if not name.startswith("predictor")}
    own = Group({"predictor.weight": parameters["predictor.weight"]}, lr_scale=10.0, constant_lr=True)
    return parameters, [Group(rest), own]


CONFIGS = [
    OptimiserConfig(name="adamw", lr=0.02, weight_decay=0.3, betas=(0.9, 0.95)),
    OptimiserConfig(name="adamw", lr=0.02, weight_decay=0.3, decay_all=True),
    OptimiserConfig(name="sgd", lr=0.1, weight_decay=0.2, momentum=0.0),
    OptimiserConfig(name="sgd", lr=0.1, weight_decay=0.2),
    OptimiserConfig(name="sgd", lr=0.1, weight_decay=0.2, nesterov=True),
    OptimiserConfig(name="lars", lr=5.0, weight_decay=0.2, trust_coefficient=0.02),
    OptimiserConfig(name="lars", lr=5.0, weight_decay=0.0, trust_coefficient=0.02, momentum=0.8),
    OptimiserConfig(name="lars", lr=5.0, weight_decay=0.2, trust_coefficient=0.02, decay_all=True),
    OptimiserConfig(name="larc", lr=5.0, weight_decay=0.2, trust_coefficient=0.02),
    OptimiserConfig(name="larc", lr=5.0, weight_decay=0.2, trust_coefficient=0.02, decay_all=True),
    OptimiserConfig(name="larc", lr=5.0, weight_decay=0.0, trust_coefficient=0.02),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.weight_decay}-{c.decay_all}-{c.momentum}")
def test_five_steps_equal_those_by_hand(config: OptimiserConfig) -> None:
    starts, gradients = starts_and_gradients()
    parameters, groups = setting(starts)
    optimiser = build_optimiser(config, groups)
    rate_of = learning_rate(config, batch_size=256, steps_per_epoch=2)  # two steps of warm-up, three of the cosine
    times = [Time(step, STEPS, step // 2) for step in range(STEPS)]
    for time in times:
        for name, p in parameters.items():
            gradient = gradients[name][time.step]
            p.grad = None if gradient is None else torch.tensor(gradient)
        set_learning_rate(optimiser, rate_of, time)
        optimiser.step()
    for name, p in parameters.items():
        rates = [10 * config.lr] * STEPS if name == "predictor.weight" else [rate_of(time) for time in times]
        expected = by_hand(config, name, starts[name], gradients[name], rates)
        # Five steps of float64 roundings; nothing cancels.
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-14, err_msg=name)
    assert np.array_equal(parameters["unused.weight"].detach().numpy(), starts["unused.weight"])


@pytest.mark.parametrize("kind", [LARS, LARC])
def test_float32_stays_near_float64(kind: type) -> None:
    """What is trained is float32: five steps of it are right to a millionth."""
    starts, gradients = starts_and_gradients()
    config = OptimiserConfig(name=kind.__name__.lower(), lr=5.0, weight_decay=0.2, trust_coefficient=0.02)
    name = "layer.weight"
    p = nn.Parameter(torch.tensor(starts[name], dtype=torch.float32))
    optimiser = kind([p], 5.0, weight_decay=0.2, trust_coefficient=0.02)
    for gradient in gradients[name]:
        p.grad = torch.tensor(gradient, dtype=torch.float32)
        optimiser.step()
    expected = by_hand(config, name, starts[name], gradients[name], [5.0] * STEPS)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_first_lars_step_has_the_length_lr_eta_norm() -> None:
    """Whatever the size of the gradient: the point of the method."""
    for size in (1e-6, 1.0, 1e6):
        p = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
        p.grad = size * torch.tensor([[1.0, -2.0]], dtype=torch.float64)
        LARS([p], 2.0).step()
        moved = p.detach() - torch.tensor([[3.0, 4.0]])
        assert float(moved.norm()) == pytest.approx(2.0 * 0.001 * 5.0, rel=1e-12)


class _NoReading(TorchDispatchMode):
    """Fails where a value would be copied to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["lars", "larc"])
def test_a_step_reads_nothing_back(name: str) -> None:
    starts, gradients = starts_and_gradients()
    parameters, groups = setting(starts)
    optimiser = build_optimiser(OptimiserConfig(name=name), groups)
    for key, p in parameters.items():
        gradient = gradients[key][0]
        p.grad = None if gradient is None else torch.tensor(gradient)
    with _NoReading():
        optimiser.step()
        with pytest.raises(AssertionError, match="local_scalar"):
            float(parameters["layer.bias"].detach()[0])  # the guard sees what it should see


def _train(parameters: Sequence[Tensor], optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimiser.step()


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "larc"])
def test_saved_state_continues_bit_for_bit(name: str) -> None:
    config = OptimiserConfig(name=name, weight_decay=0.1, lr=0.05)

    def fresh() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        named = {"a.weight": nn.Parameter(torch.randn(4, 3)), "a.bias": nn.Parameter(torch.zeros(4))}
        return list(named.values()), build_optimiser(config, [Group(named, lr_scale=0.5)])

    straight, optimiser = fresh()
    _train(straight, optimiser, range(3))
    file = io.BytesIO()
    torch.save({"optimiser": optimiser.state_dict(), "parameters": [p.detach() for p in straight]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    _train(straight, optimiser, range(3, 6))

    resumed, optimiser = fresh()
    optimiser.load_state_dict(saved["optimiser"])
    for p, value in zip(resumed, saved["parameters"], strict=True):
        p.data.copy_(value)
    _train(resumed, optimiser, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_closure_is_evaluated_with_gradients() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([p], 0.1)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert float(optimiser.step(closure).detach()) == 4.0
    assert bool((p < 1).all())


@pytest.mark.parametrize("kind", [LARS, LARC])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, "lr must be finite and not negative, got -0.1"),
        ({"lr": math.inf}, "lr must be finite"),
        ({"lr": math.nan}, "lr must be finite"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1e-4}, "weight_decay must be finite and not negative"),
        ({"trust_coefficient": -1.0}, "trust_coefficient must be finite and not negative"),
    ],
)
def test_bad_settings_are_named(kind: type, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | settings))
