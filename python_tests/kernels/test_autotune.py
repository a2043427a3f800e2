"""LDREG_AUTOTUNE: nothing is timed unprompted, the fastest is kept for problems alike, a broken file is an error.

A folder that cannot be written costs one warning and no call; writers at the same time lose nothing.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import cases
import pytest
import torch

from ldreg_kernels.kernels import autotune, notice, triton_backend, tuning
from ldreg_kernels.kernels.contract import Problem

SHAPE = tuning.Shape(4000, 4000, 2048, 64, "float32", 90)


@pytest.fixture(autouse=True)
def tuning_file(tmp_path, monkeypatch):
    """A file of the test's own, and no memory of another's."""
    path = tmp_path / "folder" / "tuning.json"
    monkeypatch.setenv("LDREG_TUNING_FILE", str(path))
    monkeypatch.delenv("LDREG_AUTOTUNE", raising=False)
    monkeypatch.setattr(autotune, "_unwritten", {})
    monkeypatch.setattr(notice, "_said", set())
    autotune._read.cache_clear()
    yield path
    autotune._read.cache_clear()


def wide_is_fast(blocks: tuning.Blocks) -> float:
    return 1.0 / blocks.tile_n + 0.001 * blocks.stages


def test_the_fastest_candidate_is_kept_and_found_for_problems_alike(tuning_file):
    assert autotune.found(SHAPE) is None
    best = autotune.search(SHAPE, wide_is_fast)
    assert (best.tile_n, best.stages) == (256, 2)
    assert best in set(autotune.candidates(SHAPE))
    assert autotune.found(SHAPE) == autotune.found(replace(SHAPE, B=3000, N=4096)) == best
    for other in (
        replace(SHAPE, D=512),
        replace(SHAPE, dtype="bfloat16"),
        replace(SHAPE, capability=80),
        replace(SHAPE, B=5000),
    ):
        assert autotune.found(other) is None
    assert list(json.loads(tuning_file.read_text())) == [autotune.key(SHAPE)]


def test_a_second_search_keeps_what_the_first_found():
    autotune.search(SHAPE, wide_is_fast)
    autotune.search(replace(SHAPE, D=512), lambda blocks: float(blocks.stages))
    assert autotune.found(SHAPE).tile_n == 256
    assert autotune.found(replace(SHAPE, D=512)).stages == 2


def test_blocks_without_room_are_passed_over():
    narrow = autotune.search(SHAPE, lambda blocks: float("inf") if blocks.tile_n > 128 else float(blocks.stages))
    assert narrow.tile_n == 128
    with pytest.raises(RuntimeError, match="LDREG_AUTOTUNE: none of"):
        autotune.search(SHAPE, lambda blocks: float("inf"))


@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, N=100000), replace(SHAPE, B=64, N=64, D=64, wanted=32)])
def test_the_shipped_choice_is_the_first_candidate(shape):
    found = list(autotune.candidates(shape))
    assert found[0] == tuning.choose(shape)
    assert len(set(found)) > 3


BLOCKS = json.dumps({**asdict(tuning.Blocks("tiles")), "stages": "three"})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'{"sm_90 float32 1 1 1 1": 3}', b"\xff\xfe", b"[" * 100000, b'{"a": %s}' % BLOCKS.encode()],
)
def test_a_broken_file_is_named(tuning_file, content):
    tuning_file.parent.mkdir()
    tuning_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"LDREG_TUNING_FILE .*tuning\.json is not a tuning file"):
        autotune.found(SHAPE)


def test_what_another_version_left_is_not_used(tuning_file):
    best = autotune.search(SHAPE, wide_is_fast)
    entries = json.loads(tuning_file.read_text())
    del entries[autotune.key(SHAPE)]["stages"]
    tuning_file.write_text(json.dumps(entries))
    autotune._read.cache_clear()
    assert autotune.found(SHAPE) is None
    assert autotune.search(SHAPE, wide_is_fast) == best


def test_what_another_version_left_stays(tuning_file):
    tuning_file.parent.mkdir()
    tuning_file.write_text('{"sm_90 float32 1 1 1 1": {"path": "of a later version"}}')
    autotune.search(SHAPE, wide_is_fast)
    assert set(json.loads(tuning_file.read_text())) == {"sm_90 float32 1 1 1 1", autotune.key(SHAPE)}


# ---------------------------------------------------------------- a place that cannot be written, and many writers


def a_file_in_place_of_the_folder(path, monkeypatch):
    path.parent.write_text("")


def a_folder_in_place_of_the_file(path, monkeypatch):
    (path / "something").mkdir(parents=True)


def no_room(path, monkeypatch):
    def full(self, *args, **options):
        with open(self, "w") as file:
            file.write("{")
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)


def no_permission(path, monkeypatch):  # also for root, to whom a mode means nothing
    def refuse(file, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(autotune, "open", refuse, raising=False)


def no_locks(path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def no_home(path, monkeypatch):
    monkeypatch.delenv("LDREG_TUNING_FILE")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)


HINDRANCES = [
    a_file_in_place_of_the_folder,
    a_folder_in_place_of_the_file,
    no_room,
    no_permission,
    no_locks,
    no_home,
]


@pytest.mark.parametrize("hinder", HINDRANCES)
def test_a_file_that_cannot_be_kept_costs_one_warning_and_no_call(tuning_file, monkeypatch, hinder):
    hinder(tuning_file, monkeypatch)
    other = replace(SHAPE, D=512)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert autotune.found(SHAPE) is None
        best = autotune.search(SHAPE, wide_is_fast)
        second = autotune.search(other, lambda blocks: float(blocks.stages))
        assert autotune.found(SHAPE) == best  # in this process
        assert autotune.found(other) == second
    assert len(said) == 1, [str(one.message) for one in said]
    assert (said[0].category, said[0].filename) == (UserWarning, __file__)  # the line that called
    assert "the tuning file cannot be" in str(said[0].message)
    assert not list(tuning_file.parent.glob("*.partial")) if tuning_file.parent.is_dir() else True


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_costs_one_warning(tuning_file):
    tuning_file.parent.mkdir(mode=0o500)
    with pytest.warns(UserWarning, match="cannot be written"):
        best = autotune.search(SHAPE, wide_is_fast)
    assert autotune.found(SHAPE) == best


def _writer(barrier, number):
    barrier.wait()
    for size in range(10):
        autotune._keep(replace(SHAPE, B=1 << number, D=1 << size), tuning.choose(SHAPE))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_twelve_writers_at_once_lose_nothing(tuning_file):
    context = multiprocessing.get_context("fork")  # they write JSON and nothing else, so no thread is missed
    barrier = context.Barrier(12)
    writers = [context.Process(target=_writer, args=(barrier, number)) for number in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 12
    assert len(json.loads(tuning_file.read_text())) == 120
    assert sorted(path.name for path in tuning_file.parent.iterdir()) == ["tuning.json", "tuning.json.lock"]


def test_others_may_read_what_was_found(tuning_file):
    before = os.umask(0o022)
    try:
        autotune.search(SHAPE, wide_is_fast)
    finally:
        os.umask(before)
    assert tuning_file.stat().st_mode & 0o777 == 0o644  # as any file of this user


def test_only_0_and_1_are_understood(monkeypatch):
    assert not autotune.asked_for()
    monkeypatch.setenv("LDREG_AUTOTUNE", "1")
    assert autotune.asked_for()
    monkeypatch.setenv("LDREG_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match="LDREG_AUTOTUNE must be 0 or 1, got 'yes'"):
        autotune.asked_for()


@pytest.mark.skipif(not triton_backend.interpreting(), reason="on a GPU the search would really run")
def test_nothing_is_timed_in_the_interpreter_but_what_was_found_is_used(monkeypatch, tuning_file):
    monkeypatch.setenv("LDREG_AUTOTUNE", "1")
    x = cases.normal(40, 8)
    problem = Problem(x, x, 5, 0)
    plain = triton_backend.knn(problem)
    assert not tuning_file.exists()
    shape = tuning.Shape(40, 40, 8, 5, "float32", 0)
    used = []
    setup_for = tuning.setup_for
    monkeypatch.setattr(tuning, "setup_for", lambda *a, **modes: used.append(a[1]) or setup_for(*a, **modes))
    kept = replace(tuning.choose(shape), direct_b=8)
    autotune._keep(shape, kept)
    found = triton_backend.knn(problem)
    assert used == [kept]
    assert torch.equal(found.distances, plain.distances)


@pytest.mark.skipif(triton_backend.unavailable_reason() is not None, reason="Triton is not there")
@pytest.mark.parametrize("error", [RuntimeError("PassManager::run failed"), IndexError("map::at"), MemoryError()])
def test_a_candidate_that_does_not_compile_is_passed_over(monkeypatch, error):
    from ldreg_kernels.kernels import triton_launch

    def run(plan, call):
        if plan == "bad":
            raise error

    clock = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 3.0)
    monkeypatch.setattr(triton_launch, "run", run)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    best = autotune.search(SHAPE, lambda blocks: triton_launch.seconds("bad" if blocks.tile_n > 128 else "good", None))
    assert best.tile_n == 128


@pytest.mark.skipif(triton_backend.unavailable_reason() is not None, reason="Triton is not there")
def test_a_device_that_fails_is_not_taken_for_a_candidate_that_does(monkeypatch):
    from ldreg_kernels.kernels import triton_launch

    def fail(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(triton_launch, "run", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        autotune.search(SHAPE, lambda blocks: triton_launch.seconds(blocks, None))
