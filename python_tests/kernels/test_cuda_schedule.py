"""The order of jobs of a CUDA launch, walked ticket by ticket on the host (python_tests/simt/schedule.cpp).

Every pair of blocks meets once, and a job waits only for smaller tickets: what no result of a single launch shows.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import simulator

ROOT = Path(__file__).resolve().parents[2]

# What is done wrong in schedule.h or tile.h: its text, the text in its place, and what the walk says of it.
MISTAKES = {
    "half way round met twice": ("!(opposite && block >= e)", "true", "met not once"),
    "too few waited for": ("smaller(2 * meets - 1, reference_blocks)", "2 * meets - 2", "before it is complete"),
    "macro-blocks that one side meets": ("return m.back = m.there, m;", "return m;", "before it is complete"),
    "packed where it is in use": ("kPackedBuffers - c.stays - c.buffer", "c.buffer", "holds other references"),
    "lists of two sweeps": ("for (int at = next(1); at", "for (int at = next(2); at", "than a list has room for"),
    "a run that ends too soon": (
        "smaller(a_.plan.run, across(c) -",
        "smaller(a_.plan.run, across(c) - 1 -",
        "met not once",
    ),
    "narrow tiles counted as wide ones": ("c.met, width(c))", "c.met, a_.plan.width)", "before it is complete"),
    "two sides at one place": ("place_back = opposite ? m.place : 2 * e * kBlock", "place_back = m.place", "one place"),
}


def walk(csrc: Path, program: Path) -> subprocess.CompletedProcess[str]:
    here = simulator.HERE
    flags = ["-std=c++17", "-O1", f"-I{csrc}", f"-I{here / 'include'}", f"-I{here}"]
    sources = [str(here / "schedule.cpp"), str(here / "simt.cpp")]
    subprocess.run([*simulator.compiler(), *flags, "-w", *sources, "-o", str(program)], check=True)
    return subprocess.run([program], capture_output=True, text=True, timeout=60)


@pytest.fixture(autouse=True)
def compiler() -> None:
    if simulator.unavailable_reason() is not None:
        pytest.skip(simulator.unavailable_reason())


def test_every_pair_meets_once_and_nobody_waits_for_a_later_ticket(tmp_path: Path) -> None:
    walked = walk(ROOT / "csrc", tmp_path / "schedule")
    assert walked.returncode == 0, walked.stdout
    assert "9006 walks, 0 faults" in walked.stdout


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_found(tmp_path: Path, mistake: str) -> None:
    right, wrong, said = MISTAKES[mistake]
    changed = 0
    for header in (ROOT / "csrc").rglob("*.h"):
        text = header.read_text()
        changed += text.count(right)
        copy = tmp_path / "csrc" / header.relative_to(ROOT / "csrc")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text.replace(right, wrong))
    assert changed == 1, f"the text has changed: {right!r}"
    walked = walk(tmp_path / "csrc", tmp_path / "schedule")
    assert walked.returncode == 1
    assert said in walked.stdout
