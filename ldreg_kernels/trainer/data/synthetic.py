"""Images on a manifold of known dimension m, so that estimated LID can be held against the truth.

    x = 127.5 + a sum_j u_j(z) b_j     rounded to grey levels

The b_j are random smooth images, orthonormal, so the map from u to pixels keeps distances up to the factor a, which is
chosen such that the brightest pixel of the set just fits. What u is decides the manifold:

    linear   u = z, normal in m dimensions
    sphere   u = z / |z|, z normal in m + 1 dimensions
    torus    u = (cos t_1, sin t_1, ..., cos t_m, sin t_m), t uniform

Sphere and torus have no edge and the same density everywhere. Rounding to grey levels
(and `noise`) adds a little thickness in all directions: neighbours must be further apart than that. Classes are equally
full slices of the first coordinate of u, so the labels can be learnt.
"""

from __future__ import annotations

import numpy as np

from ..config.data import DataConfig, SyntheticConfig
from ..randomness import derive
from .source import ArraySource, ImageData
from .split import hold_out


def load(config: DataConfig) -> ImageData:
    """Images drawn by `synthetic.seed`, divided by `split_seed`."""
    c = config.synthetic
    train, test = hold_out(draw(c), config)
    return ImageData("synthetic", train, test, c.classes, (c.size, c.size))


def draw(config: SyntheticConfig) -> ArraySource:
    """All images.

    Args:
        config: manifold, sizes, noise and seed.

    Returns:
        The images and their classes.
    """
    generator = np.random.default_rng(derive(config.seed))
    u = _coordinates(config, generator)  # [N, directions]
    deviation = u @ _smooth_basis(config, generator)  # [N, size * size * channels]
    pixels = 127.5 + 127.5 / np.abs(deviation).max() * deviation
    if config.noise:
        pixels += config.noise * generator.standard_normal(pixels.shape)
    shape = (config.images, config.size, config.size) + ((3,) if config.channels == 3 else ())
    images = np.rint(pixels).clip(0, 255).astype(np.uint8).reshape(shape)
    rank = np.argsort(np.argsort(u[:, 0], kind="stable"), kind="stable")
    return ArraySource(images, rank * config.classes // config.images)


def _coordinates(config: SyntheticConfig, generator: np.random.Generator) -> np.ndarray:
    if config.manifold == "torus":
        angles = generator.uniform(0, 2 * np.pi, (config.images, config.intrinsic_dim))
        return np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(config.images, -1)
    z = generator.standard_normal((config.images, config.directions))
    return z if config.manifold == "linear" else z / np.linalg.norm(z, axis=1, keepdims=True)


def _smooth_basis(config: SyntheticConfig, generator: np.random.Generator) -> np.ndarray:
    """[directions, size * size * channels], orthonormal: random sums of cosines, the finer the weaker."""
    frequency = np.arange(config.size)
    cosines = np.cos(np.pi * (frequency[:, None] + 0.5) * frequency / config.size)  # [pixel, frequency]
    fade = np.exp(-(frequency[:, None] ** 2 + frequency**2) / 8)  # hardly anything finer than a quarter of the image
    # Never quite nothing, so that there are always as many independent images as asked for.
    weights = generator.standard_normal((config.directions, config.channels, config.size, config.size)) * (fade + 1e-3)
    images = np.einsum("pf,qg,jcfg->jpqc", cosines, cosines, weights, optimize=True)
    return np.linalg.qr(images.reshape(config.directions, -1).T)[0].T
