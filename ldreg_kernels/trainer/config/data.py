"""Which images a run trains on, how they are divided, and who reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from .base import Section

Dataset = Literal["digits", "fashion-mnist", "mnist5k", "patches", "cifar10", "cifar100", "folder", "synthetic"]
DATASETS: tuple[str, ...] = get_args(Dataset)


class SyntheticConfig(Section):
    """Images on a manifold of known dimension; data/synthetic.py has the formulas."""

    manifold: Literal["linear", "sphere", "torus"] = "linear"
    intrinsic_dim: int = Field(4, ge=1)
    size: int = Field(16, ge=4, le=256, description="side of the images in pixels")
    channels: Literal[1, 3] = 1
    classes: int = Field(4, ge=1, description="slices of the first latent coordinate, equally full")
    images: int = Field(2000, ge=2, description="training and test images together")
    noise: float = Field(0.0, ge=0, le=255, description="standard deviation of each pixel's noise, in grey levels")
    seed: int = Field(0, ge=0, lt=2**63)

    @property
    def directions(self) -> int:
        """Dimension of the linear space that the manifold spans."""
        extra = {"linear": 0, "sphere": 1, "torus": self.intrinsic_dim}
        return self.intrinsic_dim + extra[self.manifold]

    @model_validator(mode="after")
    def _fits(self) -> SyntheticConfig:
        pixels = self.size**2 * self.channels
        if self.directions > pixels:
            raise ValueError(
                f"intrinsic_dim: a {self.manifold} manifold of {self.intrinsic_dim} dimensions spans "
                f"{self.directions}, but an image has only {pixels} values"
            )
        if self.classes > self.images:
            raise ValueError(f"classes: must be at most images = {self.images}, got {self.classes}")
        return self


class DataConfig(Section):
    """Which images, how many of them are trained on, and how many are held out for evaluation.

    The division follows `split_seed`, never the run's seed: runs with different seeds are judged on the same images.
    """

    dataset: Dataset = "digits"
    root: Path | None = Field(None, description="where the files are; `ldreg data NAME` says where they are looked for")
    train_images: int | None = Field(None, ge=1, description="at most so many, with the classes in their shares")
    test_images: int | None = Field(None, ge=1, description="at most so many, with the classes in their shares")
    test_fraction: float = Field(0.25, gt=0, lt=1, description="held out, where a set has no test part of its own")
    split_seed: int = Field(0, ge=0, lt=2**63)
    workers: int = Field(0, ge=0, le=256, description="processes that read and crop; 0: the training process does")
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _root_has_a_meaning(self) -> DataConfig:
        if self.dataset == "folder" and self.root is None:
            raise ValueError("root: must be given for the data set 'folder'")
        if self.dataset in ("digits", "patches", "synthetic") and self.root is not None:
            raise ValueError(f"root: the data set {self.dataset!r} has no root, leave it out; got '{self.root}'")
        return self
