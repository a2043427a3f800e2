"""The data of the tests: seeded generators of features, ordinary, ill-conditioned and adversarial.

Every function returns float32 [n, D] unless it says otherwise. rho = |x|^2 / d_k^2 measures how badly a
Gram-form distance is conditioned.
"""

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, D, generator=seeded(seed), dtype=torch.float64).to(dtype)


def features(n: int, D: int, intrinsic: int = 12, seed: int = 0) -> Tensor:
    """A smooth `intrinsic`-dimensional surface in D dimensions: what an encoder's outputs look like to a k-NN
    search.
    """
    g = seeded(seed)
    latent = torch.randn(n, intrinsic, generator=g, dtype=torch.float64)
    into = torch.randn(intrinsic, D, generator=g, dtype=torch.float64) / intrinsic**0.5
    return torch.tanh(latent @ into).float()


# -------------------------------------------------------------------------------------------------
# ill-conditioned


def collapsed(n: int, D: int, seed: int = 1) -> Tensor:
    """All rows share one large component and differ by little: rho about 2e4."""
    x = features(n, D, seed=seed).double()
    return (x + 85.0).float()


def tight_clusters(n: int, D: int, seed: int = 2) -> Tensor:
    """Small clusters around far-apart centres, which no common offset removes: rho about 6e3."""
    g = seeded(seed)
    per_cluster = 128
    centres = torch.randn(n // per_cluster, D, generator=g, dtype=torch.float64)
    x = features(n, D, seed=seed + 1).double()
    return (70.0 * centres.repeat_interleave(per_cluster, 0) + x).float()


def vit_cls(n: int, D: int, seed: int = 3) -> Tensor:
    """An offset of a few times the spread in every coordinate, as a ViT's CLS token has: rho about 48."""
    g = seeded(seed)
    return (features(n, D, seed=seed).double() + 4.2 * torch.randn(D, generator=g, dtype=torch.float64)).float()


ILL_CONDITIONED = {
    "collapsed": (collapsed, 2e4),
    "tight_clusters": (tight_clusters, 6e3),
    "vit_cls": (vit_cls, 48.0),
}


# -------------------------------------------------------------------------------------------------
# adversarial


def narrow_band(n: int, D: int, seed: int = 4) -> Tensor:
    """A few rows at the centre of a shell 1e-3 thick: bfloat16 cannot order the shell at all."""
    g = seeded(seed)
    x = torch.randn(n, D, generator=g, dtype=torch.float64)
    radius = 1 + 1e-3 * torch.rand(n, 1, generator=g, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True) * radius
    x[: n // 16] *= 1e-6
    return x.float()


def quantised_grid(n: int, D: int, seed: int = 5) -> Tensor:
    """Points of a coarse grid: distances take a handful of values, most pairs tie."""
    return (torch.randint(0, 3, (n, D), generator=seeded(seed)).double() / 4).float()


def noise_on_offset(n: int, D: int, seed: int = 6) -> Tensor:
    """One row repeated at 1e3, plus noise of a few ulps."""
    return (1e3 + 1e-3 * normal(n, D, seed, torch.float64)).float()


def heavy_tails(n: int, D: int, seed: int = 7) -> Tensor:
    """Row norms over eight decades (ratio of normals), so that no single scale fits the batch."""
    g = seeded(seed)
    scale = torch.randn(n, 1, generator=g, dtype=torch.float64) / torch.randn(n, 1, generator=g, dtype=torch.float64)
    return (torch.randn(n, D, generator=g, dtype=torch.float64) * scale**2).float()


def common_offset(n: int, D: int, seed: int = 8) -> Tensor:
    """Ordinary rows moved by 1e4."""
    return normal(n, D, seed) + 1e4


def outlier(n: int, D: int, size: float, seed: int = 9) -> Tensor:
    """Ordinary rows and one whose entries are `size`."""
    x = normal(n, D, seed)
    x[n // 2] = size
    return x


ADVERSARIAL = {
    "narrow_band": narrow_band,
    "quantised_grid": quantised_grid,
    "noise_on_offset": noise_on_offset,
    "heavy_tails": heavy_tails,
    "common_offset": common_offset,
    "outlier_1e6": lambda n, D: outlier(n, D, 1e6),
    "outlier_1e20": lambda n, D: outlier(n, D, 1e20),
}


# ------------------------------------------------------------------------------------------------- layouts


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x [n, D] in memory in every way a view can arrange them, on x's device."""
    n, D = x.shape
    spread = x.new_full((2 * n, 3 * D), torch.nan)
    spread[::2, 1::3] = x
    padded = x.new_full((n, D + 5), torch.nan)
    padded[:, 3 : D + 3] = x
    flipped = x.flip(0).contiguous()
    return {
        "transposed": x.t().contiguous().t(),
        "strided": spread[::2, 1::3],
        "offset": padded[:, 3 : D + 3],
        "unaligned": torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view(n, D),
        "gathered": flipped[torch.arange(n - 1, -1, -1, device=x.device)],
    }
