"""What a process that ended left in metrics.jsonl, and where a run can be written at all."""

from __future__ import annotations

import errno
import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.run_folder import (
    RunFolder,
    RunFolderError,
    RunFolderWarning,
    read_records,
    require_writable,
    write_json,
)

RECORDS: list[dict[str, Any]] = [
    {"kind": "step", "step": 0, "epoch": 0, "loss": 1.5, "lid": None},
    {"kind": "geometry", "step": 1, "epoch": 0, "name": "größe 次元"},
    {"kind": "step", "step": 1, "epoch": 0, "loss": 1e-12},
]
LINES = [json.dumps(record, ensure_ascii=i != 1).encode() for i, record in enumerate(RECORDS)]
WHOLE = b"".join(line + b"\n" for line in LINES)
ENDS = [WHOLE.index(line) + len(line) for line in LINES]


def noted(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Records, and the notes of reading them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = read_records(path)
    assert all(note.category is RunFolderWarning for note in caught)
    return records, [str(note.message) for note in caught]


@pytest.mark.parametrize("after", [b"", b"\0" * 700, b"000", b"\xc3", b"\xff" * 9, b"[]", b"{}", b'{"kind": 1'])
def test_a_file_cut_at_any_byte_keeps_every_whole_line(after: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for cut in range(len(WHOLE) + 1):
        path.write_bytes(WHOLE[:cut] + after)
        records, notes = noted(path)
        whole = sum(end <= cut for end in ENDS)
        if after and cut in ENDS:  # glued to a record that has no end of line yet
            whole -= 1
        torn = bool(WHOLE[:cut].rpartition(b"\n")[2] + after) and not (cut in ENDS and not after)
        assert records == RECORDS[:whole], cut
        assert len(notes) == torn, (cut, notes)
        assert all(f"metrics.jsonl: line {whole + 1} is torn" in note for note in notes)


@settings(max_examples=200)
@given(cut=st.integers(0, len(WHOLE)), garbage=st.binary(max_size=60))
@example(cut=ENDS[1] + 1, garbage=b"\n\n")
def test_whatever_follows_what_was_whole_stays(cut: int, garbage: bytes, tmp_path: Path) -> None:
    whole = sum(end < cut for end in ENDS)
    lines = [line for line in (WHOLE[:cut].rpartition(b"\n")[2] + garbage).split(b"\n") if line]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE[:cut] + garbage)
    if len(lines) <= 1:
        assert noted(path)[0][:whole] == RECORDS[:whole]
    else:  # a torn line in the middle is nothing that an interruption leaves
        with pytest.raises(RunFolderError, match=rf"metrics.jsonl: line {whole + 1} is not a record"):
            read_records(path)


def test_a_torn_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES[0] + b"\n" + LINES[1][:20] + b"\n" + LINES[2] + b"\n")
    with pytest.raises(RunFolderError, match=r"metrics.jsonl: line 2 is not a record, and others follow"):
        read_records(path)


def test_after_a_rewind_the_file_is_whole_again(tiny: TrainConfig, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", tiny)
    folder.metrics.write_bytes(LINES[0] + b"\n" + LINES[2] + b"\n" + LINES[2][:9])
    with pytest.warns(RunFolderWarning, match="line 3 is torn and left out"):
        assert folder.rewind(2) == ([RECORDS[0], RECORDS[2]], [])
    assert noted(folder.metrics) == ([RECORDS[0], RECORDS[2]], [])
    with pytest.warns(RunFolderWarning, match="only 2 of the 5 steps before the checkpoint are on record"):
        folder.rewind(5)
    assert [path.name for path in folder.path.glob("*.new")] == []


def test_a_rewind_that_fails_leaves_the_old_file(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path / "run", tiny)
    folder.metrics.write_bytes(WHOLE)

    def full(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text.encode()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        folder.rewind(1)
    assert folder.metrics.read_bytes() == WHOLE


def test_a_full_disk_names_the_file(tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    folder = RunFolder.create(tmp_path / "run", tiny)
    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        folder.log(RECORDS[0])


def test_resumed_curves_in_tensorboard_do_not_stand_twice(tiny: TrainConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = RunFolder.create(tmp_path / "run", tiny)
    for step in range(6):
        first.log({"kind": "step", "step": step, "epoch": 0, "loss": float(step)})
    first.finish({}, [])
    time.sleep(1.1)  # TensorBoard sorts its files by the second they were begun in
    resumed, _ = RunFolder.open(tmp_path / "run")
    resumed.rewind(3)
    for step in range(3, 6):
        resumed.log({"kind": "step", "step": step, "epoch": 0, "loss": 10.0 + step})
    resumed.finish({}, [])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [
        *((s, s) for s in range(3)),
        *((s, 10.0 + s) for s in range(3, 6)),
    ]


@pytest.mark.parametrize("place", ["/proc/nope", "/proc/nope/deeper", "/sys/nope", "/dev/null/run", "x" * 300])
def test_a_place_that_takes_no_files_is_refused(place: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunFolderError, match=r"^--out: .*(cannot be written|is a file)"):
        require_writable(tmp_path / place)
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_to_nowhere_and_a_file_in_the_way_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent" / "deeper")
    (tmp_path / "thesis.tex").touch()
    for name in ("link", "thesis.tex", "thesis.tex/run"):
        with pytest.raises(RunFolderError, match=r"^--out: .*(cannot be written|is a file)"):
            require_writable(tmp_path / name)


def test_asking_leaves_nothing_behind(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "here").touch()
    require_writable(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["here"]


def test_json_is_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
