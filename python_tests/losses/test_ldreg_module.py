"""`LDRegLoss` as people use it: under autocast, and in three gloo processes, where it is the loss of the joint batch.

The kinds behind it: the published idiom `LDRegLoss(h, gather(h))` counted own rows twice; bf16 features met float32
momentum features; a short batch stopped the training.
"""

import inspect
import sys
import typing
import warnings
from collections.abc import Callable
from pathlib import Path

import cases
import oracle
import processes
import pytest
import tolerances
import torch
import torch.distributed as dist
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels import notice
from ldreg_kernels.kernels.contract import FORMS

WORLD = 3
SUMS = 1e-12  # float64 sums of at most some hundreds of terms, in another order, and what they are divided by
EVEN, UNEVEN, EMPTY = (8, 8, 8), (9, 2, 13), (11, 0, 13)


def joint() -> Tensor:
    """The features of all ranks, 24 rows in float64; five of them equal, so that some are degenerate with k = 4."""
    x = cases.features(24, 6).double()
    x[19:] = x[19]
    return x


def share(counts: tuple[int, ...], of: Tensor) -> Tensor:
    return of.split(counts)[dist.get_rank()].clone()


def sum_over_ranks(value: Tensor) -> Tensor:
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def check_joint(counts: tuple[int, ...], extra: Tensor | None = None, **options) -> None:
    """The mean over ranks of values, and of gradients as DDP takes it, are those of one process with all rows."""
    everything = joint().requires_grad_()
    whole = ldk.LDRegLoss(**{"k": 4, "weight": 0.5, **options}, gather=False)
    value = whole(everything, extra)
    (gradient,) = torch.autograd.grad(value.sum(), everything)

    x = share(counts, joint()).requires_grad_()
    thirds = None if extra is None else extra.tensor_split(WORLD)[dist.get_rank()]
    loss = ldk.LDRegLoss(**{"k": 4, "weight": 0.5, **options})
    mine = loss(x, thirds)
    (of_mine,) = torch.autograd.grad(mine.sum(), x)
    if options.get("reduction", "mean") == "mean":
        assert sum_over_ranks(mine).item() / WORLD == pytest.approx(value.item(), rel=SUMS)
        of_mine = of_mine / WORLD
    elif options["reduction"] == "sum":
        assert sum_over_ranks(mine).item() == pytest.approx(value.item(), rel=SUMS)
    else:
        torch.testing.assert_close(mine, share(counts, value.detach()), rtol=SUMS, atol=SUMS)
    torch.testing.assert_close(of_mine, share(counts, gradient), rtol=SUMS, atol=SUMS)
    torch.testing.assert_close(loss.stats.lid, share(counts, whole.stats.lid), rtol=SUMS, atol=0, equal_nan=True)
    assert sum_over_ranks(loss.stats.degenerate) == whole.stats.degenerate
    assert whole.stats.degenerate == (5 if whole.k == 4 else 0)  # the five equal rows have four neighbours at 0


# ------------------------------------------------------------------------------------------------- in every process


def every_form() -> None:
    for counts in (EVEN, UNEVEN):
        for form in FORMS:
            check_joint(counts, form=form, target=4.0 if form == "target" else None)


def every_reduction() -> None:
    for reduction in ("sum", "none"):
        check_joint(UNEVEN, reduction=reduction)


def a_rank_without_rows() -> None:
    for form in ("l1", "l2"):
        check_joint(EMPTY, form=form)


def extra_references() -> None:
    """BYOL's layout: the momentum encoder's features of all ranks are references too."""
    check_joint(UNEVEN, extra=cases.features(30, 6, seed=1).double(), k=9)


def equal_rows() -> None:
    check_joint(EVEN, equal_rows=True)
    check_joint(EVEN, extra=cases.features(30, 6, seed=1).double(), equal_rows=True)


def a_group_of_two() -> None:
    group = dist.new_group([0, 1])
    if dist.get_rank() == 2:
        with pytest.raises(ValueError, match="group must be a process group that this process is a member of"):
            ldk.LDRegLoss(k=4, group=group)(share(EVEN, joint()))
        return
    both = joint()[:16].requires_grad_()
    (gradient,) = torch.autograd.grad(ldk.ldreg_loss(both, k=4), both)
    x = share(EVEN, joint()).requires_grad_()
    (mine,) = torch.autograd.grad(ldk.LDRegLoss(k=4, group=group)(x), x)
    torch.testing.assert_close(mine / 2, share((8, 8), gradient), rtol=SUMS, atol=SUMS)


