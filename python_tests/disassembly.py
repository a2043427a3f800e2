"""The inner loops of compiled functions, read out of objdump's text. Nothing is run."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

JUMP = re.compile(r"(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?\b([0-9a-f]+) <")
LEAVES = re.compile(r"(?:call|bl|blr|ret)\b")  # a return: no loop, the compiler has moved a branch behind the end


@dataclass
class Loop:
    """A loop: its function, demangled, and its instructions."""

    function: str
    code: list[str]
    frame: str  # registers that point into the stack

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, line)) for line in self.code)

    def matching(self, pattern: str) -> list[str]:
        return [line for line in self.code if re.match(pattern, line)]

    def stack_traffic(self) -> list[str]:
        return [line for line in self.code if re.search(rf"[(\[]({self.frame})\b", line)]

    def stores(self) -> list[str]:
        """Vectors written to memory, wherever: sums that GCC keeps in an array are stored through any register."""
        return [line for line in self.code if re.match(r"v?mov\w*\s+%[xyz]mm\d+,.*\(|st(p|r|ur)\s+[qd]\d", line)]


def loops(path: Path, functions: str, objdump: str = "objdump", innermost: bool = True) -> Iterator[Loop]:
    """The loops of functions whose name matches; innermost: those with no other inside and no call."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for block in re.split(r"\n\n+", listing):
        heading, _, body = block.partition("\n")
        name = re.match(r"[0-9a-f]+ <(.*)>:$", heading)
        if name and re.search(functions, name.group(1)):
            listed = re.findall(r"^\s+([0-9a-f]+):\s+(\S.*)$", body, re.MULTILINE)
            yield from _loops(name.group(1), listed, innermost)


def _loops(function: str, listing: list[tuple[str, str]], innermost: bool) -> Iterator[Loop]:
    position = {address: i for i, (address, _) in enumerate(listing)}
    code = [line for _, line in listing]
    jumps = [(position.get(jump.group(1), len(code)), i) for i, line in enumerate(code) if (jump := JUMP.match(line))]
    spans = [(begin, end) for begin, end in jumps if begin <= end]
    framed = any(re.match(r"mov\s+%rsp,%rbp", line) for line in code[:10])  # else it is a register like others
    frame = "%rsp|%rbp|sp|x29" if framed else "%rsp|sp|x29"
    for begin, end in spans:
        inner = any((begin, end) != other and begin <= other[0] and other[1] <= end for other in spans)
        body = code[begin : end + 1]
        if not innermost or not (inner or any(LEAVES.match(line) for line in body)):
            yield Loop(function, body, frame)
