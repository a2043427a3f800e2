"""Every pair by tiles of exact differences (csrc/cuda/dense.h, select.h): rounds, underflow, crowded bins, its choice.

That it is right for all shapes, dtypes and layouts is test_cuda.py's ("dense" among its ways, and all rows that fail).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import cases
import oracle
import pytest
import scaled_oracle
import simulator
import tolerances
import torch
from cuda_ways import CUDA, DEVICE, TILES, Forced, bits, check, there

from ldreg_kernels.kernels import cuda_backend
from ldreg_kernels.kernels.contract import Problem

ROOT = Path(__file__).resolve().parents[2]
MISSING = cuda_backend.unavailable_reason()

pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=f"backend 'cuda' is unavailable: {MISSING}"),
    pytest.mark.usefixtures("poisoned_memory"),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_panels_and_stretches(forced: Forced, dtype: torch.dtype) -> None:
    """Rounds of 128 x 128: two panels, eleven stretches, lists carried along; more wanted than a stretch has."""
    forced("dense", budget=1 << 16)
    y = cases.features(1300, 40, seed=3).to(dtype)
    check(y[:200].clone(), y, k=10, self_index=0)
    assert forced.plans[-1] == "dense, 128 queries, 128 references a round"
    check(y[:140].clone(), y, k=300, self_index=0)


@pytest.mark.parametrize("way", TILES)
def test_rows_that_fail_in_several_rounds(forced: Forced, way: str) -> None:
    """Copies have no room in any list: 600 of 660 rows fail, in five panels of 128 rows and six stretches."""
    forced(there(way), budget=1 << 16)
    x = torch.cat([cases.normal(60, 20), torch.ones(600, 20)])
    oracle.check_knn(CUDA.knn(x, k=8), x, k=8, name="cuda")


def test_many_stretches_do_not_depend_on_the_order_of_threads(
    forced: Forced,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forced("dense", budget=1 << 16)
    y = CUDA.put(cases.features(900, 20))
    problem = Problem(y[:300], y, 20, 0)
    expected = bits(cuda_backend.knn(problem))
    for seed in (1, 2):
        monkeypatch.setenv("LDREG_SIMT_SEED", str(seed))
        assert bits(cuda_backend.knn(problem)) == expected


@pytest.mark.parametrize("D", [40, 600, 1100])
def test_squares_that_underflow(forced: Forced, D: int) -> None:
    """Differences of 1e-36 beside features of 1: computed once more from larger ones. Over 512 columns, too."""
    forced("dense")
    x = cases.normal(150, D) * 1e-36
    x[:, 0], x[77:90] = 1.0, x[77]
    x[140:] = cases.normal(10, D, seed=5)
    found = CUDA.knn(x, k=30)
    truth = scaled_oracle.nearest(x, x, 31, False).distances[:, 1:]
    scaled_oracle.check_distances(found.distances, truth, tolerances.distance("cuda", x.dtype, D))


@pytest.mark.parametrize("k", [5, 300])
def test_crowded_bins(forced: Forced, k: int) -> None:
    """One far reference, and the others within an ulp or equal: the bound is found after several counts, or never."""
    forced("dense")
    x = torch.cat([torch.randint(0, 2, (700, 12), generator=cases.seeded(1)).float(), torch.full((1, 12), 1e15)])
    oracle.check_knn(CUDA.knn(x, k=k), x, k=k, name="cuda")


def test_integers_are_exact(forced: Forced) -> None:
    forced("dense")
    x = torch.randint(-15, 16, (150, 2048), generator=cases.seeded(4)).float()
    found = CUDA.knn(x, k=20)
    d2 = (x.double().unsqueeze(1) - x.double()[found.indices]).square().sum(2)
    assert torch.equal(found.distances, d2.sqrt().float())


def test_tracked_lids_and_gradient(forced: Forced) -> None:
    """k = 20 and tracked 5 and 128: lists of 128, a gradient of 20."""
    forced("dense")
    x = cases.features(260, 30)
    leaf = x.clone().requires_grad_()
    value, stats = CUDA.loss(leaf, k=20, track=[("mle", 5), ("mom", 128)])
    value.backward()
    forced("direct")
    other = x.clone().requires_grad_()
    expected, wanted = CUDA.loss(other, k=20, track=[("mle", 5), ("mom", 128)])
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-5, atol=1e-7)
    for key, lid in wanted.tracked.items():
        torch.testing.assert_close(stats.tracked[key], lid, rtol=1e-5, atol=0)


def test_dropping_the_smallest(forced: Forced) -> None:
    """The published convention drops whatever is nearest, copies included."""
    x = cases.features(150, 16)
    x[5] = x[9]
    problem = Problem(CUDA.put(x), CUDA.put(x), 8, None, drop_smallest=True)
    forced("direct")
    expected = cuda_backend.knn(problem)
    forced("dense")
    found = cuda_backend.knn(problem)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.distances, expected.distances, rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------------------- which way

CHOICES = [
    ((1024, 4096, 2048), 512, 0, "dense"),  # one of four ranks, tracked 512
    ((1024, 4096, 2048), 512, 2, "dense"),  # the same in bfloat16: half the bytes, but as many turns of as few teams
    ((1024, 4096, 2048), 256, 2, "tiles"),
    ((1024, 4096, 2048), 64, 0, "tiles"),
    ((4096, 4096, 2048), 64, 0, "tiles"),
    ((131072, 131072, 512), 64, 0, "tiles"),
]


@pytest.mark.parametrize(("shape", "wanted", "dtype", "way"), CHOICES)
def test_the_way_that_is_counted_to_take_less(shape, wanted: int, dtype: int, way: str) -> None:
    B, N, D = shape
    call = cuda_backend._cuda.Call()
    fields = {"B": B, "N": N, "D": D, "x_stride": D, "y_stride": D, "dtype": dtype, "same": B == N}
    for name, value in {**fields, "wanted": wanted, "k": 64, "gradient": True}.items():
        setattr(call, name, value)
    hopper = {"multiprocessors": 132, "shared_bytes": 227 << 10, "major": 9}  # for which it was counted
    assert way in cuda_backend._cuda.Planned(call, **hopper).words


# ------------------------------------------------------------------------------------------------- the order of rounds

# What is done wrong in rounds.h: its text, the text in its place, and what the walk says of it.
MISTAKES = {
    "a buffer is taken too early": (
        "r + 2 <= last ? enter(at, r + 2, false)",
        "r + 3 <= last ? enter(at, r + 3, false)",
        "in use",
    ),
    "one counter for both buffers": ("at.tiled)[round % 2]", "at.tiled)[0]", "waits for other tiles"),
    "too few tiles": ("last(round) - first(round), kBlock)", "last(round) - first(round) - 1, kBlock)", "not once"),
}


def walk(csrc: Path, program: Path) -> subprocess.CompletedProcess[str]:
    here = simulator.HERE
    flags = ["-std=c++17", "-O1", "-w", f"-I{csrc}", f"-I{here / 'include'}", f"-I{here}"]
    sources = [str(here / "rounds.cpp"), str(here / "simt.cpp")]
    subprocess.run([*simulator.compiler(), *flags, *sources, "-o", str(program)], check=True)
    return subprocess.run([program], capture_output=True, text=True, timeout=60)


def test_every_pair_is_computed_once_and_nobody_waits_for_a_later_job(tmp_path: Path) -> None:
    walked = walk(ROOT / "csrc", tmp_path / "rounds")
    assert walked.returncode == 0, walked.stdout
    assert "945 walks, 0 faults" in walked.stdout


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_found(tmp_path: Path, mistake: str) -> None:
    right, wrong, said = MISTAKES[mistake]
    text = (ROOT / "csrc/cuda/rounds.h").read_text()
    assert text.count(right) == 1
    for header in (ROOT / "csrc").rglob("*.h"):
        copy = tmp_path / "csrc" / header.relative_to(ROOT / "csrc")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text.replace(right, wrong) if header.name == "rounds.h" else header.read_text())
    walked = walk(tmp_path / "csrc", tmp_path / "rounds")
    assert walked.returncode == 1
    assert said in walked.stdout
