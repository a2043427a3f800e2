"""Nearest-neighbour searches by torch's matrix product and by other libraries, behind one signature.

    search(x [B, D], y [N, D] or None, k) -> distances [B, k] ascending, indices [B, k], the row itself left out

Row i of x is row i of y. Libraries that know nothing of "self" are asked for k + 1 and the row's own index is removed.
The libraries' settings stand here, each with the reason for it. None is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .cases import Case

Search = Callable[[Tensor, Tensor | None, int], tuple[Tensor, Tensor]]


class UnavailableError(Exception):
    """A contender cannot do a case here; the message, which is shown in the tables, says why."""


def imported(name: str) -> Any:
    """A contender's module.

    Raises:
        UnavailableError: it is missing, or something it needs.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library it needs is not there
        raise UnavailableError(f"missing: {error}") from None


def product(precision: str, case: Case) -> Search:
    """|y|^2 - 2 x y^T by one matrix product, then `torch.topk`: B x N memory, the matrix-product form's accuracy.

    Args:
        precision: of the product: "float32", "tf32" (CUDA) or "bfloat16", whatever dtype the features have.
        case: any.
    """

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        references = x if y is None else y
        norms = torch.linalg.vector_norm(references, dim=1, dtype=torch.float32).square_()  # [N]
        with float32_products(precision):
            scores = _scores(x, references, norms, precision)  # [B, N]
        scores.fill_diagonal_(torch.inf)
        found = scores.topk(k, largest=False)
        squares = found.values + norms[: len(x), None]  # the first rows of y are those of x
        return squares.clamp_(min=0).sqrt_(), found.indices

    return search


def _scores(x: Tensor, y: Tensor, norms: Tensor, precision: str) -> Tensor:
    if precision != "bfloat16":
        return torch.addmm(norms, x.float(), y.float().T, alpha=-2)
    x, y = x.bfloat16(), y.bfloat16()
    if not x.is_cuda:
        return torch.sub(norms, torch.mm(x, y.T), alpha=2)  # the CPU's product comes rounded to bf16
    scores = torch.mm(x, y.T, out_dtype=torch.float32)  # straight from the accumulators
    return torch.sub(norms, scores, alpha=2, out=scores)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """torch's float32 matrix products in tf32, or in float32, inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def faiss_cpu(case: Case) -> Search:
    """faiss `knn` (exact, float32). Blocks of 1024 x 1024 were the fastest of eight choices at 4096 x 4096 x 2048."""
    faiss = imported("faiss")
    faiss.cvar.distance_compute_blas_query_bs = 1024
    faiss.cvar.distance_compute_blas_database_bs = 1024
    faiss.omp_set_num_threads(torch.get_num_threads())

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        queries = x.float().numpy()
        references = queries if y is None else y.float().numpy()
        squares, indices = faiss.knn(queries, references, k + 1)
        return _without_self(torch.from_numpy(squares).sqrt_(), torch.from_numpy(indices))

    return search


def faiss_gpu(case: Case) -> Search:
    """faiss `knn_gpu` on torch's tensors and torch's stream; half precision as it is, bfloat16 where faiss knows it."""
    faiss = imported("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        raise UnavailableError("missing: this faiss is built without GPU support")
    imported("faiss.contrib.torch_utils")
    resources = faiss.StandardGpuResources()
    known = {torch.float32, torch.float16} | ({torch.bfloat16} if hasattr(faiss, "DistanceDataType_BF16") else set())

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        queries, references = (t if t.dtype in known else t.float() for t in (x, x if y is None else y))
        squares, indices = faiss.knn_gpu(resources, queries, references, k + 1)
        return _without_self(squares.float().sqrt_(), indices)

    return search


def scikit_learn(case: Case) -> Search:
    """scikit-learn's brute-force neighbours, which is its ArgKmin reduction for dense float32 Euclidean data."""
    neighbors = imported("sklearn.neighbors")

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        queries = x.float().numpy()
        references = queries if y is None else y.float().numpy()
        index = neighbors.NearestNeighbors(algorithm="brute", metric="euclidean").fit(references)
        distances, indices = index.kneighbors(queries, n_neighbors=k + 1)
        return _without_self(torch.from_numpy(distances), torch.from_numpy(indices))

    return search


def scikit_learn_intelex(case: Case) -> Search:
    """Brute force of Intel's oneDAL behind scikit-learn's interface; scikit-learn itself is not patched.

    It takes all processors unless told otherwise. Where it would hand a call on to scikit-learn it raises instead: that
    is another contender.
    """
    neighbors = imported("sklearnex.neighbors")
    config_context = imported("sklearnex").config_context

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        queries = x.float().numpy()
        references = queries if y is None else y.float().numpy()
        threads = torch.get_num_threads()
        with config_context(allow_sklearn_after_onedal=False):
            index = neighbors.NearestNeighbors(algorithm="brute", metric="euclidean", n_jobs=threads).fit(references)
            distances, indices = index.kneighbors(queries, n_neighbors=k + 1)
        return _without_self(torch.from_numpy(distances), torch.from_numpy(indices))

    return search


