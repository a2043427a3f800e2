"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32 x 32 pixels, in 10 or 100 classes.

Read from the published archives "for Python", unpacked or as the .tar.gz itself. Their files are pickles of Python 2,
and a pickle is a program: it may name any function on the machine and have it called. So the three names that these
files need (numpy's array, its type, and the function that makes one) stand for inert classes of this module, every
other name is refused before anything is called, and the pixels are then taken from bytes that have been checked.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.data import DataConfig
from .files import damaged, folders, missing
from .source import ArraySource, ImageData

SIDE = 32


@dataclass(frozen=True)
class _Archive:
    """What one of the two published archives is called, and what it holds."""

    file: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes
    classes: int


_ARCHIVES = {
    "cifar10": _Archive(
        file="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        labels=b"labels",
        classes=10,
    ),
    "cifar100": _Archive(
        file="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        labels=b"fine_labels",
        classes=100,
    ),
}


def load(config: DataConfig) -> ImageData:
    """The published training and test part."""
    name = config.dataset
    archive = _ARCHIVES[name]
    place = _find(name, archive, config.root)
    batches = {file: _batch(name, where, content, archive) for file, where, content in _contents(name, place, archive)}
    lacking = [file for file in (*archive.train, *archive.test) if file not in batches]
    if lacking:
        raise damaged(name, place, f"must hold {archive.folder}/{lacking[0]}, which is missing")
    train, test = (
        ArraySource(*(np.concatenate(arrays) for arrays in zip(*(batches[file] for file in part), strict=True)))
        for part in (archive.train, archive.test)
    )
    return ImageData(name, train, test, archive.classes, (SIDE, SIDE))


def _find(name: str, archive: _Archive, root: Path | None) -> Path:
    """The unpacked folder or the .tar.gz."""
    places = folders(name, root)
    for place in places:
        for path in (place / archive.folder, place, place / archive.file):
            if path.is_file() or (path / archive.test[0]).is_file():
                return path
    raise missing(name, places)


def _contents(name: str, place: Path, archive: _Archive) -> Iterator[tuple[str, str, bytes]]:
    """(file, where it is, its bytes) of every wanted file; an archive is read in one pass, not unpacked."""
    wanted = (*archive.train, *archive.test)
    if place.is_dir():
        for file in wanted:
            path = place / file
            try:
                yield file, str(path), path.read_bytes()
            except OSError as error:
                raise damaged(name, path, error.strerror or error) from None
        return
    try:
        with tarfile.open(place, "r:gz") as tar:
            for member in tar:
                folder, _, file = member.name.removeprefix("./").partition("/")
                stream = tar.extractfile(member) if folder == archive.folder and file in wanted else None
                if stream is not None:
                    yield file, f"{place}, {member.name}", stream.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise damaged(name, place, f"cannot be unpacked ({error})") from None


def _batch(name: str, where: str, content: bytes, archive: _Archive) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 32, 32, 3] uint8 and labels [N] int64 of one file."""
    try:
        values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = values[b"data"].array(), values[archive.labels]
        if pixels.ndim != 2 or pixels.shape[1] != 3 * SIDE**2 or not len(pixels):
            raise ValueError(f"data must be [N, {3 * SIDE**2}], got {list(pixels.shape)}")
        if not isinstance(labels, list) or len(labels) != len(pixels):
            raise ValueError(f"{archive.labels.decode()} must be a list of {len(pixels)}")
        if not all(type(label) is int and 0 <= label < archive.classes for label in labels):
            raise ValueError(f"{archive.labels.decode()} must be integers below {archive.classes}")
    except Exception as error:  # a damaged pickle may fail in any way
        raise damaged(name, where, f"is not a file of {archive.file} ({error})") from None
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # planes of red, green, blue -> [N, 32, 32, 3]
    return images, np.array(labels, dtype=np.int64)


class _Type:
    """Stands for numpy.dtype: keeps the name of the type."""

    def __init__(self, name: bytes, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and field names: a byte has none."""


class _Array:
    """Stands for numpy.ndarray: keeps what numpy would fill an array with."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array, if it is one of unsigned bytes."""
        _, shape, kind, fortran, content = self.state
        if not isinstance(kind, _Type) or kind.name not in (b"u1", b"|u1") or not isinstance(content, bytes):
            raise ValueError("data must be an array of unsigned bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    """Stands for numpy's function of that name, whose arguments make an empty array."""
    return _Array()


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Unpickler(pickle.Unpickler):
    """Plain values and the three names above; a pickle that wants anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no file of this archive needs") from None
