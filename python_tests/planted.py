"""Programs of python_tests/simt with mistakes planted in the headers of csrc/cuda, of which a run makes one or none.

Compiled once for all of them: in a copy of csrc, the text of a mistake becomes a choice between right and wrong.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import simulator

CSRC = simulator.ROOT / "csrc"
HEADER = (
    '#include <cstdlib>\ninline const int planted = std::getenv("PLANTED") ? std::atoi(std::getenv("PLANTED")) : 0;\n'
)


class Mistake(NamedTuple):
    """What is done wrong: text of a header, found once, with the part between two @ in other words.

    That part is statements or an expression.
    """

    file: str
    text: str
    wrong: str
    said: str  # by the program, with one of the seeds


class Program(NamedTuple):
    path: Path
    mistakes: Sequence[str]

    def run(self, seed: int, mistake: str | None = None) -> subprocess.CompletedProcess[str]:
        number = 0 if mistake is None else 1 + self.mistakes.index(mistake)
        environment = {**os.environ, "PLANTED": str(number)}
        return subprocess.run([self.path, str(seed)], capture_output=True, text=True, timeout=60, env=environment)

    def finds(self, mistake: str, said: str, seeds: Sequence[int]) -> None:
        """The program says so with one of the seeds; they are tried in turn."""
        heard = []
        for seed in seeds:
            ran = self.run(seed, mistake)
            heard.append((seed, ran.returncode, ran.stderr))
            if ran.returncode == 1 and said in ran.stderr:
                return
        raise AssertionError(heard)


def build(folder: Path, source: str, mistakes: Mapping[str, Mistake], *flags: str) -> Program:
    for header in CSRC.rglob("*.h"):
        copy = folder / header.relative_to(CSRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(header, copy)
    for name in {mistake.file for mistake in mistakes.values()}:
        wrong = {number: one for number, one in enumerate(mistakes.values(), 1) if one.file == name}
        (folder / "cuda" / name).write_text(_choices((CSRC / "cuda" / name).read_text(), wrong))
    (folder / "planted.h").write_text(HEADER)
    here = simulator.HERE
    include = ["-include", folder / "planted.h", f"-I{here}", f"-I{here / 'include'}", f"-I{folder / 'cuda'}"]
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-w", "-pthread", *flags]
    program = folder / "program"
    command = [*simulator.compiler(), *options, *include, here / source, here / "simt.cpp", "-o", program]
    built = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return Program(program, list(mistakes))


def _choices(text: str, mistakes: Mapping[int, Mistake]) -> str:
    """The text with a choice at every place where something is done wrong."""
    places: dict[tuple[int, int], dict[int, str]] = defaultdict(dict)
    for number, mistake in mistakes.items():
        before, right, after = mistake.text.split("@")
        assert text.count(before + right + after) == 1, f"{mistake.file} has changed: {mistake.text!r}"
        first = text.index(before + right + after) + len(before)
        places[first, first + len(right)][number] = mistake.wrong
    for (first, last), wrongs in sorted(places.items(), reverse=True):
        right = text[first:last]
        if right.endswith(";"):
            choice = "".join(f"if (planted == {n}) {{ {wrong} }} else " for n, wrong in wrongs.items())
            choice += f"{{ {right} }}"
        else:
            choice = "".join(f"planted == {n} ? {wrong} : " for n, wrong in wrongs.items())
            choice = f"({choice}{right})"
        text = text[:first] + choice + text[last:]
    return text
