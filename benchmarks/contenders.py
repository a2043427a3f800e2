"""Who is timed: this package's backends, the published computation, and every library that finds neighbours or LIDs.

A contender turns a case into a function of (x, y) that gives an `Answer`. A library that only searches is completed to
a loss with gradient by `_gather_gradient`, the way a good engineer would: closed-form weights and one `embedding_bag`.
Each library runs with its own best settings; none is approximate by choice. Nothing is checked or timed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import ldreg_kernels as ldk
from ldreg_kernels.kernels import reference

from . import searches
from .cases import LID_ESTIMATOR, Case
from .searches import Search, UnavailableError


@dataclass(frozen=True)
class Answer:
    """What one call gave; None where the case does not ask for it."""

    distances: Tensor | None = None  # [B, k]
    indices: Tensor | None = None  # [B, k]
    lid: Tensor | None = None  # [B]
    tracked: tuple[Tensor, ...] = ()  # [B] each
    loss: Tensor | None = None  # []
    gradient: Tensor | None = None  # [B, D]


Call = Callable[[Tensor, Tensor | None], Answer]


def _by_mode(case: Case, forward: Call, lid: Call, gradient: Call) -> Call:
    return {"forward": forward, "lid": lid}.get(case.mode, gradient)


@dataclass(frozen=True)
class Contender:
    """One row of the comparison.

    Attributes:
        name: as shown in tables; this package's own begin with "ldreg ".
        build: case -> function to time. Raises `UnavailableError` where the library is missing or cannot do the case.
        devices: where it runs.
        checked: the yardstick computes no answer to check.
        own_memory: its GPU memory does not come from torch's allocator, which would report too little.
        pilot: may be slower by orders of magnitude: try a part of the queries first.
        compiles: its first call compiles for seconds.
        rival: the devices on which the grid counts it: libraries, and the simple form that is the strongest.
    """

    name: str
    build: Callable[[Case], Call]
    devices: tuple[str, ...] = ("cpu", "cuda")
    checked: bool = True
    own_memory: bool = False
    pilot: bool = False
    compiles: bool = False
    rival: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """One of this package's backends: held to the contract of precision="exact"."""
        return self.name.startswith("ldreg ")


# ------------------------------------------------------------------------------------------------- this package


def _ours(backend: str, case: Case) -> Call:
    reason = ldk.backends()[backend]
    if reason is not None:
        raise UnavailableError(reason)

    def forward(x: Tensor, y: Tensor | None) -> Answer:
        found = ldk.knn(x, y, k=case.k, self_index=_self_index(y), backend=backend)
        return Answer(distances=found.distances, indices=found.indices)

    def lid(x: Tensor, y: Tensor | None) -> Answer:
        own = _self_index(y)
        return Answer(lid=ldk.lid(x, y, k=case.k, estimator=LID_ESTIMATOR, self_index=own, backend=backend))

    def gradient(x: Tensor, y: Tensor | None) -> Answer:
        x = x.detach().requires_grad_()
        value, stats = ldk.ldreg_loss(
            x, y, k=case.k, self_index=_self_index(y), track=case.track, backend=backend, return_stats=True
        )
        value.backward()
        return Answer(lid=stats.lid, tracked=tuple(stats.tracked.values()), loss=value.detach(), gradient=x.grad)

    return _by_mode(case, forward, lid, gradient)


def _self_index(y: Tensor | None) -> int | None:
    return None if y is None else 0


# ------------------------------------------------------------------------------------------------- published form


