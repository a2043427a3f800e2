"""What autograd, torch.compile and autocast may expect of the ops: the contract of a built-in.

gradcheck is given y apart from x: with y=None the references are the same numbers held constant, which a
finite difference cannot do.
"""

import cases
import oracle
import pytest
import tolerances
import torch

import ldreg_kernels as ldk
from ldreg_kernels.kernels.contract import ESTIMATORS
from ldreg_kernels.ops.call import Call, parse, text_of


def lid(backend, x, y=None, **options):
    return ldk.lid(x, y, k=6, backend=backend.name, **options)


def loss(backend, x, y=None, **options):
    return ldk.ldreg_loss(x, y, k=6, backend=backend.name, **options)


BOTH = pytest.mark.parametrize("function", [lid, loss], ids=["lid", "ldreg_loss"])


@pytest.fixture
def x(backend):
    return backend.put(cases.features(30, 5)).requires_grad_()


# ------------------------------------------------------------------------------------------------- gradcheck


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradcheck_lid(backend, estimator):
    x = backend.put(cases.normal(7, 3, dtype=torch.float64)).requires_grad_()
    y = backend.put(cases.normal(20, 3, seed=1, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda t: lid(backend, t, y, estimator=estimator), x)
    batch = x.detach().clone()
    assert torch.autograd.gradcheck(
        lambda t: ldk.lid(t, batch, k=5, estimator=estimator, self_index=0, backend=backend.name), x
    )


@pytest.mark.parametrize(
    ("form", "target", "reduction"),
    [
        ("l1", None, "mean"),
        ("l1_abs", None, "sum"),
        ("l2", None, "mean"),
        ("min", None, "none"),
        ("target", 3.0, "none"),
    ],
)
def test_gradcheck_loss(backend, form, target, reduction):
    x = backend.put(cases.normal(6, 3, dtype=torch.float64)).requires_grad_()
    y = backend.put(cases.normal(20, 3, seed=1, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda t: loss(backend, t, y, form=form, target=target, reduction=reduction), x)


# -------------------------------------------------------------------------------------------------
# registration


def flat_arguments(backend, x, y, own, offset, need_grad):
    """Arguments of the registered launches, as their schemas have them."""
    modes = {"gradient": need_grad, "backend": backend.name}
    loss = Call("hill", "target", "none", (("mle", 4), ("mom", 9)), **modes)
    ldreg = (x, y, own, offset, 6, 3.0, text_of(loss))
    return {
        "knn": (x, y, 6, own, offset, backend.name, "exact"),
        "lid": (x, y, own, offset, 6, text_of(Call("mom", **modes))),
        "ldreg": ldreg,
        "ldreg_value": ldreg,
    }


def test_a_call_is_its_text():
    for call in (
        Call("mom"),
        Call("mle", drop_smallest=True, gradient=True),
        Call("hill", "target", "none", (("mle", 4), ("mom", 9)), True, backend="cpu", precision="fast"),
    ):
        assert parse(text_of(call)) == call
    for text in ("", "estimator=mom", text_of(Call("mom")).replace("gradient=0", "gradient=no"), "estimator"):
        with pytest.raises(ValueError, match="call must be a text such as 'estimator=mom"):
            parse(text)


@pytest.mark.parametrize("op", ["knn", "lid", "ldreg", "ldreg_value"])
@pytest.mark.parametrize("references", ["own", "apart", "offset", "map", "half", "float64", "strided", "empty"])
def test_opcheck(backend, op, references):
    x, y = backend.put(cases.normal(12, 5)), backend.put(cases.normal(30, 5, seed=1))
    own, offset = None, None
    if references == "own":
        y, offset = None, 0
    elif references == "offset":
        offset = 7
    elif references == "map":
        own = backend.put(torch.arange(12) - 1)
    elif references == "half":
        x, y = x.bfloat16(), y.bfloat16()
    elif references == "float64":
        x, y = x.double(), y.double()
    elif references == "strided":
        x, y = x.t().contiguous().t(), y[::2]
    elif references == "empty":
        x = x[:0]
    for need_grad in (False, True):
        arguments = flat_arguments(backend, x, y, own, offset, need_grad)[op]
        torch.library.opcheck(getattr(torch.ops.ldreg, op).default, arguments)


def step(backend_name, x, y):
    """Features through a layer, both functions, stats: what a training step compiles."""
    features = torch.tanh(x @ y)
    loss, stats = ldk.ldreg_loss(features, k=6, track=[("mle", 4)], backend=backend_name, return_stats=True)
    lid = ldk.lid(features, k=5, estimator="hill", backend=backend_name)
    nearest = ldk.knn(features, k=3, backend=backend_name).distances
    return loss + 0.1 * lid.log().mean(), stats.lid, stats.degenerate, stats.tracked["mle", 4], nearest


def check_compiled(backend_name, device, compiler):
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    layer = cases.normal(5, 8, seed=3).to(device).requires_grad_()
    for rows in (30, 41):
        batch = cases.features(rows, 5).to(device).requires_grad_()
        outcome = []
        for function in (step, compiled):
            value, *rest = function(backend_name, batch, layer)
            outcome.append([value, *rest, *torch.autograd.grad(value, (batch, layer))])
        for eager, fused in zip(*outcome, strict=True):
            torch.testing.assert_close(fused, eager, **tolerances.COMPILED)


def test_compile_fullgraph(backend):
    """One graph, forward and backward, equal to eager; a second batch size as well."""
    check_compiled(backend.name, backend.device, "aot_eager")


def test_compile_fullgraph_with_the_default_compiler():
    """Through Inductor once: its code goes around the ops, so one backend stands for all."""
    check_compiled("auto", "cpu", "inductor")


@BOTH
def test_compile_with_a_self_index_map(backend, x, function):
    torch._dynamo.reset()
    own = torch.arange(30, device=x.device) - 1
    references = x.detach() + 0.01
    compiled = torch.compile(
        lambda t: function(backend, t, references, self_index=own), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), function(backend, x, references, self_index=own))


# ------------------------------------------------------------------------------------------------- autocast
# and dtypes


@BOTH
def test_autocast(backend, x, function):
    """Half features in, float32 results out, gradient back through the half layer."""
    layer = backend.put(cases.normal(5, 8, seed=3)).requires_grad_()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        features = x @ layer
        assert features.dtype == torch.bfloat16
        value = function(backend, features)
        single = function(backend, x)  # float32 features stay float32: nothing is cast down
    assert value.dtype == single.dtype == torch.float32
    assert torch.equal(value, function(backend, features))
    assert torch.equal(single, function(backend, x))
    value.sum().backward()
    assert layer.grad.dtype == torch.float32
    assert layer.grad.abs().sum() > 0


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_gradient_has_the_dtype_of_x(backend, function, dtype):
    x = backend.put(cases.features(30, 5)).to(dtype).requires_grad_()
    value = function(backend, x)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.sum().backward()
    assert x.grad.dtype == dtype


# ------------------------------------------------------------------------------------------------- backward


@BOTH
def test_differentiating_twice_is_refused(backend, x, function):
    value = function(backend, x).sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    (plain,) = torch.autograd.grad(function(backend, x).sum(), x)
    assert torch.equal(gradient, plain)  # asking for the graph alone is harmless
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.square().sum().backward()


@BOTH
def test_differentiating_twice_is_refused_with_a_constant_incoming_gradient(backend, x, function):
    value = function(backend, x)
    (gradient,) = torch.autograd.grad(value, x, torch.ones_like(value), create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(gradient.sum(), x)


def test_stride_zero_and_strided_incoming_gradients(backend, x):
    value = lid(backend, x)
    (expanded,) = torch.autograd.grad(value, x, torch.ones((), device=x.device).expand(30), retain_graph=True)
    (dense,) = torch.autograd.grad(value, x, torch.ones(30, device=x.device), retain_graph=True)
    assert torch.equal(expanded, dense)
    weights = torch.arange(90.0, device=x.device)[::3]
    (strided,) = torch.autograd.grad(value, x, weights, retain_graph=True)
    (dense,) = torch.autograd.grad(value, x, weights.contiguous(), retain_graph=True)
    assert torch.equal(strided, dense)
    per_row = loss(backend, x, reduction="none")
    (expanded,) = torch.autograd.grad(per_row.sum(), x, retain_graph=True)
    (dense,) = torch.autograd.grad(per_row, x, torch.ones(30, device=x.device))
    assert torch.equal(expanded, dense)


@BOTH
def test_incoming_gradient_scales_rows(backend, x, function):
    """Row-locality: zero weight gives a zero row, and doubling the weight doubles it exactly."""
    options = {"reduction": "none"} if function is loss else {}
    value = function(backend, x, **options)
    weight = torch.ones(30, device=x.device)
    (plain,) = torch.autograd.grad(value, x, weight, retain_graph=True)
    weight[3], weight[4] = 0.0, 2.0
    (scaled,) = torch.autograd.grad(value, x, weight)
    assert (scaled[3] == 0).all()
    assert torch.equal(scaled[4], 2 * plain[4])
    assert torch.equal(scaled[5:], plain[5:])


@BOTH
def test_backward_twice_with_retain_graph(backend, x, function):
    value = function(backend, x).sum()
    value.backward(retain_graph=True)
    once = x.grad.clone()
    value.backward()
    assert torch.equal(x.grad, 2 * once)


@BOTH
def test_no_grad(backend, x, function):
    with torch.no_grad():
        quiet = function(backend, x)
    assert not quiet.requires_grad
    with torch.inference_mode():
        assert torch.equal(function(backend, x), quiet)
    assert torch.equal(function(backend, x).detach(), quiet)
    assert not function(backend, x.detach()).requires_grad


@BOTH
def test_y_gets_no_gradient(backend, x, function):
    y = (x.detach() * 1.1).requires_grad_()
    function(backend, x, y).sum().backward()
    assert x.grad is not None
    assert y.grad is None
    assert not function(backend, x.detach(), y).requires_grad


@BOTH
def test_in_place_change_of_x_after_forward(backend, x, function):
    features = x * 1.0
    value = function(backend, features).sum()
    (expected,) = torch.autograd.grad(function(backend, x * 1.0).sum(), x)
    with torch.no_grad():
        features.zero_()
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.equal(gradient, expected)


@BOTH
def test_gradient_flows_through_a_view(backend, x, function):
    (through_view,) = torch.autograd.grad(function(backend, x[:, 1:4]).sum(), x)
    assert (through_view[:, [0, 4]] == 0).all()
    assert through_view[:, 1:4].abs().sum() > 0


def test_x_used_as_its_own_references_is_the_detached_gradient(backend, x):
    """y=x, attached or not, is the same constant: gradient through the query only."""
    attached = lid(backend, x, x, self_index=0)
    detached = lid(backend, x, x.detach(), self_index=0)
    assert torch.equal(*(torch.autograd.grad(value.sum(), x)[0] for value in (attached, detached)))


def test_lid_and_loss_agree(backend, x):
    """The loss is -mean ln of what `lid` returns, gradient included."""
    direct = loss(backend, x)
    composed = -lid(backend, x).log().mean()
    assert abs(direct.item() - composed.item()) <= tolerances.LOSS * (1 + abs(direct.item()))
    (one,), (other,) = torch.autograd.grad(direct, x), torch.autograd.grad(composed, x)
    oracle.check_gradient(one.cpu(), other.cpu().double(), tolerances.GRADIENT, x.dtype)


def test_descending_the_loss_raises_lid(backend):
    """Thirty steps of gradient descent on R raise the geometric mean of the LIDs."""
    x = backend.put(cases.features(100, 12)).requires_grad_()
    optimiser = torch.optim.SGD([x], lr=0.5)
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        value = ldk.ldreg_loss(x, k=16, backend=backend.name)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.1
