"""The machine code of a compiled kernel, every instruction with the source functions it came from. Nothing is run.

nvdisasm says what the instructions are. Where they came from stands in the cubin's line table (DWARF 2), which ptxas
writes under -lineinfo: a row for every change of place, and NVIDIA's extended opcode 0x90 for code that was inlined:
the row that holds the call, and the name of the function inlined, so that each instruction has a chain of functions,
innermost first.
"""

from __future__ import annotations

import re
import struct
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compiled_cuda import DTYPES, NAME, SECTION, run

INLINED = 0x90  # NVIDIA's extended opcode: row of the call, offset of the function's name
LINE = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<predicate>!?U?P[T\d]+)\s+)?"
    r"(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*)"
    r"|^(?P<label>\.L_x?_?\d+|\$\S+):",  # of a branch, of a function that is called
    re.M,
)
TARGET = re.compile(r"`\((\.L_x?_?\d+|\$[^)]+)\)|(\.L_x?_?\d+)")


@dataclass(frozen=True)
class Frame:
    """Where an instruction stands: function, as a bare name, and line of a file."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True)
class Instruction:
    """One line of disassembly. Branch targets are indices into the kernel's code."""

    address: int
    predicate: str
    opcode: str
    operands: str
    frames: tuple[Frame, ...]  # innermost first
    targets: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Without what follows a dot."""
        return self.opcode.partition(".")[0]

    @property
    def text(self) -> str:
        """Without its predicate."""
        return f"{self.opcode} {self.operands}".strip()

    def within(self, function: str) -> bool:
        return any(frame.function == function for frame in self.frames)


@dataclass(frozen=True)
class Kernel:
    """A kernel for one architecture."""

    symbol: str
    stage: str  # the tile stage, as in compiled_cuda.py; "" for a kernel of somebody else
    dtype: str
    code: list[Instruction] = field(repr=False)


# ------------------------------------------------------------------------------------------------- reading


def kernels_of(module: Path, architecture: str, sources: str = "*") -> Iterator[Kernel]:
    """The kernels of a module for one architecture, such as sm_90a."""
    with tempfile.TemporaryDirectory() as folder:
        run("cuobjdump", "-xelf", "all", module.resolve(), folder=Path(folder))
        for cubin in sorted(Path(folder).glob(f"{sources}.{architecture}.cubin")):
            yield from kernels_of_cubin(cubin)


def kernels_of_cubin(cubin: Path) -> Iterator[Kernel]:
    """The kernels of one source that have a body."""
    sections = SECTION.split(run("nvdisasm", "-c", cubin))
    places = Lines(cubin.read_bytes()).of_sections()
    for symbol, text in zip(sections[1::2], sections[2::2], strict=True):
        named = NAME.search(symbol)
        code = list(_instructions(text, places.get(".text." + symbol, [])))
        if len(code) > 64 and named:
            yield Kernel(symbol, named[2], DTYPES[named[1]], code)


def _instructions(text: str, places: list[tuple[int, tuple[Frame, ...]]]) -> Iterator[Instruction]:
    labels: dict[str, int] = {}
    found: list[re.Match[str]] = []
    for line in LINE.finditer(text):
        if line["label"]:
            labels[line["label"]] = len(found)
        else:
            found.append(line)
    starts = [address for address, _ in places]
    for line in found:
        address = int(line["address"], 16)
        at = bisect_right(starts, address) - 1
        named = [labels[one or two] for one, two in TARGET.findall(line["operands"]) if (one or two) in labels]
        operands = re.sub(r"\s+", " ", line["operands"].replace(".reuse", "")).strip()
        frames = places[at][1] if at >= 0 else ()
        yield Instruction(address, line["predicate"] or "", line["opcode"], operands, frames, tuple(named))


# ------------------------------------------------------------------------------------------------- the line table


def function_name(mangled: str) -> str:
    """The bare name out of an Itanium-mangled one; of a lambda, the function that it stands in.

    _ZN5ldreg4cuda8evaluateIfLi16ELi1EEEvNS0_10TeamShared... is evaluate.
    """
    rest = re.sub(r"^_Z+(N[VK]*|L)?", "", mangled)
    nested = mangled.startswith(("_ZN", "_ZZN"))
    name = mangled
    while part := re.match(r"L?(\d+)", rest):
        length = int(part[1])
        name, rest = rest[part.end() : part.end() + length], rest[part.end() + length :]
        if not nested:
            break
        if rest.startswith("I"):  # arguments of a template
            rest = rest[_arguments_end(rest) :]
    return name


PIECE = re.compile(r"L[a-z]n?\d+E|S[\dA-Z]*_|S[abdiost]|T\d*_|(\d+)|.")


def _arguments_end(text: str) -> int:
    """Behind the E that closes the I at 0."""
    depth = at = 0
    while at < len(text) and (depth or not at):
        piece = PIECE.match(text, at)
        assert piece is not None
        at = piece.end() + int(piece[1] or 0)
        depth += (piece[0] in "INJX") - (piece[0] == "E")
    return at


class Lines:
    """The line tables of a cubin."""

    def __init__(self, elf: bytes) -> None:
        self.elf = elf
        at, entry, count, names = *struct.unpack_from("<Q", elf, 40), *struct.unpack_from("<3H", elf, 58)
        self.headers = [struct.unpack_from("<2I4Q2I2Q", elf, at + i * entry) for i in range(count)]
        strings = self._bytes(self.headers[names])
        self.names = [_text(strings, header[0]) for header in self.headers]

    def _bytes(self, header: tuple[int, ...]) -> bytes:
        return self.elf[header[4] : header[4] + header[5]]

    def _section(self, name: str) -> bytes:
        return self._bytes(self.headers[self.names.index(name)]) if name in self.names else b""

    def of_sections(self) -> dict[str, list[tuple[int, tuple[Frame, ...]]]]:
        """For every section of code: addresses at which the place changes, and the place."""
        table, strings, symbols = self._section(".debug_line"), self._section(".debug_str"), self._section(".symtab")
        code = {}  # offset of an address in the table: the section it lies in
        relocations = self._section(".rela.debug_line")
        for at in range(0, len(relocations), 24):
            offset, info = struct.unpack_from("<2Q", relocations, at)
            (section,) = struct.unpack_from("<H", symbols, (info >> 32) * 24 + 6)
            code[offset] = self.names[section]
        found: dict[str, list[tuple[int, tuple[Frame, ...]]]] = {}
        at = 0
        while at < len(table):
            at = _program(table, at, strings, code, found)
        return found


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()


def _leb(data: bytes, at: int, signed: bool = False) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value - (1 << shift if signed and byte & 64 else 0), at


def _program(
    table: bytes,
    start: int,
    strings: bytes,
    code: dict[int, str],
    found: dict[str, list[tuple[int, tuple[Frame, ...]]]],
) -> int:
    """One line number program (DWARF 2, 6.2); returns where the next begins."""
    length, _, prologue = struct.unpack_from("<IHI", table, start)
    unit, _, base, span, first = struct.unpack_from("<2Bb2B", table, start + 10)
    arguments = table[start + 15 : start + 14 + first]
    at = table.index(b"\0\0", start + 14 + first) + 2 if table[start + 14 + first] else start + 15 + first
    files = [""]
    while table[at]:
        files.append(Path(_text(table, at)).name)
        at = table.index(b"\0", at) + 1
        for _ in range(3):
            _, at = _leb(table, at)
    at, end = start + 10 + prologue, start + 4 + length
    rows: list[tuple[Frame, ...]] = [()]  # by number, from 1
    section, address, file, line, context, name = "", 0, 1, 1, 0, ""

    def copy() -> None:
        frame = Frame(name, files[file], line)
        rows.append((frame, *rows[context]) if context else (frame,))
        places = found.setdefault(section, [])
        if places and places[-1][0] == address:
            places.pop()  # of several for one address the last holds
        places.append((address, rows[-1]))

    while at < end:
        opcode, at = table[at], at + 1
        if opcode >= first:
            address += (opcode - first) // span * unit
            line += base + (opcode - first) % span
            copy()
        elif opcode == 0:
            size, at = _leb(table, at)
            extended, rest = table[at], at + 1
            if extended == 1:  # end of a sequence
                section, address, file, line, context, name = "", 0, 1, 1, 0, ""
                rows = [()]
            elif extended == 2:
                section, (address,) = code.get(rest, ""), struct.unpack_from("<Q", table, rest)
            elif extended == INLINED:
                context, rest = _leb(table, rest)
                offset, _ = _leb(table, rest)
                name = function_name(_text(strings, offset)) if context else ""
            at += size
        elif opcode == 1:
            copy()
        elif opcode == 2:
            step, at = _leb(table, at)
            address += step * unit
        elif opcode == 3:
            step, at = _leb(table, at, signed=True)
            line += step
        elif opcode == 4:
            file, at = _leb(table, at)
        elif opcode == 8:
            address += (255 - first) // span * unit
        elif opcode == 9:
            address += struct.unpack_from("<H", table, at)[0]
            at += 2
        else:
            for _ in range(arguments[opcode - 1]):
                _, at = _leb(table, at)
    return end
