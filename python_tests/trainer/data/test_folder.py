"""Image folders: their order, their two layouts, every mode of PNG, and files that are no images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldreg_kernels.trainer.config.base import ConfigError
from ldreg_kernels.trainer.config.data import DataConfig
from ldreg_kernels.trainer.data import (
    ImageData,
    UnreadableImageError,
    clean_batches,
    labels_of,
    load_data,
    training_loader,
)
from ldreg_kernels.trainer.data.folder import FolderSource

COLOURS = {"cat": (200, 0, 0), "dog": (0, 200, 0)}


def write(root: Path, count: int = 4) -> None:
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8 + i, 8), colour).save(root / name / f"{i}.png")


def load(root: Path, **settings: object) -> ImageData:
    return load_data(DataConfig(dataset="folder", root=root, **settings))


def read(path: Path) -> Image.Image:
    return FolderSource([path], [0]).image(0)


def test_classes_are_folders_and_a_part_is_held_out(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = load(tmp_path)
    assert (data.classes, data.channels, data.image_size) == (2, 3, None)
    assert labels_of(data.train).tolist() == [0, 0, 0, 1, 1, 1]
    assert labels_of(data.test).tolist() == [0, 1]
    for i, colour in enumerate(COLOURS.values()):
        assert data.test.image(i).getpixel((0, 0)) == colour


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_parts_that_are_there_are_taken(tmp_path: Path, held_out: str) -> None:
    write(tmp_path / "train")
    write(tmp_path / held_out, count=1)
    (tmp_path / held_out / "cat" / "0.png").rename(tmp_path / held_out / "cat" / "0.JPG")
    (tmp_path / held_out / "cat" / "0.JPG").rename(tmp_path / held_out / "dog" / "1.JPG")
    (tmp_path / held_out / "cat").rmdir()
    data = load(tmp_path)
    assert labels_of(data.train).tolist() == [0] * 4 + [1] * 4
    assert labels_of(data.test).tolist() == [1, 1]  # a class may be absent there and keeps its number


def test_files_are_sorted(tmp_path: Path) -> None:
    write(tmp_path / "train", count=12)
    write(tmp_path / "val")
    names = [path.name for path in load(tmp_path).train.files[:12]]
    assert names == sorted(names)


def test_transparency_palettes_and_16_bits_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    clear.save(path)
    assert [read(path).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]
    Image.new("LA", (1, 1), (7, 0)).save(path)
    assert read(path).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.putpixel((0, 0), 0)
    palette.save(path, transparency=0)
    assert [read(path).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 8, 7)]
    palette.save(path)
    assert [read(path).getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (9, 8, 7)]
    Image.fromarray(np.array([[0x1234, 0xFF00]], np.uint16)).save(path)
    assert [read(path).getpixel((x, 0)) for x in (0, 1)] == [(0x12,) * 3, (0xFF,) * 3]
    Image.new("1", (1, 1), 1).save(path)
    assert read(path).getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg").mode == "RGB"


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").size == (8, 4)


def _broken(path: Path) -> None:
    good = path.read_bytes()
    for content in (b"", b"no image", good[: len(good) // 2], good[:40] + b"\0" * 20 + good[60:]):
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=str(path)) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    _broken(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"gone\.png"):
        read(tmp_path / "gone.png")


def test_an_image_too_large_to_be_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match=r"a\.png: .*decompression bomb"):
        read(tmp_path / "a.png")


def test_a_bad_image_ends_nothing(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "val")
    bad = tmp_path / "train" / "cat" / "2.png"
    bad.write_bytes(bad.read_bytes()[:30])
    data = load(tmp_path)

    def shrink(image: Image.Image, generator: np.random.Generator | None = None) -> Image.Image:
        return image.resize((4, 4))

    (batch,) = training_loader(data.train, [shrink], batch_size=8, seed=0, workers=0).epoch(0)
    assert len(batch.index) == 8
    assert 2 not in batch.index
    assert len(batch.unreadable) == 1
    assert str(bad) in batch.unreadable[0]
    (clean,) = clean_batches(data.train, shrink)
    assert clean.index.tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert clean.unreadable == batch.unreadable
    assert torch.equal(clean.views[0][0, :, 0, 0], torch.tensor([200, 0, 0], dtype=torch.uint8))


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder in .*nowhere; `ldreg data folder`"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no folders of images"):
        load(tmp_path)
    write(tmp_path / "train")
    with pytest.raises(ConfigError, match=r"holds train/, but neither val/ nor test/ beside it"):
        load(tmp_path)
    (tmp_path / "shut" / "cat").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cat holds no \.png, \.jpg, \.jpeg file"):
        load(tmp_path / "shut")
    write(tmp_path / "val")
    (tmp_path / "val" / "fish").mkdir()
    with pytest.raises(ConfigError, match=r"val/fish is a class that is not in .*train"):
        load(tmp_path)
