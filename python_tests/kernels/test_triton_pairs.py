"""The Triton sums over pairs against the plain formula in float64, with blocks so small that there are several.

What they compile to for GPUs: test_triton_pairs_compiled.py. Full tiles with the blocks that are shipped: test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable

import cases
import garbage
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_small import DEVICE, MARKS

from ldreg_kernels.kernels import dispatch, reference_pairs, triton_backend
from ldreg_kernels.kernels.contract import Pairs
from ldreg_kernels.ops.pairs import row_logsumexp, row_softplus_sum

pytestmark = MARKS
launch = pytest.importorskip("ldreg_kernels.kernels.triton_pairs_launch", reason="Triton is not installed")

# (rows, candidates, step, out, stages, warps): rows that stay on the chip, and rows in steps of 16 columns with two
# programs for a row's gradient
WAYS = {
    "whole": launch.Blocks(16, 32, launch.WHOLE, launch.WHOLE, 2, 4),
    "steps": launch.Blocks(32, 16, 16, 32, 2, 4),
}
# Cosines are within 5e-7: float32 sums of at most 70 products of unit rows, and 2.5e-8 rms for the 22 bits of float32
# rows. In an exponent that is `scale` times as much; 3e-6 is for the float32 sums over candidates, and what exp2 and
# the logarithm round.
COSINE, SUM = 5e-7, 3e-6
# Weights are rounded to bfloat16, or for float16 rows to tf32, before they are multiplied by the candidates: half an
# ulp each. Triton's interpreter truncates to bfloat16, and knows no tf32.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-7 if DEVICE == "cpu" else 2.0**-8, torch.float16: 2.0**-11}


# A weight with float32 rows loses up to 2^-38 of the largest: half of float16's smallest number, of 2^13.
END = 2.0**-38


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(launch, "blocks_for", lambda *_: WAYS[request.param])
    return request.param


ONE_WAY = pytest.mark.parametrize("way", ["whole"], indirect=True)  # where the blocks are not the matter


def unit(rows: int, P: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, P, generator=cases.seeded(seed)), dim=1)


def problem(
    M: int,
    N: int | None = None,  # None: the candidates are the rows
    P: int = 20,
    own: int | None = None,
    views: int = 1,
    temperature: float = 0.1,
    bias: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Pairs:
    """Unit rows; in half precision rows of all lengths, and their factors."""
    scale = torch.tensor(1 / temperature)
    b = None if bias is None else torch.tensor(bias)

    def rows(count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        t = unit(count, P, seed)
        if dtype == torch.float32:
            return t, None
        t = (t * torch.logspace(-1, 1, count)[:, None]).to(dtype)
        return t, 1 / t.float().norm(dim=1).clamp_min(1e-20)

    x, x_factor = rows(M, 1)
    y, y_factor = (x, x_factor) if N is None else rows(N, 2)
    return Pairs(x, y, scale, b, 0 if N is None else own, views, x_factor, y_factor)


def moved(pairs: Pairs, put: Callable[[Tensor], Tensor]) -> Pairs:
    """Every tensor put elsewhere; rows that are the candidates stay so."""
    given = {name: put(t) for name, t in pairs._asdict().items() if isinstance(t, Tensor)}
    if pairs.symmetric:
        given["y"] = given["x"]
    return pairs._replace(**given)


def found(pairs: Pairs, by_value: Tensor) -> list[Tensor]:
    """[state, gradient by the rows, by the candidates if they are others]."""
    there = moved(pairs, lambda t: t.to(DEVICE))
    state = triton_backend.pair_sums(there)[0]
    by_x, by_y = triton_backend.pair_gradients(there, state, by_value.to(DEVICE), True, True)
    return [t.cpu() for t in (state, by_x, by_y) if t is not None]


def weights(M: int) -> Tensor:
    return torch.randn(M, generator=cases.seeded(3))


def weight_sums(pairs: Pairs, by_value: Tensor) -> list[Tensor]:
    """sum_j |w_ij| of each gradient's rows: unit rows times relative errors of the weights add up to no more."""
    x, y = reference_pairs._unit(pairs)
    logits = pairs.scale * x @ y.T
    if pairs.own is not None:
        out = reference_pairs._left_out(slice(0, len(x)), len(x), len(y), pairs.own, pairs.views, x.device)
        logits = logits.masked_fill(out, -torch.inf)
    share = logits.softmax(1).nan_to_num(0) if pairs.bias is None else (logits + pairs.bias).sigmoid()
    w = share * by_value.abs()[:, None]
    return [w.sum(1) + w.sum(0)] if pairs.symmetric else [w.sum(1), w.sum(0)]


