"""Sums over all pairs of unit rows, and their gradients, on every instruction set: against loops in float64.

The truth is the formula of the reference, which is itself checked against explicit loops first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import tolerances
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldreg_kernels.kernels import native, reference
from ldreg_kernels.kernels.contract import Pairs

UNDERFLOW = 1e-35  # of some hundreds of terms below the smallest normal float32, 1e-38
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "neon", "neonbf16")


def executable() -> tuple[str, ...]:
    """The sets that run here, as the extension names them in its error."""
    if native.unavailable_reason() is not None:
        return ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDREG_CPU_ISA", "none")
        with pytest.raises(ValueError, match=r"LDREG_CPU_ISA must name") as caught:
            native.isa()
    return tuple(name for name in ISAS if f"{name}," in str(caught.value) or f"{name})" in str(caught.value))


@pytest.fixture(params=executable())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, poisoned_memory: None) -> Iterator[str]:
    monkeypatch.setenv("LDREG_CPU_ISA", request.param)
    assert native.isa() == request.param
    return request.param


def unit(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator, dtype=torch.float64), dim=1)


def problem(M: int, N: int, P: int, own: int | None, views: int, scale: float, bias: float | None) -> Pairs:
    """In float64, of rows that float32 holds; N = 0: the candidates are the rows."""
    x = unit(M, P, 1).float().double()
    y = x if N == 0 else unit(N, P, 2).float().double()
    bias_ = None if bias is None else torch.tensor(bias, dtype=torch.float64)
    return Pairs(x, y, torch.tensor(scale, dtype=torch.float64), bias_, own, views)


def single(pairs: Pairs) -> Pairs:
    x = pairs.x.float()
    y = x if pairs.symmetric else pairs.y.float()
    return pairs._replace(x=x, y=y, scale=pairs.scale.float(), bias=None if pairs.bias is None else pairs.bias.float())


def value_of(pairs: Pairs, state: Tensor) -> Tensor:
    return state[1].double() if pairs.bias is not None else pairs.scale * state[0].double() + state[1].double().log()


def by_autograd(pairs: Pairs, by_value: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Values of the formula, and the gradients by rows and candidates, not yet times scale."""
    x = pairs.x.clone().requires_grad_()
    y = x if pairs.symmetric else pairs.y.clone().requires_grad_()
    values = reference.formula(x, y, pairs.scale, pairs.bias, pairs.own, pairs.views)
    wanted = [x] if pairs.symmetric else [x, y]
    found = torch.autograd.grad((values * by_value).nan_to_num().sum(), wanted)
    return values.detach(), [gradient / pairs.scale for gradient in found]


def sizes(pairs: Pairs, by_value: Tensor) -> list[float]:
    """What the gradients by rows and candidates would be if their terms, weights times unit vectors, did not cancel.

    Roundings are relative to that: with one column vectors are +-1, and a gradient a hundredth of its terms.
    """
    logits = pairs.scale * pairs.x @ pairs.y.T
    if pairs.own is not None:
        logits = logits.masked_fill(reference_left_out(pairs), -math.inf)
    slopes = logits.softmax(dim=1).nan_to_num() if pairs.bias is None else (logits + pairs.bias).sigmoid()
    weights = slopes * by_value.abs()[:, None]
    by_x, by_y = weights.sum(dim=1), weights.sum(dim=0)
    return [float((by_x + by_y).norm())] if pairs.symmetric else [float(by_x.norm()), float(by_y.norm())]


