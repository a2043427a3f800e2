"""Queries among their own references: what is left out by memory or by request, and what is warned of.

The kind behind it: `ldreg_loss(h, gathered)` with h inside of `gathered` and no `self_index` runs, and is wrong by tens
of per cent, because every row is its own nearest neighbour.
"""

import warnings

import cases
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ldreg_kernels as ldk
from ldreg_kernels.kernels import native, notice
from ldreg_kernels.ops import own_rows
from ldreg_kernels.ops.call import Call
from ldreg_kernels.ops.lid import lid_function

COPIES = "rows have a reference at distance 0"


@pytest.fixture(autouse=True)
def nothing_said():
    """As in a fresh process, before and after."""
    for known in (notice._said, own_rows._watches):
        known.clear()
    yield
    for known in (notice._said, own_rows._watches):
        known.clear()


def gathered(rows=40, D=12):
    """Features of a rank, the features of three ranks, and where the former sit in the latter."""
    y = cases.features(3 * rows, D)
    return y[rows : 2 * rows].clone(), y, rows


def warnings_of(calls):
    """What the calls warn of, one after another."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in calls:
            call()
    return [str(warning.message) for warning in caught]


# ------------------------------------------------------------------------------------------------- missed aloud


@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("function", [ldk.lid, ldk.ldreg_loss])
def test_own_rows_counted_twice_are_warned_of_once(backend, function, stats):
    x, y, _ = gathered()
    x, y = backend.put(x), backend.put(y)
    options = {"return_stats": True} if stats and function is ldk.ldreg_loss else {}
    said = warnings_of([lambda: function(x, y, k=8, backend=backend.name, **options)] * 4)
    assert len(said) == 1
    assert said[0].startswith(f"40 of 40 {COPIES}")
    assert 'self_index="auto"' in said[0]


def test_the_warning_is_of_the_callers_line():
    x, y, _ = gathered()
    with pytest.warns(UserWarning, match=COPIES) as caught:
        ldk.ldreg_loss(x, y, k=8)
    assert caught[0].filename == __file__


def test_a_count_on_its_way_is_judged_later():
    """A GPU's arrives with an event; until then nothing is said, and nothing is waited for."""

    class Event:
        arrived = False

        def query(self):
            return self.arrived

    watch, event, x = own_rows.Watch(1, ""), Event(), torch.zeros(40, 2)
    assert watch.due(x)
    watch.pending.append(own_rows._Look(torch.tensor(30), 40, event))
    assert warnings_of([lambda: watch.due(x)] * 5) == []
    event.arrived = True
    assert len(warnings_of([lambda: watch.due(x)] * 5)) == 1
    assert watch.over


def test_the_count_rides_along(backend):
    """Copies of a row count, whatever the estimator, and several of them count once."""
    x, y, offset = gathered()
    y = torch.cat([y, x[:7]])
    _, stats = backend.loss(x, y, k=8, self_index=offset)
    assert stats.copies == 7
    _, stats = backend.loss(x, y, k=8, estimator="mom", track=[("mle", 5)])
    assert stats.copies == 40
    assert list(stats.tracked) == [("mle", 5)]
    assert backend.loss(x, k=8)[1].copies is None


def test_nothing_is_said_where_nothing_is_wrong():
    x, y, offset = gathered()
    few = torch.cat([y[:40] + 1.0, x[:15]])  # a minority of copies may be chance
    said = warnings_of(
        [lambda: ldk.ldreg_loss(x, y, k=8, self_index=offset)] * 6
        + [lambda: ldk.ldreg_loss(x, y[:40], k=8)] * 6
        + [lambda: ldk.ldreg_loss(x, few, k=8)] * 6
        + [lambda: ldk.ldreg_loss(x, k=8)] * 6
        + [lambda: ldk.lid(x, y[:40], k=8)] * 6
    )
    assert said == []


def test_auto_is_refused_where_rows_cannot_be_read():
    x, y, _ = gathered()

    def auto(t):
        return ldk.ldreg_loss(t, y, k=8, self_index="auto")

    for call in (
        lambda: torch.func.grad(auto)(x),
        lambda: torch.func.vmap(auto)(x[None]),
        lambda: torch.func.jvp(auto, (x,), (x,)),
        lambda: ldk.lid(x.to("meta"), y.to("meta"), k=8, self_index="auto"),
    ):
        with pytest.raises(ValueError, match=r'^self_index="auto" reads the rows'):
            call()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(auto, backend="eager")(x), auto(x))  # by a break of the graph


def test_counting_is_rare(monkeypatch):
    """In the 1st, the 10th, the 100th call of a kind: the others cost what they did."""
    asked, ldreg = [], native.ldreg
    monkeypatch.setattr(native, "ldreg", lambda *given: asked.append(given[5]) or ldreg(*given))
    x, y, _ = gathered()
    for _ in range(101):
        ldk.ldreg_loss(x, y[:40], k=8, backend="cpu")
    assert [call + 1 for call, track in enumerate(asked) if track] == [1, 10, 100]