def ends(pairs: Pairs, total: Tensor, by_value: Tensor) -> float:
    """What one weight may lose at its end: END of the largest possible share of a row."""
    if pairs.bias is None:
        largest = (by_value / total.clamp_min(1)).abs().amax()
    else:
        largest = by_value.abs().amax() * (pairs.scale + pairs.bias).sigmoid()
    return END * float(largest) if pairs.x_factor is None else 0.0


def check(pairs: Pairs, by_value: Tensor | None = None) -> None:
    """State and gradients."""
    by_value = weights(len(pairs.x)) if by_value is None else by_value
    state, *gradients = found(pairs, by_value)
    exact = moved(pairs, Tensor.double)
    truth = reference_pairs.pair_sums(exact)[0]
    relative = float(exact.scale) * COSINE + SUM
    if pairs.bias is None:
        values, true_values = (exact.scale * s[0] + s[1].log() for s in (state.double(), truth))
        torch.testing.assert_close(values, true_values, rtol=1e-6, atol=2 * relative)
        torch.testing.assert_close(state[0].double(), truth[0], rtol=0, atol=COSINE)
    else:
        torch.testing.assert_close(state.double(), truth, rtol=2 * relative, atol=0)
    expected = [g for g in reference_pairs.pair_gradients(exact, truth, by_value.double(), True, True) if g is not None]
    assert len(gradients) == len(expected)
    end = ends(exact, truth[1], by_value) * max(len(pairs.x), len(pairs.y))
    for ours, true, most in zip(gradients, expected, weight_sums(exact, by_value.double()), strict=True):
        assert ours.dtype == torch.float32
        assert ((ours - true).norm(dim=1) <= (3 * relative + 1.01 * ROUNDING[pairs.x.dtype]) * most + end).all()


# ------------------------------------------------------------------------------------------------- shapes and modes


@pytest.mark.parametrize(
    ("M", "N", "bias"),
    [
        *[(M, N, None) for M, N in [(1, 1), (1, 40), (40, 1), (15, 31), (16, 32), (17, 33), (37, 71), (64, 16)]],
        *[(1, 1, -2.0), (33, 17, -2.0)],
    ],
)
def test_one_below_at_and_above_every_block(M: int, N: int, bias: float | None) -> None:
    check(problem(M, N, bias=bias))


@pytest.mark.parametrize("P", [1, 16, 17, 70])
def test_columns(P: int) -> None:
    check(problem(20, 37, P))
    check(problem(34, P=P))


@pytest.mark.parametrize("M", [2, 34])
@pytest.mark.parametrize(("views", "bias"), [(1, None), (2, None), (1, -3.0)])
def test_rows_that_are_the_candidates(M: int, views: int, bias: float | None) -> None:
    check(problem(M, views=views, bias=bias))


@pytest.mark.parametrize("own", [7, 45])
@pytest.mark.parametrize("views", [1, 2])
def test_own_rows_among_others(own: int, views: int) -> None:
    """The other view wraps around; with own = 45 the last rows are no candidates at all."""
    check(problem(36, 80, own=own, views=views))


@ONE_WAY
def test_own_rows_of_the_softplus_sum() -> None:
    check(problem(36, 80, own=33, bias=1.0))


@ONE_WAY
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("bias", [None, -10.0])
def test_temperatures(temperature: float, bias: float | None) -> None:
    check(problem(33, 50, temperature=temperature, bias=bias))


