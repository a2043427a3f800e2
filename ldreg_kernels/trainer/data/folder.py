"""Image folders: root/class/*.png, or root/{train,val}/class/*.png (test instead of val). PNG and JPEG.

Files are listed once, sorted, and read when asked for. Every image becomes RGB: palettes are resolved, what is
transparent lies on white, 16-bit grey loses its lower byte. EXIF orientation is ignored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..config.base import ConfigError
from ..config.data import DataConfig
from .files import missing
from .source import ImageData, UnreadableImageError
from .split import hold_out

SUFFIXES = (".png", ".jpg", ".jpeg")


class FolderSource:
    """Images in files.

    Args:
        files: of the images.
        labels: their classes, from 0.
    """

    channels = 3

    def __init__(self, files: list[Path], labels: list[int]) -> None:
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        """How many files there are."""
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """One image, decoded.

        Raises:
            UnreadableImageError: the file is gone or is no image.
        """
        path = self.files[index]
        try:
            with Image.open(path) as image:
                return _to_rgb(image)
        except Exception as error:  # Pillow's decoders raise errors of every kind on damaged files
            raise UnreadableImageError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from None

    def label(self, index: int) -> int:
        """Its class: the place of its folder among the sorted ones."""
        return self.labels[index]


def load(config: DataConfig) -> ImageData:
    """The two parts if the folder has them, else its images divided by `split_seed`."""
    root = config.root
    if root is None or not root.is_dir():
        raise missing("folder", [root or Path()])
    parts = [root / part for part in ("val", "test") if (root / part).is_dir()]
    if (root / "train").is_dir() and parts:
        names = _class_names(root / "train")
        train, test = _list(root / "train", names), _list(parts[0], names)
        return ImageData("folder", train, test, len(names), None)
    if (root / "train").is_dir():
        raise ConfigError(f"data.root: {root} holds train/, but neither val/ nor test/ beside it")
    names = _class_names(root)
    train_part, test_part = hold_out(_list(root, names), config)
    return ImageData("folder", train_part, test_part, len(names), None)


def _class_names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list(root: Path, names: list[str]) -> FolderSource:
    """The images below `root`; a class may be absent, but not unknown, and not a folder without images."""
    unknown = sorted(set(_class_names(root)) - set(names))
    if unknown:
        raise ConfigError(f"data.root: {root / unknown[0]} is a class that is not in {root.parent / 'train'}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        folder = root / name
        if not folder.is_dir():
            continue
        found = sorted(
            path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        if not found:
            raise ConfigError(f"data.root: {folder} holds no {', '.join(SUFFIXES)} file; `ldreg data folder` says more")
        files += found
        labels += [label] * len(found)
    if not files:
        raise ConfigError(f"data.root: {root} holds no folders of images; `ldreg data folder` says more")
    return FolderSource(files, labels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255: almost everything becomes white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")
