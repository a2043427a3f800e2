"""`knn` by property: the float64 distances of the rows it returns are the float64 k-NN distances."""

import cases
import oracle
import pytest
import torch

import ldreg_kernels as ldk

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# (rows, D, k): D = 1, k = 1 and rows - 1, primes, and both sides of every size a tile is likely to have
OWN_BATCH = [
    (2, 1, 1),
    (3, 1, 2),
    (17, 1, 16),
    (31, 5, 7),
    (64, 8, 63),
    (65, 9, 64),
    (127, 16, 15),
    (129, 17, 128),
    (257, 31, 256),
    (255, 33, 47),
    (300, 64, 49),
    (211, 127, 48),
    (128, 129, 33),
    (96, 257, 65),
    (523, 13, 101),
    (1100, 6, 1024),
    (40, 2048, 9),
    (12, 8192, 5),
]
# (B, N, D, k)
TWO_SETS = [
    (1, 1, 1, 1),
    (1, 300, 7, 300),
    (5, 64, 3, 64),
    (97, 13, 24, 13),
    (16, 1031, 48, 17),
    (130, 67, 65, 31),
    (7, 4099, 10, 512),
]


@pytest.mark.parametrize(("rows", "D", "k"), OWN_BATCH)
def test_own_batch(backend, rows, D, k):
    x = cases.normal(rows, D, seed=rows + D)
    oracle.check_knn(backend.knn(x, k=k), x, k=k, name=backend.name)


@pytest.mark.parametrize(("B", "N", "D", "k"), TWO_SETS)
def test_two_sets(backend, B, N, D, k):
    x, y = cases.normal(B, D, seed=1), cases.normal(N, D, seed=2)
    oracle.check_knn(backend.knn(x, y, k=k), x, y, k=k, name=backend.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "D", "k"), [(130, 24, 16), (97, 300, 33)])
def test_dtypes(backend, dtype, rows, D, k):
    x = cases.features(rows, D).to(dtype)
    y = cases.features(2 * rows, D, seed=5).to(dtype)
    oracle.check_knn(backend.knn(x, k=k), x, k=k, name=backend.name)
    oracle.check_knn(backend.knn(x, y, k=k), x, y, k=k, name=backend.name)


@pytest.mark.parametrize("k", [1, 10, 119])
@pytest.mark.parametrize("offset", [0, 1, 41, 80])
def test_self_index_offset(backend, offset, k):
    y = cases.normal(120, 12)
    x = y[offset : offset + 40].clone()
    found = backend.knn(x, y, k=k, self_index=offset)
    oracle.check_knn(found, x, y, k=k, self_index=offset, name=backend.name)
    assert (found.distances[:, 0] > 0).all()


@pytest.mark.parametrize("k", [1, 10, 89])
def test_self_index_map(backend, k):
    y = cases.normal(90, 12)
    own = torch.randperm(90, generator=cases.seeded(3))[:50]
    x = y[own].clone()
    own[::3] = -1  # in y by value, but not to be left out
    found = backend.knn(x, y, k=k, self_index=own)
    oracle.check_knn(found, x, y, k=k, self_index=own, name=backend.name)
    assert (found.distances[::3, 0] == 0).all()
    assert (found.distances[1::3, 0] > 0).all()


def test_self_index_none_leaves_nothing_out(backend):
    y = cases.normal(60, 12)
    found = backend.knn(y[:20], y, k=60)
    oracle.check_knn(found, y[:20], y, k=60, name=backend.name)
    assert torch.equal(found.indices[:, 0], torch.arange(20))
    assert (found.distances[:, 0] == 0).all()


def test_y_given_as_x_with_offset_0_equals_y_none(backend):
    x = cases.normal(150, 20)
    apart = backend.knn(x, x.clone(), k=20, self_index=0)
    together = backend.knn(x, k=20)
    assert torch.equal(apart.distances, together.distances)
    assert torch.equal(apart.indices, together.indices)


def test_every_k_is_a_prefix_of_a_larger_one(backend):
    x = cases.normal(200, 10)
    largest = backend.knn(x, k=199)
    for k in (1, 2, 7, 8, 9, 15, 16, 17, 47, 48, 49, 63, 64, 65, 127, 128, 129):
        found = backend.knn(x, k=k)
        assert torch.equal(found.distances, largest.distances[:, :k])
        assert torch.equal(found.indices, largest.indices[:, :k])


def test_ties_take_the_lower_index(backend):
    """Copies of copies: at equal distance the neighbours are the lowest indices, in order."""
    block = cases.normal(15, 9)
    y = block.repeat(8, 1)  # row j and j + 15, j + 30, ... are the same point
    x = cases.normal(30, 9, seed=3)
    found = backend.knn(x, y, k=20)
    nearest = torch.cdist(x.double(), block.double()).argsort(dim=1)
    for slot in range(20):
        expected = nearest[:, slot // 8] + 15 * (slot % 8)
        assert torch.equal(found.indices[:, slot], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(cases.layouts(torch.zeros(2, 2))))
def test_layouts(backend, name, dtype):
    """A view gives bit for bit what its contiguous copy gives, as queries and as references."""
    x = backend.put(cases.normal(90, 37).to(dtype))
    view = cases.layouts(x)[name]
    assert torch.equal(view, x)
    plain, seen = backend.knn(x, k=21), backend.knn(view, k=21)
    assert torch.equal(seen.distances, plain.distances)
    assert torch.equal(seen.indices, plain.indices)
    plain, seen = backend.knn(x[:40], x, k=21), backend.knn(view[:40], view, k=21)
    assert torch.equal(seen.distances, plain.distances)
    assert torch.equal(seen.indices, plain.indices)


def test_expanded_rows_and_columns(backend):
    """Stride 0 in either dimension."""
    one = backend.put(cases.normal(1, 12)).expand(20, 12)  # twenty copies of one row
    found = backend.knn(one, k=6)
    assert (found.distances == 0).all()
    oracle.check_knn(found, one.cpu(), k=6, name=backend.name)
    column = backend.put(cases.normal(40, 1)).expand(40, 16)  # every feature equal
    oracle.check_knn(backend.knn(column, k=6), column.cpu(), k=6, name=backend.name)


def test_empty_batch(backend):
    x = cases.normal(5, 4)
    for found in (backend.knn(x[:0], k=3), backend.knn(x[:0], x, k=3)):
        assert found.distances.shape == (0, 3)
        assert found.indices.shape == (0, 3)
        assert (found.distances.dtype, found.indices.dtype) == (torch.float32, torch.int64)


def test_no_gradient(backend):
    x = cases.normal(20, 4).requires_grad_()
    found = backend.knn(x, x, k=3)
    assert not found.distances.requires_grad


def test_result_is_a_named_tuple(backend):
    distances, indices = found = ldk.knn(backend.put(cases.normal(9, 3)), k=2, backend=backend.name)
    assert isinstance(found, ldk.KNN)
    assert distances is found.distances
    assert indices is found.indices


def test_batch_larger_than_any_block(backend):
    """More rows than one pass over the references holds at once."""
    x, y = cases.normal(700, 6, seed=1), cases.normal(9000, 6, seed=2)
    oracle.check_knn(backend.knn(x, y, k=70), x, y, k=70, name=backend.name)