@ONE_WAY
@pytest.mark.parametrize("bias", [-80.0, -40.0, 0.0, 40.0])
def test_softplus_keeps_its_digits(bias: float) -> None:
    """ln(1 + e^a) is e^a for a << 0 and a for a >> 0; both to float32's precision."""
    check(problem(20, 30, temperature=1.0, bias=bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "mode", [{"N": None, "views": 2}, {"N": 50}, {"N": 50, "bias": -2.0, "own": 3}], ids=["rows", "others", "softplus"]
)
def test_half_precision(dtype: torch.dtype, mode: dict) -> None:
    check(problem(34, dtype=dtype, **mode))


@ONE_WAY
def test_small_float16_weights_do_not_underflow() -> None:
    """2^-24 is float16's smallest number, and here no weight is as large."""
    pairs = problem(20, 40, dtype=torch.float16, temperature=1.0)
    by_value = torch.full([20], 1e-7)
    exact = moved(pairs, Tensor.double)
    truth = reference_pairs.pair_gradients(
        exact, reference_pairs.pair_sums(exact)[0], by_value.double(), need_x=True, need_y=True
    )
    for ours, true in zip(found(pairs, by_value)[1:], truth, strict=True):
        assert (ours - true).norm() <= 2.0**-11 * true.norm()


@ONE_WAY
@pytest.mark.parametrize("bias", [None, -3.0])
@pytest.mark.parametrize("N", [None, 40])
def test_weights_of_any_size(bias: float | None, N: int | None) -> None:
    """Halves of float32 rows' weights end at the largest share: powers of 2 change no bit, and 0 is no unit."""
    pairs = problem(34, N, bias=bias)
    by_value = weights(34)
    _, *gradients = found(pairs, by_value)
    for factor in (2.0**60, 2.0**-60, 0.0):
        _, *scaled = found(pairs, by_value * factor)
        assert all(torch.equal(one, g * factor) for one, g in zip(scaled, gradients, strict=True))


@ONE_WAY
@pytest.mark.parametrize(("bias", "N"), [(None, 40), (None, None), (-3.0, 40)])
def test_weights_of_different_sizes(bias: float | None, N: int | None) -> None:
    """From 1 to 2^-50 of it."""
    check(problem(34, N, bias=bias), torch.logspace(0, -50, 34, base=2))


@pytest.mark.parametrize("P", [1, 128])
def test_halves_of_a_row(P: int) -> None:
    """22 bits, or 2^-25 where the lower half is below float16's smallest; what is not finite stays so in the sum."""
    x = unit(64, P, 1)
    halves = launch._tile_operand(x).double()
    assert (halves[..., P:] == 0).all()
    high, low = halves[..., :P]
    assert ((high + low - x).abs() <= (2.0**-22 * x.abs()).clamp_min(2.0**-25)).all()
    for bad in (torch.nan, torch.inf):
        assert launch._tile_operand(torch.tensor([[bad]])).sum().isnan()


@settings(max_examples=12)
@given(
    M=st.integers(1, 20).map(lambda half: 2 * half),
    N=st.one_of(st.none(), st.integers(1, 70)),
    P=st.integers(1, 40),
    views=st.sampled_from([1, 2]),
    own=st.one_of(st.none(), st.integers(0, 50)),
    bias=st.one_of(st.none(), st.floats(-20, 20)),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_any_problem(M, N, P, views, own, bias, dtype) -> None:
    views = 1 if own is None and N is not None else views
    if bias is None or (N or M) > 2 * views:  # sums of nothing are a test of their own
        check(problem(M, N, P, own, views, bias=bias, dtype=dtype))


@pytest.mark.parametrize("bias", [None, -2.0])
@pytest.mark.parametrize("same", [True, False])
def test_parts_of_the_candidates(same: bool, bias: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows on many multiprocessors; the last part is one candidate, which is left out for a row."""
    monkeypatch.setattr(launch, "part_of", lambda *_: 32)
    check(problem(66 if same else 34, None if same else 65, own=31, views=1 if bias else 2, bias=bias))


def test_parts_fill_the_multiprocessors_once() -> None:
    blocks = launch.Blocks(128, 64, launch.WHOLE, 0, 2, 8)
    for N, programs, parts in [(65536, 512, 1), (8192, 64, 2), (4096, 32, 4), (1024, 8, 2), (100, 1, 1), (1, 1, 1)]:
        part = launch.part_of(N, programs, blocks, 132)
        assert part % 64 == 0
        assert -(-N // part) == parts


# ------------------------------------------------------------------------------------------------- corners


@ONE_WAY
def test_no_candidates() -> None:
    """A row whose only candidate is itself: an empty sum, and no gradient."""
    for pairs in (problem(1), problem(2, views=2), problem(1, 1, own=0)):
        state, *gradients = found(pairs, torch.ones(len(pairs.x)))
        assert torch.equal(state, torch.zeros_like(state))
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@ONE_WAY
def test_rows_of_zeros() -> None:
    pairs = problem(34)
    pairs.x[[0, 5, 33]] = 0
    check(pairs)


@ONE_WAY
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # by the interpreter's tl.max
@pytest.mark.parametrize(
    ("where", "bias", "bad"),
    [(where, bias, torch.nan) for where in ("x", "y", "both") for bias in (None, -1.0)] + [("x", None, torch.inf)],
)
def test_nan_goes_where_the_formula_takes_it(where: str, bias: float | None, bad: float) -> None:
    pairs = problem(34, None if where == "both" else 40, bias=bias)
    (pairs.y if where == "y" else pairs.x)[3] = bad
    by_value = weights(34)
    state, *gradients = found(pairs, by_value)
    truth = reference_pairs.pair_sums(pairs)[0]
    expected = [g for g in reference_pairs.pair_gradients(pairs, truth, by_value, True, True) if g is not None]
    assert torch.equal(state[1].isfinite(), truth[1].isfinite())
    assert not state[1].isfinite().all()
    for ours, true in zip(gradients, expected, strict=True):
        assert torch.equal(ours.isnan().any(1), true.isnan().any(1))


@pytest.mark.parametrize("pattern", ["0xff", "1e30"])
@pytest.mark.parametrize("same", [True, False])
def test_nothing_beyond_the_rows_is_read_into_them(same: bool, pattern: str) -> None:
    """Rows and columns lie in a larger tensor of whatever; outputs begin as whatever, too."""
    pairs = problem(37, None if same else 45, 19)

    def within(t: Tensor) -> Tensor:
        if t.dim() < 2:
            return t
        room = torch.empty(len(t) + 64, 40)
        garbage.fill(room, garbage.KINDS[pattern])
        room[32 : 32 + len(t), 8:27] = t
        return room[32 : 32 + len(t), 8:27]

    by_value = weights(37)
    clean = found(pairs, by_value)
    with garbage.left_over(garbage.KINDS[pattern]):
        dirty = found(moved(pairs, within), by_value)
    assert all(torch.equal(one, other) for one, other in zip(clean, dirty, strict=True))


@ONE_WAY
def test_rows_of_any_stride() -> None:
    """Repeated with stride 0, every other one, and columns that have to be copied."""
    x = unit(1, 20, 1).expand(20, 20)
    check(Pairs(x, unit(66, 20, 2)[::2], torch.tensor(5.0), None, None))
    check(Pairs(unit(20, 20, 4).T.contiguous().T, unit(33, 20, 2), torch.tensor(5.0), None, None))


@pytest.mark.parametrize("bias", [None, -1.0])
def test_two_runs_are_bitwise_equal(bias: float | None) -> None:
    pairs, by_value = problem(37, bias=bias), weights(37)
    for one, other in zip(found(pairs, by_value), found(pairs, by_value), strict=True):
        assert torch.equal(one, other)


@ONE_WAY
def test_only_what_is_asked_for() -> None:
    pairs = moved(problem(17, 18), lambda t: t.to(DEVICE))
    state, by_value = triton_backend.pair_sums(pairs)[0], weights(17).to(DEVICE)
    by_x, none = triton_backend.pair_gradients(pairs, state, by_value, True, False)
    assert none is None
    none, by_y = triton_backend.pair_gradients(pairs, state, by_value, False, True)
    assert none is None
    assert by_x.shape == (17, 20)
    assert by_y.shape == (18, 20)


# ------------------------------------------------------------------------------------------------- above the kernels


@ONE_WAY
def test_the_differentiable_sums_take_this_backend() -> None:
    """Values and all four gradients, by name; float64 is refused by name."""
    x, y = unit(33, 20, 1), unit(40, 20, 2)
    for bias in (None, torch.tensor(-2.0)):
        leaves = [t.clone().requires_grad_() for t in (x, y, torch.tensor(8.0)) + (() if bias is None else (bias,))]
        twins = [t.detach().double().requires_grad_() for t in leaves]
        results = []
        for (a, b, scale, *rest), backend in ((leaves, "triton"), (twins, "reference")):
            a, b, scale, *rest = (t.to(DEVICE) for t in (a, b, scale, *rest))
            if rest:
                value = row_softplus_sum(a, b, scale=scale, bias=rest[0], own=2, backend=backend)
            else:
                value = row_logsumexp(a, b, scale=scale, own=2, backend=backend)
            results.append(value)
        torch.testing.assert_close(results[0].double(), results[1], rtol=1e-5, atol=1e-5)  # scale x COSINE, twice
        for result in results:
            result.sin().sum().backward()
        for leaf, twin in zip(leaves, twins, strict=True):
            torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=1e-4, atol=1e-4)  # sums of 33 such rows
    with pytest.raises(ValueError, match='"auto" or "reference" for float64'):
        row_logsumexp(x.double().to(DEVICE), scale=torch.tensor(8.0).double().to(DEVICE), backend="triton")


@ONE_WAY
def test_dispatch_finds_it_by_name() -> None:
    pairs = moved(problem(4), lambda t: t.to(DEVICE))
    assert dispatch.resolve_pairs("triton", pairs) is triton_backend