def usearch(case: Case) -> Search:
    """usearch's exact search: every pair by a vector kernel of its own, bfloat16 as it is (1.6 times faster)."""
    index = imported("usearch.index")
    half = index.ScalarKind.BF16

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        dtype = half if x.dtype == torch.bfloat16 else None
        queries, references = (
            t.view(torch.uint16).numpy() if dtype else t.float().numpy() for t in (x, x if y is None else y)
        )
        found = index.search(
            references,
            queries,
            k + 1,
            index.MetricKind.L2sq,
            exact=True,
            threads=torch.get_num_threads(),
            dtype=dtype,
        )
        distances, keys = torch.from_numpy(found.distances), torch.from_numpy(found.keys.astype("int64"))
        return _without_self(distances.sqrt_(), keys)

    return search


NUMKONG_ROWS = 1024  # queries at once; 512 and all of 4096 took as long, 128 half as much again


def numkong(case: Case) -> Search:
    """NumKong's distances to packed references, in blocks of queries, and `torch.topk`: it has no search of its own.

    It starts no threads, but releases Python's lock: each thread of a pool fills its share of a block's rows. Products
    of float32 features are summed in float64, which it does not let one choose; bfloat16 goes in as it is.
    """
    library = imported("numkong")
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        packed = library.dots_pack(library.from_dlpack(x if y is None else y))
        blocks = [_numkong_block(library, pool, threads, block, packed, k + 1) for block in x.split(NUMKONG_ROWS)]
        distances, indices = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return _without_self(distances.float(), indices)

    return search


def _numkong_block(
    library: Any, pool: ThreadPoolExecutor, threads: int, block: Tensor, packed: Any, k: int
) -> tuple[Tensor, Tensor]:
    rows, queries = len(block), library.from_dlpack(block)
    out = library.empty((rows, packed.width), dtype="float32" if block.dtype == torch.bfloat16 else "float64")
    bounds = [rows * i // threads for i in range(threads + 1)]

    def fill(begin: int, end: int) -> None:
        if begin < end:
            library.euclideans_packed(queries, packed, out=out, start_row=begin, end_row=end)

    list(pool.map(fill, bounds[:-1], bounds[1:]))
    found = torch.utils.dlpack.from_dlpack(out).topk(k, largest=False)
    return found.values, found.indices


def keops(case: Case) -> Search:
    """KeOps `Kmin_argKmin` of the symbolic squared differences: no B x N memory, compiled for this D and k."""
    keops_torch: ModuleType = imported("pykeops.torch")

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        x = x.float()
        references = x if y is None else y.float()
        rows = keops_torch.LazyTensor(x[:, None, :].contiguous())
        columns = keops_torch.LazyTensor(references[None, :, :].contiguous())
        squares, indices = ((rows - columns) ** 2).sum(-1).Kmin_argKmin(k + 1, dim=1)
        return _without_self(squares.sqrt(), indices)

    return search


def cuvs(case: Case) -> Search:
    """cuVS brute force on torch's tensors and stream; float16 as it is, bfloat16, which it lacks, as float32."""
    brute_force = imported("cuvs.neighbors.brute_force")
    # Not one per call. Given resources, cuVS waits for nothing at the end: the stream's order is enough for torch.
    resources = imported("cuvs.common").Resources(stream=torch.cuda.current_stream().cuda_stream)

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        queries, references = (t.float() if t.dtype == torch.bfloat16 else t for t in (x, x if y is None else y))
        index = brute_force.build(references, metric="sqeuclidean", resources=resources)
        squares, indices = brute_force.search(index, queries, k + 1, resources=resources)
        return _without_self(
            torch.as_tensor(squares, device=x.device).sqrt(), torch.as_tensor(indices, device=x.device)
        )

    return search


def flashlib(case: Case) -> Search:
    """flashlib's fused `flash_knn`, which chooses its own kernel: Triton's, unless its CuTe extra is installed.

    The features go in as they are; float32 products are whatever its kernel makes of them, tf32 at the time of writing.
    """
    flash_knn = imported("flashlib.primitives.knn").flash_knn

    def search(x: Tensor, y: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        squares, indices = flash_knn(x, x if y is None else y, k + 1)
        return _without_self(squares.float().sqrt(), indices)

    return search


def _without_self(distances: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of k without the row's own index; a row that did not find itself loses its last."""
    own = indices == torch.arange(len(indices), device=indices.device)[:, None]
    own[:, -1] |= ~own.any(1)
    where = own.int().argmax(1, keepdim=True)
    column = torch.arange(indices.shape[1] - 1, device=indices.device)
    keep = column + (column >= where)  # [B, k]
    return distances.gather(1, keep), indices.gather(1, keep).long()