def check(module, pairs: Pairs) -> None:
    by_value = torch.randn(pairs.x.shape[0], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    truth, gradients = by_autograd(pairs, by_value)
    given = single(pairs) if module is native else pairs
    largest = float(pairs.scale) + (0 if pairs.bias is None else abs(float(pairs.bias)))
    allowed = tolerances.pairs(largest) if module is native else 1e-12
    state = module.pair_sums(given)[0]
    assert state.shape == (2, pairs.x.shape[0])
    values = value_of(pairs, state)
    if pairs.bias is None:
        some = truth > -math.inf  # rows with candidates
        assert torch.equal(values > -math.inf, some)
        assert bool(((values - truth)[some].abs() <= allowed * (1 + truth[some].abs())).all())
    else:
        torch.testing.assert_close(values, truth, rtol=allowed, atol=UNDERFLOW)
        logits = pairs.scale * pairs.x @ pairs.y.T + pairs.bias
        slopes = logits.sigmoid()
        if pairs.own is not None:
            slopes = slopes * ~reference_left_out(pairs)
        torch.testing.assert_close(state[0].double(), slopes.sum(1), rtol=allowed, atol=UNDERFLOW)
    ones = torch.ones_like(state[0])
    again, unit = module.pair_sums(given, True)
    assert float((again - state).norm()) <= tolerances.pairs(0) * float(state.norm())
    twice = module.pair_gradients(given, state, ones, True, False)[0]
    assert float((unit - twice).norm()) <= tolerances.pairs(0) * sizes(pairs, ones.double())[0] + UNDERFLOW
    found = module.pair_gradients(given, state, by_value.to(state.dtype), True, True)
    given_back = [t for t in found if t is not None]
    for ours, theirs, size in zip(given_back, gradients, sizes(pairs, by_value), strict=True):
        assert float((ours.double() - theirs).norm()) <= allowed * size + UNDERFLOW
    if not pairs.symmetric:
        for need_x, need_y in ((True, False), (False, True)):
            one = module.pair_gradients(given, state, by_value.to(state.dtype), need_x, need_y)
            for had, again in zip(found, one, strict=True):
                assert again is None or torch.equal(had, again)
            assert [t is not None for t in one] == [need_x, need_y]


def reference_left_out(pairs: Pairs) -> Tensor:
    M, N = pairs.x.shape[0], pairs.y.shape[0]
    out = torch.zeros(M, N, dtype=torch.bool)
    for i in range(M):
        for view in range(pairs.views):
            out[i, pairs.own + (i + view * M // 2) % M] = True
    return out


# Around the panels of 8 to 48 rows and their parts; N = 0: a batch with itself. (M, N, P, own, views)
SHAPES = [
    (1, 1, 1, None, 1),
    (1, 5, 3, 2, 1),
    (2, 0, 2, 0, 1),
    (4, 0, 5, 0, 2),
    (47, 49, 16, None, 1),
    (48, 96, 17, 48, 1),
    (50, 150, 33, 100, 2),
    (97, 31, 129, None, 1),
    (144, 0, 128, 0, 1),
    (200, 0, 7, 0, 2),
    (26, 40, 300, 5, 2),
]
SCALES = [0.5, 10.0, 29.9, 30.1, 100.0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [None, -3.0])
def test_the_reference_is_its_formula(shape, bias) -> None:
    for scale in (0.5, 100.0):
        check(reference, problem(*shape, scale, bias))


def test_the_formula_is_a_loop() -> None:
    for views in (1, 2):
        pairs = problem(4, 9, 3, 3, views, 5.0, None)
        values = reference.formula(*pairs[:3], None, 3, views)
        for i, row in enumerate(pairs.x.tolist()):
            out = {3 + i} | ({3 + (i + 2) % 4} if views == 2 else set())
            terms = [
                math.exp(5 * math.fsum(a * b for a, b in zip(row, other, strict=True)))
                for j, other in enumerate(pairs.y.tolist())
                if j not in out
            ]
            assert float(values[i]) == pytest.approx(math.log(math.fsum(terms)), rel=1e-14)
            biased = reference.formula(*pairs[:3], torch.tensor(-2.0).double(), 3, views)
            assert float(biased[i]) == pytest.approx(
                math.fsum(math.log1p(term * math.exp(-2)) for term in terms), rel=1e-14
            )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_sums_and_gradients(isa: str, shape, scale: float) -> None:
    check(native, problem(*shape, scale, None))
    check(native, problem(*shape, scale, -scale))


@given(
    M=st.integers(1, 120),
    N=st.integers(0, 120),
    P=st.integers(1, 70),
    place=st.floats(0, 1),
    views=st.sampled_from([1, 2]),
    scale=st.floats(0.1, 200),
    bias=st.one_of(st.none(), st.floats(-30, 10)),
)
@settings(max_examples=60)
def test_any_problem(poisoned_memory: None, M, N, P, place, views, scale, bias) -> None:
    M += M % 2 * (views == 2)
    own = 0 if N == 0 else int(place * (N - M)) if N >= M else None
    if own is None and views == 2:
        views = 1
    check(native, problem(M, N, P, own, views, scale, bias))


@pytest.mark.parametrize("bias", [None, -3.0])
def test_the_same_bits_on_any_number_of_threads_and_run(isa: str, shared: None, threads: None, bias) -> None:
    for shape in ((300, 0, 40, 0, 2), (170, 260, 40, 60, 1)):
        pairs = single(problem(*shape, 10.0, bias))
        by_value = torch.linspace(-1, 1, shape[0])
        seen = []
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            state = native.pair_sums(pairs)[0]
            seen.append([state, *native.pair_gradients(pairs, state, by_value, True, True)])
        for other in seen[1:]:
            for a, b in zip(seen[0], other, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)


def test_strides(isa: str) -> None:
    x = unit(60, 40, 1).float()
    wide = torch.full((60, 90), math.nan)
    wide[:, 50:] = x
    for strided in (wide[:, 50:], x.T.contiguous().T, torch.stack([x, x], dim=2)[:, :, 1]):
        pairs = Pairs(strided, strided, torch.tensor(10.0), None, 0)
        plain = pairs._replace(x=x, y=x)
        state = native.pair_sums(plain)[0]
        assert torch.equal(native.pair_sums(pairs)[0], state)
        ones = torch.ones(60)
        ours, _ = native.pair_gradients(pairs, state, ones, True, True)
        assert torch.equal(ours, native.pair_gradients(plain, state, ones, True, True)[0])


@pytest.mark.parametrize("scale", [10.0, 100.0])
@pytest.mark.parametrize("bias", [None, 0.0])
def test_a_row_of_nan_is_seen_by_all_who_meet_it(isa: str, scale: float, bias) -> None:
    pairs = single(problem(100, 0, 20, 0, 1, scale, bias))
    pairs.x[53, 3] = math.nan
    assert bool(value_of(pairs, native.pair_sums(pairs)[0]).isnan().all())
    lone = pairs._replace(y=unit(70, 20, 2).float(), own=None)
    assert native.pair_sums(lone)[0][1].isnan().nonzero().flatten().tolist() == [53]


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e5])
def test_rows_that_point_away_from_all_candidates(isa: str, scale: float) -> None:
    """Every cosine is -1: exp(scale (c - 1)) would be 0 in float32, and its logarithm -inf."""
    x = torch.zeros(70, 4)
    x[:, 1] = 1
    pairs = Pairs(x, -x[:50], torch.tensor(scale), None, None)
    state = native.pair_sums(pairs)[0]
    # Cosines and exponents are exact here: what is left are roundings of sums of 50 and 70 equal terms.
    assert value_of(pairs, state).tolist() == pytest.approx([-scale + math.log(50)] * 70, rel=1e-6)
    by_x, by_y = native.pair_gradients(pairs, state, torch.ones(70), True, True)
    torch.testing.assert_close(by_x, -x, rtol=1e-6, atol=0)
    torch.testing.assert_close(by_y, x[:50] * 70 / 50, rtol=1e-6, atol=0)


@pytest.mark.parametrize("logit", [-86.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 3.0, 20.0, 500.0])
def test_softplus_keeps_its_digits(isa: str, logit: float) -> None:
    one = torch.ones(1, 1)
    zero = torch.zeros(1, 1)
    pairs = Pairs(one, zero, torch.tensor(1.0), torch.tensor(logit), None)
    slope, value = native.pair_sums(pairs)[0][:, 0].tolist()
    given = float(torch.tensor(logit))
    # e^a by float32 arithmetic: a log2(e) is rounded once, which at 120 are 4e-6 of its power.
    allowed = 4e-7 + 6e-8 * abs(given)
    assert value == pytest.approx(max(given, 0) + math.log1p(math.exp(-abs(given))), rel=allowed)
    assert slope == pytest.approx(1 / (1 + math.exp(-given)), rel=allowed)


def test_factors_make_unit_rows_of_half_precision() -> None:
    raw = (unit(40, 12, 1) * 3).bfloat16()
    factor = 1 / raw.float().norm(dim=1)
    halves = Pairs(raw, raw, torch.tensor(10.0), None, 0, 1, factor, factor)
    rows = raw.float() * factor[:, None]
    floats = Pairs(rows, rows, torch.tensor(10.0), None, 0)
    # The same float32 rows up to the rounding of a product: cosines within 6e-8, gradients within that times the scale.
    for module in (native, reference):
        state = module.pair_sums(halves)[0]
        torch.testing.assert_close(state, module.pair_sums(floats)[0], rtol=1e-6, atol=1e-6)
        ours, _ = module.pair_gradients(halves, state, torch.ones(40), True, False)
        theirs, _ = module.pair_gradients(floats, state, torch.ones(40), True, False)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
