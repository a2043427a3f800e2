"""Sinkhorn's iterations and SwAV's loss against loops over matrix entries in float64, overflow, queues and edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldreg_kernels.losses import SwAVLoss, sinkhorn, swav_loss


def loop_sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> list[list[float]]:
    """As the paper has it: all of Q to sum 1, then prototypes to 1/K and rows to 1/B in turn, in the end times B."""
    rows = scores.double().tolist()
    b, k = len(rows), len(rows[0])
    q = [[math.exp(s / epsilon) for s in row] for row in rows]
    total = math.fsum(x for row in q for x in row)
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        prototypes = [math.fsum(q[i][j] for i in range(b)) for j in range(k)]
        q = [[q[i][j] / prototypes[j] / k for j in range(k)] for i in range(b)]
        q = [[x / math.fsum(row) / b for x in row] for row in q]
    return [[x * b for x in row] for row in q]


def loop_swav(scores: list[Tensor], temperature: float, crops: tuple[int, ...], codes: list) -> float:
    """The cross-entropies one by one; codes[a] are those of crop a."""
    terms = []
    for a in crops:
        others = [v for v in range(len(scores)) if v != a]
        for v in others:
            for q, s in zip(codes[a], (scores[v].double() / temperature).tolist(), strict=True):
                normaliser = max(s) + math.log(math.fsum(math.exp(x - max(s)) for x in s))
                entropy = -math.fsum(p * (x - normaliser) for p, x in zip(q, s, strict=True))
                terms.append(entropy / len(scores[v]) / len(others) / len(crops))
    return math.fsum(terms)


def crops(n: int, b: int, k: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Cosines, between -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return [(2 * torch.rand(b, k, generator=generator, dtype=torch.float64) - 1).to(dtype) for _ in range(n)]


@given(
    b=st.integers(1, 9),
    k=st.integers(1, 7),
    epsilon=st.floats(0.03, 3),
    iterations=st.integers(1, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_sinkhorn_equals_the_loop(b: int, k: int, epsilon: float, iterations: int, dtype: torch.dtype) -> None:
    scores = crops(1, b, k, dtype, seed=b * 10 + k)[0]
    codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    expected = torch.tensor(loop_sinkhorn(scores, epsilon, iterations), dtype=torch.float64)
    assert codes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The rounding of a logarithm of up to 2 / 0.03, some times over, is the relative error of its exponential.
    rounding = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(codes.double(), expected, rtol=rounding, atol=rounding * 1e-3)
    torch.testing.assert_close(codes.sum(dim=1), codes.new_ones(b), rtol=1e-6, atol=0)


def test_many_iterations_use_every_prototype_equally() -> None:
    codes = sinkhorn(crops(1, 12, 5)[0], epsilon=0.5, iterations=200)
    torch.testing.assert_close(codes.sum(dim=0), codes.new_full((5,), 12 / 5), rtol=1e-10, atol=0)
    torch.testing.assert_close(codes.sum(dim=1), codes.new_ones(12), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [20.0, 1e3])
def test_large_scores_never_overflow(dtype: torch.dtype, factor: float) -> None:
    """exp(20) is beyond float16, exp(1000) beyond float64; also a prototype that every row is far from."""
    scores = crops(1, 8, 4, dtype)[0]
    scores[:, 2] = -1
    codes = sinkhorn(scores, epsilon=1 / factor)
    assert bool(codes.isfinite().all())
    torch.testing.assert_close(codes.sum(dim=1), codes.new_ones(8), rtol=1e-6, atol=0)
    # Potentials of prototypes undo what all rows have in common: as if the prototype were not far.
    shifted = scores.clone()
    shifted[:, 2] = 0.5
    # Half scores are exact in float32 here; quotients of 1e3 are rounded to 6e-5.
    torch.testing.assert_close(codes, sinkhorn(shifted, epsilon=1 / factor), rtol=1e-3, atol=1e-6)


def test_equal_scores_are_spread_evenly_and_a_zero_row_too() -> None:
    assert sinkhorn(torch.full((3, 4), 7.0)).tolist() == [[0.25] * 4] * 3
    collapsed = crops(1, 1, 4)[0].expand(5, 4)
    torch.testing.assert_close(sinkhorn(collapsed), collapsed.new_full((5, 4), 0.25), rtol=1e-12, atol=0)
    scores = crops(1, 4, 3)[0]
    scores[1] = 0
    expected = torch.tensor(loop_sinkhorn(scores), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores), expected, rtol=1e-12, atol=1e-15)


def test_codes_are_constants_and_scores_stay_as_they_are() -> None:
    scores = crops(1, 4, 3)[0].requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn(scores).requires_grad
    assert torch.equal(scores, before)
    assert sinkhorn(scores[:0]).shape == (0, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_shows(bad: float) -> None:
    scores = crops(2, 4, 3)
    scores[0][1, 2] = bad
    assert bool(sinkhorn(scores[0]).isnan().any())
    assert swav_loss(scores).isnan()


@pytest.mark.parametrize(("n", "assign"), [(2, (0, 1)), (2, (1,)), (5, (0, 1)), (4, (3, 0, 2))])
def test_value_and_gradient_equal_the_loop(n: int, assign: tuple[int, ...]) -> None:
    scores = crops(n, 6, 5)
    codes = [loop_sinkhorn(s) for s in scores]
    leaves = [s.clone().requires_grad_() for s in scores]
    loss = swav_loss(leaves, temperature=0.2, assign_crops=assign)
    assert loss.item() == pytest.approx(loop_swav(scores, 0.2, assign, codes), rel=1e-12)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    for v, gradient in enumerate(gradients):
        # d/ds of -sum q ln softmax(s/t) is (softmax(s/t) - q) / t, once for each crop that assigns another.
        others = [a for a in assign if a != v]
        if not others:
            assert gradient is None
            continue
        expected = torch.zeros(6, 5, dtype=torch.float64)
        for a in others:
            expected += ((scores[v] / 0.2).softmax(dim=1) - torch.tensor(codes[a], dtype=torch.float64)) / 0.2
        torch.testing.assert_close(gradient, expected / (6 * (n - 1) * len(assign)), rtol=1e-10, atol=1e-14)


def test_gradient_by_finite_differences() -> None:
    """The codes are constants: crop 1 is moved, of which none are made."""
    first, second, third = crops(3, 3, 4)
    assert torch.autograd.gradcheck(
        lambda a, b: swav_loss([first, a, b], assign_crops=(0,)), (second.requires_grad_(), third.requires_grad_())
    )


def test_a_queue_joins_the_codes_only() -> None:
    scores, queues = crops(3, 4, 5), [crops(1, 7, 5, seed=1)[0], crops(1, 2, 5, seed=2)[0]]
    joined = [loop_sinkhorn(torch.cat([q, s]))[len(q) :] for q, s in zip(queues, scores[:2], strict=True)]
    leaves = [q.clone().requires_grad_() for q in queues]
    loss = swav_loss([s.requires_grad_() for s in scores], queue_scores=leaves)
    assert loss.item() == pytest.approx(loop_swav([s.detach() for s in scores], 0.1, (0, 1), joined), rel=1e-12)
    loss.backward()
    assert all(q.grad is None for q in leaves)
    empty = [q[:0] for q in queues]
    assert torch.equal(swav_loss(scores, queue_scores=empty), swav_loss(scores))


def test_full_collapse_gives_all_rows_one_gradient() -> None:
    """Codes 1/K each, and (softmax(s/t) - 1/K) / (t B) / 2 for every row of two crops."""
    row = crops(1, 1, 4)[0]
    leaves = [row.repeat(6, 1).requires_grad_() for _ in range(2)]
    loss = swav_loss(leaves)
    loss.backward()
    assert loss.item() >= math.log(4)
    expected = ((row / 0.1).softmax(dim=1) - 0.25) / (0.1 * 6) / 2
    torch.testing.assert_close(leaves[0].grad, expected.expand(6, 4), rtol=1e-10, atol=1e-14)
    even = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    loss = swav_loss([even, even])
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4), rel=1e-14)
    assert float(even.grad.abs().max()) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_is_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    scores = crops(2, 8, 6, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = swav_loss(scores)
    codes = [loop_sinkhorn(s) for s in scores]
    assert loss.dtype == torch.float32
    # Codes are exponentials of up to 2 / 0.05, rounded to 2e-6 a few times.
    assert loss.item() == pytest.approx(loop_swav(scores, 0.1, (0, 1), codes), rel=2e-5)


def test_autocast_takes_the_widest_dtype() -> None:
    """A queue that was scored in float32 beside scores in bf16; outside of autocast it stays an error."""
    scores, queues = crops(2, 4, 3, torch.bfloat16), crops(2, 5, 3, torch.float32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = swav_loss(scores, queue_scores=queues)
    assert torch.equal(loss, swav_loss([s.float() for s in scores], queue_scores=queues))
    with pytest.raises(TypeError, match=r"queue_scores\[0\] must have the dtype of scores\[0\], torch.bfloat16"):
        swav_loss(scores, queue_scores=queues)


def test_module_is_the_function() -> None:
    scores, queues = crops(3, 4, 5), crops(1, 7, 5, seed=1)
    settings = {"temperature": 0.3, "epsilon": 0.1, "iterations": 2, "assign_crops": (2,)}
    module = SwAVLoss(**settings)
    assert torch.equal(module(scores, queues), swav_loss(scores, queue_scores=queues, **settings))
    assert torch.equal(SwAVLoss()(tuple(scores)), swav_loss(scores))
    for name, value in settings.items():
        assert f"{name}={value}" in repr(module)


def test_compiles_into_one_graph() -> None:
    scores, queues = crops(3, 4, 5, torch.float32), crops(2, 7, 5, torch.float32, seed=1)
    compiled = torch.compile(swav_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, queue_scores=queues), swav_loss(scores, queue_scores=queues))
    compiled = torch.compile(sinkhorn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores[0]), sinkhorn(scores[0]))


S = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        (torch.ones(2, 3, 2), {}, TypeError, "scores must be a list or tuple, got Tensor"),
        ([S], {}, ValueError, "scores must hold at least 2 crops, got 1"),
        ([S, S[0]], {}, ValueError, r"scores\[1\] must have shape \[N, D\], got \[2\]"),
        ([S, S[:2]], {}, ValueError, r"scores\[1\] must have the shape of scores\[0\], \[3, 2\], got \[2, 2\]"),
        ([S, S.double()], {}, TypeError, r"scores\[1\] must have the dtype of scores\[0\]"),
        ([S.long(), S], {}, TypeError, r"scores\[0\] must be a floating point tensor, got torch.int64"),
        ([S[:0], S[:0]], {}, ValueError, r"scores\[0\] must have at least 1 row"),
        ([S, S], {"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ([S, S], {"temperature": "1"}, TypeError, "temperature must be a number or a 0-d tensor, got '1'"),
        ([S, S], {"epsilon": -1.0}, ValueError, r"epsilon must be positive and finite, got -1\.0"),
        ([S, S], {"epsilon": True}, TypeError, "epsilon must be a number, got True"),
        ([S, S], {"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ([S, S], {"iterations": 1.5}, TypeError, "iterations must be an int"),
        ([S, S], {"assign_crops": 1}, TypeError, "assign_crops must be a list or tuple, got int"),
        ([S, S], {"assign_crops": ()}, ValueError, "assign_crops must name at least one crop, and each once"),
        ([S, S], {"assign_crops": (1, 1)}, ValueError, r"and each once, got \[1, 1\]"),
        ([S, S], {"assign_crops": (-1,)}, ValueError, "assign_crops must be at least 0, got -1"),
        ([S, S], {"assign_crops": (0, 2)}, ValueError, r"assign_crops must be in \[0, 1\] for 2 crops, got 2"),
        ([S, S], {"queue_scores": S}, TypeError, "queue_scores must be a list or tuple, got Tensor"),
        ([S, S], {"queue_scores": [S]}, ValueError, "queue_scores must hold one tensor for each of 2 crops, got 1"),
        ([S, S], {"queue_scores": [S, S.T]}, ValueError, r"queue_scores\[1\] must have shape \[Q, 2\], the K of"),
        ([S, S], {"queue_scores": [S, None]}, TypeError, r"queue_scores\[1\] must be a floating point tensor"),
        ([S, S], {"group": "world"}, TypeError, "group must be a torch.distributed.ProcessGroup or None, got str"),
    ],
)
def test_bad_input_names_the_argument(scores, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        swav_loss(scores, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": math.nan}, ValueError, "temperature must be positive and finite, got nan"),
        ({"epsilon": None}, TypeError, "epsilon must be a number, got None"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1"),
        ({"assign_crops": (0, 0)}, ValueError, "assign_crops must name at least one crop, and each once"),
        ({"gather": 1}, TypeError, "gather must be True or False"),
    ],
)
def test_bad_settings_are_refused_when_the_module_is_built(options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SwAVLoss(**options)


@pytest.mark.parametrize(
    ("scores", "message"), [(S[0], r"scores must have shape \[N, D\]"), (S[:, :0], "scores must have at least 1 col")]
)
def test_sinkhorn_names_bad_scores(scores: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(scores)
