"""From images to batches of views: read, cropped and stacked, here or in worker processes.

What a batch holds is a function of (seed, epoch, batch): the order is `permutation(seed, epoch)`, a crop is drawn from
`image_generator(seed, epoch, index, view)`, and the epoch travels with the indices. Workers remember nothing, so any
number of them gives the same batches, and an epoch may be entered in the middle.

Everything up to the stacked uint8 tensor is Pillow and numpy. What changes colours runs on the device, in
views/device.py.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config.base import ConfigError
from ..randomness import image_generator, permutation
from .source import ImageSource, UnreadableImageError

Crop = Callable[[Image.Image, np.random.Generator], Image.Image]
Resize = Callable[[Image.Image], Image.Image]
_Key = tuple[int, list[int]]  # epoch, places in the source

# So many unreadable images in a row are no accident: a disk is gone, or the files are no images.
MAX_UNREADABLE = 100


@dataclass
class RawBatch:
    """Images of one batch, as they were read.

    Attributes:
        views: uint8 [N, C, H, W], one for each crop.
        labels: [N] int64.
        index: [N] int64, place in the source.
        unreadable: one line per image that could not be read, with its name.
    """

    views: list[Tensor]
    labels: Tensor
    index: Tensor
    unreadable: list[str]


class TrainingLoader:
    """Batches of training images; `len()` of them in an epoch. `training_loader` makes one.

    With workers, only one epoch is read at a time: beginning another ends the one before.
    """

    def __init__(self, source: ImageSource, crops: Sequence[Crop], *, batch_size: int, seed: int, workers: int) -> None:
        self._batches = _EpochBatches(len(source), batch_size, seed)
        self._loader = _data_loader(_TrainingBatches(source, crops, seed), self._batches, workers)
        self._begun = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[RawBatch]:
        """The batches of one epoch, in its order.

        Args:
            number: of the epoch, from 0.
            start: the first batch to hand out; those before it are not read.

        Returns:
            An iterator over len(self) - start batches.

        Raises:
            ValueError: `number` or `start` is out of range.
            UnreadableImageError: too many images in a row could not be read; the message names the last one.
            RuntimeError: another epoch was begun meanwhile.
        """
        if number < 0:
            raise ValueError(f"number: must be at least 0, got {number}")
        if not 0 <= start <= len(self):
            raise ValueError(f"start: must be at least 0 and at most {len(self)}, the batches of an epoch, got {start}")
        return self._iterate(number, start)

    def _iterate(self, number: int, start: int) -> Iterator[RawBatch]:
        self._begun += 1
        mine = self._begun
        self._batches.epoch, self._batches.start = number, start
        for batch in self._loader:
            yield batch
            if mine != self._begun:  # its workers read for the other one now
                raise RuntimeError(f"epoch {number} cannot be continued: another epoch of this loader was begun")


def training_loader(
    source: ImageSource, crops: Sequence[Crop], *, batch_size: int, seed: int, workers: int
) -> TrainingLoader:
    """Batches of random views, in an order that is new in every epoch.

    The last, smaller batch is dropped: k neighbours, NT-Xent and batch normalisation all depend on the number of rows.
    An unreadable image is replaced by the next readable one of the source, cropped as the missing one would have been,
    so that no two rows are equal where it occurs twice; the batch names it.

    Args:
        source: the images.
        crops: one for each view: an image and a generator to the cropped image; all images of a batch get one size.
        batch_size: images per batch.
        seed: of the run.
        workers: processes that read and crop; 0 reads in this one.

    Returns:
        The loader.

    Raises:
        ConfigError: there are fewer images than one batch.
    """
    if batch_size > len(source):
        raise ConfigError(f"batch_size: must be at most {len(source)}, the number of training images, got {batch_size}")
    return TrainingLoader(source, crops, batch_size=batch_size, seed=seed, workers=workers)


def clean_batches(
    source: ImageSource, resize: Resize, *, batch_size: int = 512, workers: int = 0
) -> Iterator[RawBatch]:
    """All images once, in the order of the source, one view each and nothing random; the last batch may be smaller.

    Args:
        source: the images.
        resize: an image to the image that is stacked; all images of a batch get one size.
        batch_size: images per batch.
        workers: processes that read; 0 reads in this one.

    Returns:
        An iterator over batches. Unreadable images are left out and named.

    Raises:
        UnreadableImageError: no image could be read.
    """
    places = [(0, list(range(i, min(i + batch_size, len(source))))) for i in range(0, len(source), batch_size)]
    # A batch of which nothing could be read is not handed out; its names go to the next one, at the end to the last.
    names: list[str] = []
    held: RawBatch | None = None
    for batch in _data_loader(_CleanBatches(source, resize), places, workers):
        names += batch.unreadable
        if not len(batch.index):
            continue
        if held is not None:
            yield held
        batch.unreadable, names = names, []
        held = batch
    if held is None:
        last = f", at last {names[-1]}" if names else ""
        raise UnreadableImageError(f"none of {len(source)} images could be read{last}")
    held.unreadable += names
    yield held


class _EpochBatches:
    """What the workers are handed: the epoch and the places of a batch. Only the training process holds it."""

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[_Key]:
        epoch = self.epoch
        order = permutation(self.seed, epoch, self.length)
        for batch in range(self.start, len(self)):
            yield epoch, order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


class _TrainingBatches(Dataset[RawBatch]):
    """Reads and crops; goes to the workers, and never changes."""

    def __init__(self, source: ImageSource, crops: Sequence[Crop], seed: int) -> None:
        self.source, self.crops, self.seed = source, list(crops), seed

    def __getitem__(self, key: _Key) -> RawBatch:
        epoch, places = key
        shown: list[int] = []
        views: list[list[Image.Image]] = [[] for _ in self.crops]
        unreadable: dict[str, None] = {}  # a set that keeps its order: a bad image may be met twice
        for place in places:
            image, index = _next_readable(self.source, place, unreadable)
            shown.append(index)
            for number, (view, crop) in enumerate(zip(views, self.crops, strict=True)):
                view.append(crop(image, image_generator(self.seed, epoch, place, number)))
        return _stack(self.source, views, shown, list(unreadable))


class _CleanBatches(Dataset[RawBatch]):
    """Reads and resizes, and leaves out what it cannot read."""

    def __init__(self, source: ImageSource, resize: Resize) -> None:
        self.source, self.resize = source, resize

    def __getitem__(self, key: _Key) -> RawBatch:
        shown: list[int] = []
        view: list[Image.Image] = []
        unreadable: list[str] = []
        for place in key[1]:
            try:
                image = self.source.image(place)
            except UnreadableImageError as error:
                unreadable.append(str(error))
                continue
            shown.append(place)
            view.append(self.resize(image))
        return _stack(self.source, [view], shown, unreadable)


def _next_readable(source: ImageSource, place: int, unreadable: dict[str, None]) -> tuple[Image.Image, int]:
    """The image at `place`, or the next one that can be read, and where it is."""
    name = ""
    for tried in range(min(MAX_UNREADABLE, len(source))):
        index = (place + tried) % len(source)
        try:
            return source.image(index), index
        except UnreadableImageError as error:
            name = str(error)
            unreadable[name] = None
    raise UnreadableImageError(f"{min(MAX_UNREADABLE, len(source))} images in a row could not be read, at last {name}")


def _stack(source: ImageSource, views: list[list[Image.Image]], shown: list[int], unreadable: list[str]) -> RawBatch:
    labels = torch.tensor([source.label(index) for index in shown], dtype=torch.int64)
    stacked = [_to_tensor(view, number) for number, view in enumerate(views)] if shown else []
    return RawBatch(stacked, labels, torch.tensor(shown, dtype=torch.int64), unreadable)


def _to_tensor(images: list[Image.Image], view: int) -> Tensor:
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"view {view}: all crops of a batch must have one size, got {sorted(sizes)[:4]}")
    pixels = np.stack([np.asarray(image) for image in images])  # [N, H, W] or [N, H, W, 3]
    if pixels.ndim == 3:
        return torch.from_numpy(pixels[:, None])
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _as_it_is(batch: Any) -> Any:
    return batch


def _data_loader(batches: Dataset[RawBatch], keys: Any, workers: int) -> DataLoader[RawBatch]:
    """One worker task per batch. PyTorch gives every worker one thread."""
    if workers == 0:
        parallel: dict[str, Any] = {}
    else:
        # Not fork: the training process has threads, and maybe a CUDA context, which do not survive it.
        if "forkserver" in multiprocessing.get_all_start_methods():
            context: Any = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["__main__", __name__])  # torch is imported once, not once per worker
        else:
            context = multiprocessing.get_context("spawn")
        parallel = {"multiprocessing_context": context, "persistent_workers": True, "num_workers": workers}
    # A generator of its own: without it, every epoch would draw from torch's global one.
    return DataLoader(
        batches, sampler=keys, batch_size=None, collate_fn=_as_it_is, generator=torch.Generator(), **parallel
    )