def _published(case: Case, compiled: bool = False) -> Call:
    """cdist + full sort + autograd, and one more pass without gradient for every tracked LID.

    Half precision features are taken to float32 first, as autocast does for cdist; in bf16 its answer is useless.
    """

    def search(x: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        distances, indices = torch.cdist(x, references).sort(dim=1)
        return distances[:, 1 : case.k + 1], indices[:, 1 : case.k + 1]

    def estimate(x: Tensor, references: Tensor, k: int = case.k, estimator: str = "mom") -> Tensor:
        return reference.published_lid(x, references, k, estimator)

    if compiled:
        torch._dynamo.reset()  # or the second shape would be compiled for all shapes
        search, estimate = torch.compile(search, dynamic=False), torch.compile(estimate, dynamic=False)

    def forward(x: Tensor, y: Tensor | None) -> Answer:
        distances, indices = search(x.float(), (x if y is None else y).float())
        return Answer(distances=distances, indices=indices)

    def lid(x: Tensor, y: Tensor | None) -> Answer:
        return Answer(lid=estimate(x.float(), (x if y is None else y).float(), case.k, LID_ESTIMATOR))

    def gradient(x: Tensor, y: Tensor | None) -> Answer:
        references = (x if y is None else y).float()
        leaf = x.detach().requires_grad_()
        value = estimate(leaf.float(), references)
        loss = -value.log().mean()
        loss.backward()
        with torch.no_grad():
            tracked = tuple(estimate(x.float(), references, k, name) for name, k in case.track)
        return Answer(lid=value.detach(), tracked=tracked, loss=loss.detach(), gradient=leaf.grad)

    return _by_mode(case, forward, lid, gradient)


def _cdist_topk(case: Case) -> Call:
    """cdist + topk + autograd: the published form without its sort, and one search for everything tracked."""

    def forward(x: Tensor, y: Tensor | None) -> Answer:
        found = torch.cdist(x.float(), (x if y is None else y).float()).topk(case.k + 1, largest=False)
        return Answer(distances=found.values[:, 1:], indices=found.indices[:, 1:])

    def lid(x: Tensor, y: Tensor | None) -> Answer:
        distances = forward(x, y).distances
        assert distances is not None
        return Answer(lid=reference.hill(distances))

    def gradient(x: Tensor, y: Tensor | None) -> Answer:
        leaf = x.detach().requires_grad_()
        references = (x if y is None else y).float()
        distances = torch.cdist(leaf.float(), references).topk(case.k_max + 1, largest=False).values[:, 1:]
        value = reference.mom(distances[:, : case.k])
        loss = -value.log().mean()
        loss.backward()
        tracked = _tracked(case, distances.detach())
        return Answer(lid=value.detach(), tracked=tracked, loss=loss.detach(), gradient=leaf.grad)

    return _by_mode(case, forward, lid, gradient)


def _tracked(case: Case, distances: Tensor) -> tuple[Tensor, ...]:
    estimators = {"mom": reference.mom, "mle": reference.mle}
    return tuple(estimators[name](distances[:, :k]) for name, k in case.track)


# ------------------------------------------------------------------------------------------------- search + gather


def _complete(make_search: Callable[[Case], Search], case: Case) -> Call:
    """A search alone for `forward`; with the estimate and `embedding_bag` behind it for the loss and its gradient."""
    search = make_search(case)

    def forward(x: Tensor, y: Tensor | None) -> Answer:
        distances, indices = search(x, y, case.k)
        return Answer(distances=distances, indices=indices)

    def lid(x: Tensor, y: Tensor | None) -> Answer:
        return Answer(lid=reference.hill(search(x, y, case.k)[0]))

    def gradient(x: Tensor, y: Tensor | None) -> Answer:
        distances, indices = search(x, y, case.k_max)
        value, grad = _gather_gradient(x, x if y is None else y, distances[:, : case.k], indices[:, : case.k])
        return Answer(lid=value, tracked=_tracked(case, distances), loss=-value.log().mean(), gradient=grad)

    return _by_mode(case, forward, lid, gradient)


def _gather_gradient(x: Tensor, y: Tensor, d: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """LID by the method of moments and the gradient of -mean ln LID, from d and idx [B, k].

    With m the mean of the k-1 nearer distances and ln LID = ln m - ln(d_k - m):
    grad_i = sum_j w_ij (x_i - y_j),  w_ij = -1/B (d ln LID_i / d d_ij) / d_ij.
    """
    k = d.shape[1]
    m = d[:, :-1].mean(1, keepdim=True)
    rest = d[:, -1:] - m
    slope = torch.cat([((1 / m + 1 / rest) / (k - 1)).expand(-1, k - 1), -1 / rest], dim=1)  # [B, k]
    w = (slope / d / -len(d)).to(x.dtype)
    grad = w.sum(1, keepdim=True) * x - F.embedding_bag(idx, y, per_sample_weights=w, mode="sum")
    return (m / rest).squeeze(1), grad


# ------------------------------------------------------------------------------------------------- LID alone


def _torchid(case: Case) -> Call:
    """torchid's maximum-likelihood estimator: a chunked matrix product, `topk` and Hill's formula in one `fit`.

    It estimates; it does not regularise. Its differentiable forms average LID over the rows, or its inverse, where this
    loss averages ln LID, and its estimators take no references beside the batch itself: so only `lid`, and only B = N.
    """
    if case.mode != "lid" or case.B != case.N:
        raise UnavailableError("does not apply: it estimates the LID of a batch, without neighbours or this gradient")
    estimators = searches.imported("torchid.estimators")

    def lid(x: Tensor, y: Tensor | None) -> Answer:
        fitted = estimators.MLE().fit(x.float(), n_neighbors=case.k)
        return Answer(lid=fitted.dimension_pw_)

    return lid


# ------------------------------------------------------------------------------------------------- the list


def _product(case: Case) -> Call:
    def multiply(x: Tensor, y: Tensor | None) -> Answer:
        torch.mm(x, (x if y is None else y).T)
        return Answer()

    return multiply


YARDSTICK = "torch.mm"
CPU, CUDA = ("cpu",), ("cuda",)
BOTH = (*CPU, *CUDA)
CONTENDERS = (
    Contender("ldreg cuda", partial(_ours, "cuda"), CUDA),
    Contender("ldreg triton", partial(_ours, "triton"), CUDA),
    Contender("ldreg cpu", partial(_ours, "cpu"), CPU),
    Contender("published", _published),
    Contender("published compiled", partial(_published, compiled=True), compiles=True),
    Contender("cdist + topk", _cdist_topk),
    Contender("mm + topk + bag fp32", partial(_complete, partial(searches.product, "float32")), rival=BOTH),
    Contender("mm + topk + bag tf32", partial(_complete, partial(searches.product, "tf32")), CUDA, rival=CUDA),
    # A CPU's product comes rounded to bf16: no gradient, so no rival there; and slow where bf16 instructions lack.
    Contender(
        "mm + topk + bag bf16", partial(_complete, partial(searches.product, "bfloat16")), pilot=True, rival=CUDA
    ),
    Contender("faiss", partial(_complete, searches.faiss_cpu), CPU, rival=CPU),
    Contender("faiss gpu", partial(_complete, searches.faiss_gpu), CUDA, own_memory=True, rival=CUDA),
    Contender("scikit-learn", partial(_complete, searches.scikit_learn), CPU, rival=CPU),
    Contender("scikit-learn-intelex", partial(_complete, searches.scikit_learn_intelex), CPU, rival=CPU),
    Contender("usearch", partial(_complete, searches.usearch), CPU, pilot=True, rival=CPU),
    Contender("NumKong", partial(_complete, searches.numkong), CPU, rival=CPU),
    Contender("KeOps", partial(_complete, searches.keops), pilot=True),
    Contender("cuVS", partial(_complete, searches.cuvs), CUDA, own_memory=True, rival=CUDA),
    Contender("flashlib", partial(_complete, searches.flashlib), CUDA, rival=CUDA),
    Contender("torchid", _torchid, CUDA),
    Contender(YARDSTICK, _product, checked=False),
)


def contenders(device: str) -> tuple[Contender, ...]:
    """Everyone who takes part on "cpu" or "cuda", this package's backends first."""
    return tuple(contender for contender in CONTENDERS if device in contender.devices)


def named(name: str) -> Contender:
    """The contender of this name.

    Raises:
        ValueError: there is none.
    """
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise ValueError(f"contender must be one of {', '.join(c.name for c in CONTENDERS)}; got {name!r}")