def without_gathering() -> None:
    x = share(UNEVEN, joint())
    if len(x) > 4:
        assert torch.equal(ldk.LDRegLoss(k=4, gather=False)(x), ldk.ldreg_loss(x, k=4))


def every_dtype() -> None:
    """Half features too: rank by rank the bits of one process, because a row's LID depends on no other query."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = joint().to(dtype)
        loss = ldk.LDRegLoss(k=4)
        loss(share(UNEVEN, x))
        lid = ldk.lid(x, k=4)
        expected, _ = oracle.lid(x, k=4)
        oracle.check_lid(loss.stats.lid, share(UNEVEN, expected), "auto", dtype)
        oracle.check_lid(lid, expected, "auto", dtype)


def a_last_batch_of_one_row_each() -> None:
    """Two neighbours each: enough, and said."""
    x = share((1, 1, 1), joint()[:3]).requires_grad_()
    loss = ldk.LDRegLoss(k=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss(x).backward()
    assert [str(w.message).partition(":")[0] for w in caught] == [
        "k is 64, but a batch has only 2 neighbours for a row"
    ]
    assert loss.stats.k == 2
    assert x.grad.isfinite().all()


def warned_of(calls: int, arguments: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> list[str]:
    """What is said in some calls with `arguments(this rank's features, those of all ranks)`."""
    notice._said.clear()
    x = share(EVEN, cases.features(24, 6))
    parts = [torch.empty_like(x) for _ in range(WORLD)]
    dist.all_gather(parts, x)
    loss = ldk.LDRegLoss(k=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            loss(*arguments(x, torch.cat(parts)))
    return [str(w.message) for w in caught]


def the_published_idiom_is_warned_of() -> None:
    """Features gathered by hand and passed as extra references are there twice."""
    (said,) = warned_of(10, lambda mine, everyones: (mine, everyones))
    assert said.startswith("8 of 8 rows have a reference at distance 0")
    assert "extra_references must not hold them again" in said


def features_gathered_by_hand_are_warned_of() -> None:
    """They are gathered once more: each row is there three times."""
    (said,) = warned_of(3, lambda mine, everyones: (everyones,))
    assert said.startswith("24 of 24 rows have a reference at distance 0")
    assert "what is passed as features must not hold them again" in said


def nan_is_seen() -> None:
    """NaN in a row of one rank: R is NaN there (l2, a root of the mean over ranks: everywhere)."""
    for form in FORMS:
        x = share(EVEN, joint())
        if dist.get_rank() == 0:
            x[2, 1] = torch.nan
        value = ldk.LDRegLoss(k=4, form=form, target=4.0 if form == "target" else None)(x)
        assert value.isnan() or (dist.get_rank() > 0 and form != "l2")


def any_split() -> None:
    """A fuzz over how many rows each rank holds, from none to all."""
    generator = cases.seeded(7)
    for _ in range(12):
        cuts = torch.randint(0, 25, (2,), generator=generator).sort().values.tolist()
        counts = (cuts[0], cuts[1] - cuts[0], 24 - cuts[1])
        form = FORMS[int(torch.randint(0, len(FORMS), (), generator=generator))]
        check_joint(counts, form=form, target=4.0 if form == "target" else None)


CHECKS = [
    every_form,
    every_reduction,
    a_rank_without_rows,
    extra_references,
    equal_rows,
    a_group_of_two,
    without_gathering,
    every_dtype,
    a_last_batch_of_one_row_each,
    the_published_idiom_is_warned_of,
    features_gathered_by_hand_are_warned_of,
    nan_is_seen,
    any_split,
]


test_in_three_processes = processes.tests_of(CHECKS, WORLD)


# ------------------------------------------------------------------------------------------------- in one


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(notice, "_said", set())


@pytest.mark.parametrize("features", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("momentum", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_autocast_takes_the_wider_dtype(features, momentum):
    """Autocast hands out both dtypes: the value is that of both in the wider one, the gradient has the dtype of x."""
    x = cases.features(40, 8).to(features).requires_grad_()
    extra = cases.features(30, 8, seed=1).to(momentum)
    wider = torch.promote_types(features, momentum)
    loss = ldk.LDRegLoss(k=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, extra)
        functions = [ldk.lid(x, extra, k=8), *ldk.knn(x, extra, k=8)]
    assert torch.equal(value, loss(x.to(wider), extra.to(wider)))
    expected = [ldk.lid(x.to(wider), extra.to(wider), k=8), *ldk.knn(x.to(wider), extra.to(wider), k=8)]
    for found, other in zip(functions, expected, strict=True):
        assert torch.equal(found, other)
    value.backward()
    assert x.grad.dtype == features
    if features != momentum:
        with pytest.raises(TypeError, match=r"^extra_references must have the dtype of features"):
            loss(x, extra)


def test_a_short_batch_does_not_stop_a_training():
    """SimCLR's 2 x 32 rows with the default k, then a last batch of 3, with what the README tracks."""
    loss = ldk.LDRegLoss(weight=0.01, track=[("mle", 32), ("mle", 512)])
    layer = torch.nn.Linear(6, 6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for rows in (64, 3, 1):
            loss(layer(cases.features(rows, 6))).backward()
            assert layer.weight.grad.isfinite().all()
            assert loss.stats.k == rows - 1
            assert loss.stats["mle", 512].geometric_mean.isfinite() == (rows > 2)
    assert [str(w.message).partition(" neighbours for a row")[0] for w in caught] == [
        "k is 64, but a batch has only 63",
        "track[1] k is 512, but a batch has only 63",
        "track[0] k is 32, but a batch has only 2",
    ]


def test_gradient_caching_is_the_large_batch_and_accumulation_is_not():
    """What the docstring of LDRegLoss says of 4 x 32 rows against 128, and the way out of it, line by line."""
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).double()
    images = cases.features(128, 6).double()
    micro_batches = images.split(32)
    ldreg = ldk.LDRegLoss(k=16)

    def gradients():
        found = [parameter.grad.clone() for parameter in encoder.parameters()]
        encoder.zero_grad()
        return torch.cat([gradient.flatten() for gradient in found])

    ldreg(encoder(images)).backward()
    whole = gradients()
    for batch in micro_batches:
        (ldreg(encoder(batch)) / 4).backward()
    accumulated = gradients()
    with torch.no_grad():
        features = torch.cat([encoder(batch) for batch in micro_batches])
    features.requires_grad_()
    ldreg(features).backward()
    for batch, gradient in zip(micro_batches, features.grad.split(32), strict=True):
        encoder(batch).backward(gradient)
    torch.testing.assert_close(gradients(), whole, rtol=SUMS, atol=SUMS)
    assert (accumulated - whole).norm() > 0.1 * whole.norm()


