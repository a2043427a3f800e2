"""CIFAR's archives, written here as Python 2 wrote them; and pickles that want more than they may."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ldreg_kernels.trainer.config.base import ConfigError
from ldreg_kernels.trainer.config.data import DataConfig
from ldreg_kernels.trainer.data import ImageData, labels_of, load_data


def text(value: bytes) -> bytes:
    """A Python 2 string: one byte of length, or four."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value


def integer(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def array(values: np.ndarray, kind: bytes = b"u1") -> bytes:
    """What Python 2's pickle writes for an array: _reconstruct(ndarray, (0,), 'b') and its state."""
    shape = b"(" + b"".join(map(integer, values.shape)) + b"t"
    dtype = (
        b"cnumpy\ndtype\n" + text(kind) + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + integer(-1) * 2 + b"K\x00tb"
    )
    state = b"(K\x01" + shape + dtype + b"\x89" + text(values.tobytes()) + b"tb"
    return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R" + state


def batch(pixels: bytes, labels: list[int], key: bytes = b"labels", extra: bytes = b"") -> bytes:
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    names = text(b"batch_label") + text(b"batch 1 of 5")
    return b"\x80\x02}(" + names + extra + text(key) + listed + text(b"data") + pixels + b"u."


def write(folder: Path, dataset: str) -> dict[str, np.ndarray]:
    """Four images a file; all pixels, by file name."""
    generator = np.random.default_rng(0)
    ten = dataset == "cifar10"
    place = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
    place.mkdir(parents=True)
    pixels = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]:
        pixels[name] = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        labels = [0, 9, 1, 2] if ten else [0, 99, 50, 7]
        coarse = b"" if ten else text(b"coarse_labels") + b"](" + integer(19) * 4 + b"e"
        content = batch(array(pixels[name]), labels, b"labels" if ten else b"fine_labels", coarse)
        (place / name).write_bytes(content)
    return pixels


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)


def load(dataset: str, root: Path) -> ImageData:
    return load_data(DataConfig(dataset=dataset, root=root))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("packed", [False, True])
def test_images_are_those_of_the_files(tmp_path: Path, dataset: str, packed: bool) -> None:
    pixels = write(tmp_path, dataset)
    ten = dataset == "cifar10"
    folder, root = next(tmp_path.iterdir()), tmp_path
    if packed:
        root = tmp_path / ("cifar-10-python.tar.gz" if ten else "cifar-100-python.tar.gz")
        pack(folder, root)
    data = load(dataset, root)
    assert (data.classes, data.channels, data.image_size) == (10 if ten else 100, 3, (32, 32))
    assert (len(data.train), len(data.test)) == (20 if ten else 4, 4)
    assert labels_of(data.test).tolist() == ([0, 9, 1, 2] if ten else [0, 99, 50, 7])
    planes = pixels["test_batch" if ten else "test"][2].reshape(3, 32, 32)
    assert np.array_equal(np.asarray(data.test.image(2)), planes.transpose(1, 2, 0))
    if ten:
        assert np.array_equal(np.asarray(data.train.image(17))[:, :, 0].ravel(), pixels["data_batch_5"][1][:1024])


def test_our_pickles_are_what_python_reads_as_arrays() -> None:
    """The files above are written by hand: the standard unpickler and numpy have to agree with them."""
    pixels = np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8).reshape(2, 3072)
    values = pickle.loads(batch(array(pixels), [3, 4]), encoding="bytes")
    assert np.array_equal(values[b"data"], pixels)
    assert values[b"labels"] == [3, 4]


class Opens:
    """Whoever unpickles this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(
    tmp_path: Path, protocol: int, packed: bool
) -> None:
    write(tmp_path, "cifar10")
    folder, trace = tmp_path / "cifar-10-batches-py", tmp_path / "trace"
    evil = pickle.dumps([Opens(trace)], protocol)
    (folder / "data_batch_3").write_bytes(evil)
    root = folder
    if packed:
        root = tmp_path / "cifar-10-python.tar.gz"
        pack(folder, root)
    with pytest.raises(ConfigError, match=r"data_batch_3.*it wants (__builtin__|io|_io)\.open") as caught:
        load("cifar10", root)
    assert str(root) in str(caught.value)
    assert not trace.exists()
    pickle.loads(evil)[0].close()
    assert trace.exists()  # so it would have run


PIXELS = np.zeros((2, 3072), np.uint8)
DAMAGE = {
    "truncated": (batch(array(PIXELS), [0, 1])[:-500], "truncated"),
    "no pickle": (b"<html>not found</html>", "invalid load key"),
    "empty": (b"", "Ran out of input"),
    "no labels": (batch(array(PIXELS), [0, 1], b"names"), "labels"),
    "label too few": (batch(array(PIXELS), [0]), "labels must be a list of 2"),
    "unknown class": (batch(array(PIXELS), [0, 10]), "labels must be integers below 10"),
    "negative class": (batch(array(PIXELS), [0, -1]), "labels must be integers below 10"),
    "wrong width": (batch(array(PIXELS[:, 1:]), [0, 1]), r"data must be \[N, 3072\]"),
    "objects": (batch(array(PIXELS, b"O8"), [0, 1]), "data must be an array of unsigned bytes"),
    "no array": (batch(text(b"abc"), [0, 1]), "no attribute 'array'"),
    "array of another shape": (batch(array(PIXELS).replace(integer(3072), integer(3073)), [0, 1]), "reshape"),
    "numpy beyond an array": (batch(b"cnumpy\nload\n" + text(b"x.npy") + b"\x85R", [0, 1]), r"it wants numpy\.load"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    content, reason = DAMAGE[damage]
    write(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        load("cifar10", tmp_path)
    assert f"{path}: is not a file of cifar-10-python.tar.gz" in str(caught.value)
    assert "`ldreg data cifar10`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lacking_file_and_a_truncated_archive_are_named(tmp_path: Path) -> None:
    write(tmp_path, "cifar10")
    folder, archive = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz"
    (folder / "data_batch_2").unlink()
    with pytest.raises(ConfigError, match="data_batch_2: No such file"):
        load("cifar10", folder)
    pack(folder, archive)
    with pytest.raises(ConfigError, match=r"gz: must hold cifar-10-batches-py/data_batch_2, which is missing"):
        load("cifar10", archive)
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(ConfigError, match=r"python\.tar\.gz: cannot be unpacked"):
        load("cifar10", archive)
    with pytest.raises(ConfigError, match=r"no cifar100 in .*`ldreg data cifar100`"):
        load("cifar100", tmp_path)


def test_an_archive_may_hold_other_things(tmp_path: Path) -> None:
    write(tmp_path, "cifar100")
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-100-python", "cifar-100-python")
        tar.addfile(tarfile.TarInfo("../../outside"), io.BytesIO())
    assert len(load("cifar100", archive).test) == 4
    assert not (tmp_path.parent.parent / "outside").exists()