def test_a_mistake_after_good_calls_is_found():
    """Whoever made them: a warning comes, if later; a bank of references that grows is of one kind."""
    x, y, _ = gathered()
    said = warnings_of(
        [lambda: ldk.ldreg_loss(x, y[:40], k=8)] * 4
        + [lambda n=n: ldk.ldreg_loss(x, torch.cat([x, y[: 40 - n]]), k=8) for n in range(20)]
    )
    assert len(said) == 1


def test_the_module_waits_for_a_momentum_encoder_to_move():
    """Equal to the encoder until its first update, it is no mistake; features gathered by hand stay equal."""
    x, _, _ = gathered()
    loss = ldk.LDRegLoss(k=8)
    momentum = [x] * 9 + [x + 1e-3 * step for step in range(1, 95)]
    assert warnings_of([lambda m=m: loss(x, m) for m in momentum]) == []
    loss = ldk.LDRegLoss(k=8)
    said = warnings_of([lambda: loss(x, x)] * 12)
    assert len(said) == 1
    assert "extra_references must not hold them again" in said[0]
    assert "momentum encoder that has not moved" in said[0]


def test_what_records_or_pretends_is_not_looked_at():
    """Meta and fake tensors, a traced graph: nothing is counted, nothing is said, and real calls go on as before."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    x, y, _ = gathered()
    loss = ldk.LDRegLoss(k=8)

    def calls(x, y):
        return ldk.ldreg_loss(x, y, k=8), ldk.lid(x, y, k=8), loss(x, y)

    calls(x.to("meta"), y.to("meta"))
    calls(x.to("meta"), y.to("meta"))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x), mode.from_tensor(y)
        assert warnings_of([lambda: calls(*fake)] * 2) == []
    for tracing in ("real", "fake"):
        graph = make_fx(calls, tracing_mode=tracing)(x, y)
        assert "hill" not in str(graph.code).replace("estimator=mom", "").split("ldreg_value")[1].split("\n")[0]
    assert len(warnings_of([lambda: calls(x, y)] * 3)) == 1


def test_a_watched_module_can_be_copied_and_saved(tmp_path):
    import copy

    x, _, _ = gathered()
    loss = ldk.LDRegLoss(k=8, track=[("mle", 5)])
    value = loss(x, x)
    torch.save(loss, tmp_path / "loss.pt")
    for again in (copy.deepcopy(loss), torch.load(tmp_path / "loss.pt", weights_only=False)):
        assert torch.equal(again(x, x), value)


# ------------------------------------------------------------------------------------------------- found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("function", [ldk.lid, ldk.ldreg_loss, ldk.knn])
def test_auto_is_what_the_offset_is(function, dtype):
    x, y, offset = gathered()
    x, y = x.to(dtype), y.to(dtype)
    expected = function(x, y, k=8, self_index=offset)
    for queries, references in [
        (x, y),  # equal rows
        (y[offset : offset + 40], y),  # the same memory
        (y[offset : offset + 40].requires_grad_(), y),
        (y[offset : offset + 40, 1:], y[:, 1:]),
    ]:
        found = function(queries, references, k=8, self_index="auto")
        if queries.shape[1] == y.shape[1]:
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        else:
            torch.testing.assert_close(found, function(queries, references, k=8, self_index=offset), rtol=0, atol=0)


def test_auto_in_the_batch_itself_and_in_none():
    x, y, _ = gathered()
    assert torch.equal(ldk.lid(x, k=8, self_index="auto"), ldk.lid(x, k=8))
    assert torch.equal(ldk.lid(x, y[:40], k=8, self_index="auto"), ldk.lid(x, y[:40], k=8))
    with pytest.raises(
        ValueError, match=r'^self_index must be an int, an int64 tensor, "auto" or None, got \'offset\'$'
    ):
        ldk.lid(x, y, k=8, self_index="offset")


@given(
    seed=st.integers(0, 999), rows=st.integers(1, 20), others=st.integers(0, 20), D=st.integers(1, 6), data=st.data()
)
def test_auto_finds_rows_wherever_they_are(seed, rows, others, D, data):
    """A fuzz: some rows of x stand somewhere in y, duplicates and NaN included; the map says where, -1 where not."""
    generator = cases.seeded(seed)
    pool = torch.randint(0, 3, (rows + others, D), generator=generator).float()
    pool[torch.rand(rows + others, generator=generator) < 0.1] = torch.nan
    x = pool[:rows].clone()
    y = pool[torch.randperm(rows + others, generator=generator)[: data.draw(st.integers(1, rows + others))]]
    found = own_rows.find(x, y)
    found = -torch.ones(rows, dtype=torch.int64) if found is None else found
    if isinstance(found, int):
        found = found + torch.arange(rows)
    equal = ((x[:, None] == y[None]) | (x[:, None].isnan() & y[None].isnan())).all(2)  # [rows, y]
    assert torch.equal(found >= 0, equal.any(1))
    for row, place in enumerate(found.tolist()):
        assert place < 0 or equal[row, place]


def test_zeros_of_both_signs_are_equal_and_negated_views_are_not():
    x = torch.tensor([[0.0, 1.0], [-0.0, 2.0]])
    assert own_rows.find(x, torch.tensor([[3.0, 3.0], [-0.0, 1.0], [0.0, 2.0]])) == 1
    z = torch.complex(torch.ones(5, 3), cases.features(5, 3))
    there, negated = z.imag, z.conj().imag  # the same memory; the second negates when it is read
    assert not own_rows.same_storage(there, negated)
    assert own_rows.find(there, negated) is None
    assert own_rows.find(negated, negated) == 0


def test_a_view_that_negates_is_read_as_it_is(backend):
    """One column: its stride says nothing, and its memory holds the other sign."""
    values = cases.features(40, 1)
    x = torch.complex(torch.ones(40, 1), -values).conj().imag
    assert x.is_neg()
    y = cases.features(60, 1, seed=1)
    assert torch.equal(backend.lid(x, y, k=8), backend.lid(values, y, k=8))


def test_views_gathered_in_turn_make_a_map(backend):
    """Two ranks, two views, gathered view by view: the rows of a rank stand in two places."""
    views = cases.features(80, 10).view(2, 2, 20, 10)  # [view, rank, row, D]
    y, x = views.flatten(0, 2), views[:, 1].flatten(0, 1).clone()
    own = torch.cat([torch.arange(20, 40), torch.arange(60, 80)])
    assert torch.equal(own_rows.find(x, y), own)
    truth, _ = oracle.lid(x, y, k=8, self_index=own)
    oracle.check_lid(backend.lid(x, y, k=8, self_index="auto"), truth, backend.name, torch.float32)


# ------------------------------------------------------------------------------------------------- the same memory


def test_the_batch_detached_is_the_batch(backend):
    """`x.detach()` is x: half of the products, and the very same numbers."""
    x = backend.put(cases.features(150, 33)).requires_grad_()
    outcome = []
    for y, own in ((None, None), (x.detach(), 0), (x, 0), (x.detach(), "auto")):
        value = ldk.ldreg_loss(x, y, k=20, self_index=own, backend=backend.name)
        outcome.append((value, *torch.autograd.grad(value, x)))
    for value, gradient in outcome[1:]:
        assert torch.equal(value, outcome[0][0])
        assert torch.equal(gradient, outcome[0][1])


@pytest.mark.parametrize("estimator", ["mom", "mle"])
def test_dropping_the_smallest_of_the_batch_itself_is_leaving_out_self(backend, estimator):
    """The published convention on the batch's own memory costs what `lid` costs."""
    x = cases.features(150, 33)
    x[7] = x[90]  # of two copies one is dropped, and which makes no difference
    x = backend.put(x).requires_grad_()
    call = Call(estimator, drop_smallest=True, backend=backend.name)
    published = lid_function(x, x.detach(), None, None, 20, call)
    plain = ldk.lid(x, k=20, estimator=estimator, backend=backend.name)
    assert torch.equal(published, plain)
    weight = torch.arange(1.0, 151.0, device=x.device)
    assert torch.equal(*(torch.autograd.grad(value, x, weight)[0] for value in (published, plain)))


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_memory_takes_the_symmetric_path(shared, monkeypatch):
    problems, lid = [], native.lid
    monkeypatch.setattr(native, "lid", lambda problem, *rest: problems.append(problem) or lid(problem, *rest))
    x = cases.features(60, 8)
    y = x.detach() if shared else x.clone()
    lid_function(x, y, None, None, 8, Call("mom", drop_smallest=True, backend="cpu"))
    ldk.lid(x, y, k=8, self_index=0, backend="cpu")
    assert [problem.symmetric for problem in problems] == [shared, shared]
    # Other rows, or other columns, in the same memory are others.
    for a, b in ((x[:40], x[1:41]), (x[:, :4], x[:, 4:]), (x[::2][:30], x[:30])):
        assert not own_rows.same_storage(a, b)


def test_rows_found_keep_their_other_copies():
    """Left out by index, a row among copies of itself keeps the copies: they are other rows."""
    x = cases.features(50, 6)
    y = torch.cat([x, x[:5]])
    truth, _ = oracle.lid(x, y, k=10, self_index=0)
    oracle.check_lid(ldk.lid(x, y, k=10, self_index="auto"), truth, "auto", torch.float32)
