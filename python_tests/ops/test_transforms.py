"""torch.func and forward-mode differentiation, compiled autograd, and what is refused.

The kind behind it: "must override setup_context", or, worse, a second derivative of zero without a word.
"""

import copy

import cases
import oracle
import pytest
import tolerances
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap

import ldreg_kernels as ldk

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TWICE = "cannot be differentiated twice"


def lid(backend, x, y=None, **options):
    return ldk.lid(x, y, k=6, backend=backend.name, **options)


def loss(backend, x, y=None, **options):
    return ldk.ldreg_loss(x, y, k=6, backend=backend.name, **options)


BOTH = pytest.mark.parametrize("function", [lid, loss], ids=["lid", "ldreg_loss"])


def plain_gradient(function, backend, x, *rest, **options):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(backend, x, *rest, **options).sum(), x)[0]


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad(backend, function, dtype):
    """The gradient of autograd to the last bit, in the dtype of x; with references, an offset, a map."""
    x = backend.put(cases.features(30, 5)).to(dtype)
    y = backend.put(cases.features(40, 5, seed=1)).to(dtype)
    own = backend.put(torch.arange(30) - 1)
    for rest, options in [((), {}), ((y,), {}), ((y,), {"self_index": 3}), ((y,), {"self_index": own})]:
        expected = plain_gradient(function, backend, x, *rest, **options)
        found, value = grad_and_value(lambda t: function(backend, t, *rest, **options).sum())(x)  # noqa: B023
        assert torch.equal(found, expected)
        assert torch.equal(value, function(backend, x, *rest, **options).sum())


def test_grad_with_statistics(backend):
    x = backend.put(cases.features(30, 5))

    def with_stats(t):
        value, stats = loss(backend, t, track=[("mle", 9)], return_stats=True)
        return value, (stats.lid, stats.tracked["mle", 9], stats.degenerate)

    found, (value, of_rows) = grad_and_value(with_stats, has_aux=True)(x)
    expected, (expected_lid, tracked, degenerate) = with_stats(x)
    assert torch.equal(value, expected)
    for one, other in zip(of_rows, (expected_lid, tracked, degenerate), strict=True):
        assert torch.equal(one, other)
    t = x.detach().requires_grad_()
    assert torch.equal(found, torch.autograd.grad(with_stats(t)[0], t)[0])


@BOTH
def test_degenerate_rows_have_gradient_zero(function):
    x = cases.features(30, 5)
    x[:8] = x[0]  # LID NaN; and 0 for what comes next
    x[8:14] = x[8]
    backend = type("Auto", (), {"name": "auto"})
    found = grad(lambda t: function(backend, t).nan_to_num(1.0).clamp(min=0.1).log().sum())(x)
    assert found.isfinite().all()
    assert (found[:8] == 0).all()


@BOTH
def test_vmap(backend, function):
    """One launch after another: the same bits as a loop; over queries, references, maps, and the gradient of all."""
    xs = backend.put(torch.stack([cases.features(12, 4, seed=seed) for seed in range(3)]))
    ys = backend.put(torch.stack([cases.features(15, 4, seed=10 + seed) for seed in range(3)]))
    own = backend.put(torch.stack([torch.arange(12) - shift for shift in (1, 0, -1)]))

    def one(x, y, own):
        return function(backend, x, y, self_index=own)

    assert torch.equal(vmap(lambda x: function(backend, x))(xs), torch.stack([function(backend, x) for x in xs]))
    looped = torch.stack([one(*given) for given in zip(xs, ys, own, strict=True)])
    assert torch.equal(vmap(one)(xs, ys, own), looped)
    assert torch.equal(
        vmap(one, in_dims=(None, 0, None))(xs[0], ys, own[0]), torch.stack([one(xs[0], y, own[0]) for y in ys])
    )
    of_each = vmap(grad(lambda x: function(backend, x).sum()))(xs)
    assert torch.equal(of_each, torch.stack([plain_gradient(function, backend, x) for x in xs]))
    nearest = vmap(lambda x: ldk.knn(x, k=3, backend=backend.name).indices, in_dims=1)(xs.transpose(0, 1))
    assert torch.equal(nearest, torch.stack([ldk.knn(x, k=3, backend=backend.name).indices for x in xs]))


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_forward_mode(backend, function, reduction):
    """One dot product a row with the gradient that the launch leaves behind: torch.func.jvp, dual numbers, jacfwd."""
    x = backend.put(cases.features(30, 5).double())
    tangent = backend.put(cases.normal(30, 5, seed=2, dtype=torch.float64))
    options = {"reduction": reduction} if function is loss else {}

    def of_rows(t):
        return function(backend, t, **options)

    value, found = jvp(of_rows, (x,), (tangent,))
    assert torch.equal(value, of_rows(x))
    by_row = (plain_gradient(function, backend, x, **options) * tangent).sum(1)
    expected = by_row if found.dim() else by_row.sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64 sums of five products
    with forward_ad.dual_level():
        dual = of_rows(forward_ad.make_dual(x, tangent))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, found)
    (pulled,) = vjp(lambda t: of_rows(t).sum(), x)[1](torch.ones((), dtype=x.dtype, device=x.device))
    assert torch.equal(pulled, plain_gradient(function, backend, x, **options))