def test_the_module_is_the_function():
    x = cases.features(60, 8).requires_grad_()
    loss = ldk.LDRegLoss(k=8, form="l1_abs", weight=0.01, estimator="mle", track=[("mom", 12)])
    expected, stats = ldk.ldreg_loss(x, k=8, form="l1_abs", estimator="mle", track=[("mom", 12)], return_stats=True)
    assert torch.equal(loss(x), 0.01 * expected)
    assert torch.equal(loss.stats.lid, stats.lid)
    extra = cases.features(40, 8, seed=1)
    with_extra = ldk.ldreg_loss(x, torch.cat([x, extra]), k=8, form="l1_abs", estimator="mle", self_index=0)
    found = loss(x, extra)
    assert abs(found - 0.01 * with_extra) <= tolerances.LOSS * abs(found)


def test_compiled_with_statistics():
    torch._dynamo.reset()
    loss = ldk.LDRegLoss(k=8, track=[("mle", 12)])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for extra in (None, cases.features(40, 8, seed=1)):
        x = cases.features(60, 8).requires_grad_()
        assert torch.equal(compiled(x, extra), loss(x, extra))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads is of Python 3.11")
def test_a_type_checker_sees_what_comes_back():
    """A Tensor, or a pair with return_stats=True, not Any; `make lint` runs mypy on callers of both (benchmarks)."""
    found = {
        inspect.signature(overload).parameters["return_stats"].annotation: inspect.signature(overload).return_annotation
        for overload in typing.get_overloads(ldk.ldreg_loss)
    }
    assert found == {
        "Literal[False]": "Tensor",
        "Literal[True]": "tuple[Tensor, LDRegStats]",
        "bool": "Tensor | tuple[Tensor, LDRegStats]",
    }
    keywords = set(inspect.signature(ldk.ldreg_loss).parameters) - {"x", "y", "return_stats"}
    source = Path(inspect.getfile(ldk.ldreg_loss)).read_text()
    options = source.partition("class _Options(TypedDict")[2].partition("\n\n\n")[0]
    assert keywords == {
        line.split(":")[0].strip() for line in options.splitlines() if line.startswith("        ") and ":" in line
    }