@BOTH
def test_gradcheck_forward_and_batched(backend, function):
    x = backend.put(cases.normal(5, 2, dtype=torch.float64)).requires_grad_()
    y = backend.put(cases.normal(9, 2, seed=1, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda t: function(backend, t, y),
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


def second_derivatives(f, x):
    """Every way to differentiate twice."""
    g = grad(lambda t: f(t).sum())
    return {
        "grad of grad": lambda: grad(lambda t: g(t).square().sum())(x),
        "forward of reverse": lambda: hessian(lambda t: f(t).sum())(x),
        "reverse of reverse": lambda: jacrev(g)(x),
        "reverse of forward": lambda: jacrev(jacfwd(f))(x),
        "forward of forward": lambda: jacfwd(jacfwd(f))(x),
    }


@BOTH
@pytest.mark.parametrize("way", second_derivatives(None, None))
def test_differentiating_twice_is_refused(backend, function, way):
    x = backend.put(cases.normal(9, 3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=TWICE):
        second_derivatives(lambda t: function(backend, t), x)[way]()


@BOTH
def test_ends_of_the_range(backend, function):
    """An empty vmap has shapes; a tangent of the references, which are constant, is no tangent of the result."""
    none = vmap(lambda x: function(backend, x))(backend.put(torch.zeros(0, 10, 4)))
    assert none.shape == ((0, 10) if function is lid else (0,))
    assert vmap(lambda x: ldk.knn(x, k=3).indices)(torch.zeros(0, 10, 4)).shape == (0, 10, 3)
    x, y = backend.put(cases.features(20, 4)), backend.put(cases.features(30, 4, seed=1))
    value, tangent = jvp(lambda y: function(backend, x, y), (y,), (torch.ones_like(y),))
    assert torch.equal(value, function(backend, x, y))
    assert (tangent == 0).all()
    assert (grad(lambda y: function(backend, x, y).sum())(y) == 0).all()


@BOTH
def test_differentiating_a_gradient_by_what_scaled_the_loss_is_refused(backend, function):
    """d/ds of d(s L)/dx: the graph of a gradient leads to no further derivative, and says so."""
    x = backend.put(cases.features(20, 4)).requires_grad_()
    s = torch.ones((), device=x.device, requires_grad=True)
    (gradient,) = torch.autograd.grad(s * function(backend, x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=TWICE):
        torch.autograd.grad(gradient.sum(), s, allow_unused=True)


def test_a_module_after_a_transform():
    """What it knows of the transform's wrappers would be of no use, nor could it be copied."""
    loss = ldk.LDRegLoss(k=6)
    x = cases.features(20, 4)
    assert torch.equal(grad(loss)(x), plain_gradient(lambda _, t: ldk.ldreg_loss(t, k=6), None, x))
    assert loss.stats is None
    copy.deepcopy(loss)(x)
    assert vmap(loss)(x[None]).shape == (1,)


def test_a_model_of_functions(backend):
    """Per-sample weights of a functional module: grad through a layer, vmapped over an ensemble of layers."""
    layer = torch.nn.Linear(5, 4, bias=False).to(backend.device)
    x = backend.put(cases.features(24, 5))
    weights = backend.put(torch.stack([cases.normal(4, 5, seed=seed) for seed in range(2)]))

    def objective(weight):
        return loss(backend, functional_call(layer, {"weight": weight}, x))

    found = vmap(grad(objective))(weights)
    for weight, gradient in zip(weights, found, strict=True):
        weight = weight.clone().requires_grad_()
        (expected,) = torch.autograd.grad(objective(weight), weight)
        oracle.check_gradient(gradient.cpu(), expected.cpu().double(), tolerances.GRADIENT, torch.float32)


def test_compiled_autograd(backend):
    """The backward pass as a graph of its own: eager forward, compiled backward, twice with other sizes."""
    torch._dynamo.reset()
    for rows in (30, 41):
        x = backend.put(cases.features(rows, 5)).requires_grad_()
        value = loss(backend, x) + lid(backend, x).log().mean()
        (expected,) = torch.autograd.grad(value, x, retain_graph=True)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
            value.backward()
        assert torch.equal(x.grad, expected)


@pytest.mark.filterwarnings("ignore::UserWarning:torch._dynamo")  # that it looks through a cache, and at a C function
@pytest.mark.parametrize("function", [lambda t: ldk.ldreg_loss(t, k=6), lambda t: ldk.lid(t, k=6).sum()])
def test_a_compiler_around_a_transform(function):
    """torch.compile leaves the call as it is; looking through it, torch 2.13 gave gradients of 0 without an error."""
    xs = torch.stack([cases.features(20, 5, seed=seed) for seed in range(2)])
    for transform, given in [
        (grad(function), xs[0]),
        (vmap(function), xs),
        (vmap(grad(function)), xs),
        (lambda t: jvp(function, (t,), (torch.ones_like(t),))[1], xs[0]),
    ]:
        torch._dynamo.reset()
        assert torch.equal(torch.compile(transform, backend="aot_eager")(given), transform(given))
