"""What the CUDA C++ kernels will take, counted from the machine code of the built module: no GPU is needed.

    python -m benchmarks.counted [--shape B N D K [--track K ...] --dtype DTYPE] [--module FILE]
    python -m benchmarks.counted --loops                 # the loops that the count stands on, and those it leaves out
    python -m benchmarks.counted --write NAME            # rows of results/counted.csv under that name, and NOTES' table

counted_sass.py reads the instructions and where they come from, counted_loops.py finds the loops, counted_lanes.py
the bank conflicts, counted_machine.py says what the hardware does in a cycle, counted_stages.py what runs how often
(with counted_dense.py, counted_direct.py and counted_teams.py the files to adapt when a stage is rewritten),
counted_model.py multiplies. The schedule is the module's own, planned for an H200. Exit code 1 if a loop that a stage
names is not there, 2 without a module or the tools to read it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.machinery
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import compiled_cuda, counted_dense, counted_direct, counted_machine, counted_stages
from benchmarks.compiled_cuda import HOPPER, ToolError
from benchmarks.counted_loops import Loop
from benchmarks.counted_model import NotFoundError, Reading, Segment, Shape, Stage, StageTime, Work, stage_times
from benchmarks.counted_sass import kernels_of

RESULTS = Path(__file__).resolve().parent / "results" / "counted.csv"
MEASURED = RESULTS.with_name("measurements.csv")
NOTES = Path(__file__).resolve().parent / "NOTES.md"
DTYPES = {"float32": 0, "float16": 3, "bfloat16": 2}  # as csrc/cuda/ldreg_cuda.h numbers them
SOURCES = {"float32": "ldreg_f32", "float16": "ldreg_f16", "bfloat16": "ldreg_bf16"}
MLE = 2  # an estimator, for tracked LIDs; csrc/lid_math.h

# Rows of README's and NOTES' tables: the sizes of published trainings, and what published LDReg tracks.
SHAPES = [
    Shape(1024, 4096, 2048, 64),
    Shape(4096, 4096, 2048, 64),
    Shape(8192, 8192, 2048, 128),
    Shape(32768, 32768, 768, 64),
    Shape(131072, 131072, 512, 64),
    Shape(1024, 4096, 2048, 64, track=(32, 512)),
]


@dataclass(frozen=True)
class Row:
    """A stage of a shape, or their sum: a line of the file."""

    name: str  # of this version: before, after
    commit: str
    shape: str
    dtype: str
    stage: str
    milliseconds: float
    limit: str  # what most of the time is spent on
    jobs: int  # 0 where the stage goes on in those of the one before
    floor: float  # milliseconds, of the whole shape and the way that it is computed


COLUMNS = [field.name for field in fields(Row)]


# ------------------------------------------------------------------------------------------------- counting


def load(path: Path) -> ModuleType:
    """A built module, wherever it is; the package's own is loaded once."""
    if path.resolve() == compiled_cuda.built_module().resolve():
        return importlib.import_module("ldreg_kernels._cuda")
    loader = importlib.machinery.ExtensionFileLoader("counted._cuda", str(path))
    spec = importlib.util.spec_from_file_location("counted._cuda", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def planned(module: ModuleType, shape: Shape, **options: object) -> Any:
    """A shape's launch on an H200, as the module plans it; `options` are set on the call, such as pairs="dense"."""
    call = module.Call()
    call.B, call.N, call.D, call.x_stride, call.y_stride = shape.B, shape.N, shape.D, shape.D, shape.D
    call.dtype, call.same, call.wanted = DTYPES[shape.dtype], shape.same, shape.wanted
    call.loss = call.gradient = True
    call.k, call.track = shape.k, [(MLE, k) for k in shape.track]
    for name, value in options.items():
        setattr(call, name, value)
    return module.Planned(
        call,
        multiprocessors=counted_machine.MULTIPROCESSORS,
        shared_bytes=counted_machine.SHARED_BYTES,
        major=counted_machine.MAJOR,
    )


def works_of(plan: Any, shape: Shape) -> list[Work]:
    """The segments of a planned launch."""
    numbers = dict(plan.numbers)
    segments = [Segment(*segment) for segment in plan.segments]
    if any(segment.job == "dense" for segment in segments):
        numbers |= counted_dense.rounds(numbers, segments)
    return [Work(shape, numbers, segment) for segment in segments]


def works(module: ModuleType, shape: Shape) -> list[Work]:
    return works_of(planned(module, shape), shape)


@dataclass(frozen=True)
class Way:
    """How a plan gets at distances: its kernel, its stages, and the functions whose loops are theirs."""

    kernel: str
    stages: tuple[Stage, ...]
    roots: tuple[str, ...]


LISTS = Way("HopperTileStage", counted_stages.STAGES, counted_stages.ROOTS)
DENSE = Way("NoTiles", counted_dense.STAGES, counted_dense.ROOTS)
DIRECT = Way("NoTiles", counted_direct.STAGES, counted_direct.ROOTS)


def way_of(there: list[Work]) -> Way:
    """That of a launch."""
    if there[0].plan["tiles"]:
        return LISTS
    return DENSE if "dense_rows" in there[0].plan else DIRECT


def readings(path: Path, dtype: str) -> dict[Way, Reading]:
    """The kernels of a dtype for Hopper."""
    kernels = {kernel.stage: kernel for kernel in kernels_of(path, HOPPER, SOURCES[dtype])}
    if missing := {LISTS.kernel, DENSE.kernel}.difference(kernels):
        raise ToolError(f"{path} has no kernel {', '.join(missing)} for {dtype} and {HOPPER}")
    pairs = Reading(kernels[DENSE.kernel])
    return {LISTS: Reading(kernels[LISTS.kernel]), DENSE: pairs, DIRECT: pairs}


def times(read: dict[Way, Reading], module: ModuleType, shape: Shape) -> list[StageTime]:
    """Of every stage."""
    there = works(module, shape)
    way = way_of(there)
    return list(stage_times(read[way], way.stages, there))


def title(shape: Shape) -> str:
    tracked = f" tracked {', '.join(map(str, shape.track))}" if shape.track else ""
    return f"({shape.B}, {shape.N}, {shape.D}, {shape.k}){tracked}"


def rows(name: str, commit: str, shape: Shape, found: list[StageTime]) -> Iterator[Row]:
    lists = any(one.stage == counted_stages.TILES.name for one in found)
    floor = round(shape.floor if lists else counted_dense.floor(shape), 4)
    for one in found:
        yield Row(
            name, commit, title(shape), shape.dtype, one.stage, round(one.milliseconds, 4), one.limit, one.jobs, floor
        )
    total = sum(one.milliseconds for one in found)
    worst = max(found, key=lambda one: one.milliseconds)
    jobs = sum(one.jobs for one in found)
    yield Row(name, commit, title(shape), shape.dtype, "sum", round(total, 4), worst.stage, jobs, floor)


def commit() -> str:
    """Of this checkout; with a + if files differ from it."""
    here = RESULTS.parent
    shown = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True)
    return shown.stdout.strip() or "unknown"


# ------------------------------------------------------------------------------------------------- loops


def loop_lines(read: dict[Way, Reading]) -> Iterator[str]:
    """Every loop of the stages: the part that it is, or that it is not counted."""
    for way, reading in read.items():
        yield f"{way.kernel}, {', '.join(stage.name for stage in way.stages)}:"
        for loop in reading.graph.loops:
            if not loop.waits and any(loop.runs_in(root) for root in way.roots):
                yield loop_line(reading, loop)


def loop_line(read: Reading, loop: Loop) -> str:
    address = read.graph.blocks[loop.head].code[0].address
    longest = loop.path(lambda i: 1.0)
    shortest = loop.path(lambda i: 1.0, longest=False)
    asked = counted_machine.demand(longest, lambda i: read.fronts(i, loop) or 4)
    unknown = sum(read.fronts(i, loop) is None for i in longest if counted_machine.SHARED_ACCESS.match(i.opcode))
    claimed = read.claimed.get(loop.head, "not counted")
    return (
        f"{address:6x} {loop.source:40} {claimed:36} {len(shortest)}-{len(longest)} instructions, "
        f"{asked['shared']:.0f} wavefronts ({unknown} accesses by a stated pattern), "
        f"{counted_machine.alone(longest):.0f} cycles alone"
    )


# ------------------------------------------------------------------------------------------------- the file and NOTES


def stored(path: Path = RESULTS) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    numbers = {"milliseconds": float, "jobs": int, "floor": float}
    cells = [{name: numbers.get(name, str)(line[name]) for name in COLUMNS} for line in found]
    return [Row(**line) for line in cells]


def write(name: str, new: list[Row], path: Path = RESULTS) -> None:
    """The rows of a name anew; those of others stay."""
    kept = [row for row in stored(path) if row.name != name]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in [*kept, *new])


def table(all_rows: Iterable[Row]) -> str:
    """For NOTES: a line for every shape, dtype and version; those in dense tiles by themselves."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in all_rows:
        groups.setdefault((row.shape, row.dtype, row.name), {})[row.stage] = row
    dense = {key: stages for key, stages in groups.items() if counted_dense.DENSE.name in stages}
    lists = {key: stages for key, stages in groups.items() if key not in dense}
    head = (
        "Every pair in dense tiles; the floor is two instructions a pair and column, and the gradient's rows from HBM:"
    )
    return "\n".join([*table_lines(LISTS, lists), "", head, "", *table_lines(DENSE, dense)])


def table_lines(way: Way, groups: dict[tuple[str, str, str], dict[str, Row]]) -> Iterator[str]:
    names = [stage.name for stage in way.stages]
    yield f"| (B, N, D, k), dtype | version | {' | '.join(names)} | sum | floor | times the floor | measured |"
    yield "|" + "---|" * (len(names) + 6)
    order = {shape: place for place, (shape, _, _) in reversed(list(enumerate(groups)))}
    for (shape, dtype, name), stages in sorted(
        groups.items(), key=lambda item: (order[item[0][0]], item[0][1] != "float32")
    ):
        cells = [figure(stages[stage].milliseconds) if stage in stages else "" for stage in names]
        total = stages["sum"]
        cells += [figure(total.milliseconds), figure(total.floor), f"{total.milliseconds / total.floor:.2f}"]
        yield f"| {shape} {dtype} | {name} ({total.commit}) | {' | '.join(cells)} | {measured(shape, dtype)} |"


def figure(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.3g}"


def measured(shape: str, dtype: str) -> str:
    """Milliseconds of the CUDA backend on a GPU, of the newest run that timed this."""
    found = ""
    if not MEASURED.exists():
        return found
    with MEASURED.open(newline="") as file:
        for line in csv.DictReader(file):
            same = f"({line['B']}, {line['N']}, {line['D']}, {line['k']})" == shape and line["dtype"] == dtype
            ours = line["device"].startswith("cuda") and line["backend"] == "ldreg cuda" and line["op"] == "ldreg_loss"
            if same and ours and line["mode"] == "gradient" and line["unit"] == "ms":
                found = f"{float(line['value']):.3f} ({line['hardware']})"
    return found or "not yet"


def into_notes(text: str, all_rows: Iterable[Row]) -> str:
    """NOTES with the table between its markers."""
    begin, end = "<!-- counted -->\n", "<!-- /counted -->\n"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"NOTES needs one {begin.strip()} and one {end.strip()}")
    before, rest = text.split(begin)
    return f"{before}{begin}{table(all_rows)}\n{end}{rest.split(end)[1]}"


# ------------------------------------------------------------------------------------------------- command line


def asked_for(shape: list[int], track: list[int]) -> Shape:
    B, N, D, k = shape
    return Shape(B, N, D, k, track=tuple(track))


def main() -> int:
    """Count, print, and write if asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted", description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=4, metavar=("B", "N", "D", "K"), help="instead of the table's")
    parser.add_argument("--track", type=int, nargs="*", default=[], metavar="K", help="tracked LIDs of --shape")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 and bfloat16")
    parser.add_argument("--module", type=Path, help="another one than a call would load")
    parser.add_argument("--loops", action="store_true", help="the loops, too")
    parser.add_argument("--commit", help="that the module was built from; default: this checkout's")
    parser.add_argument("--write", metavar="NAME", help=f"to {RESULTS.name} and NOTES, as this version")
    options = parser.parse_args()
    try:
        path = options.module or compiled_cuda.built_module()
        module = load(path)
        new = []
        for dtype in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
            read = readings(path, dtype)
            for chosen in [asked_for(options.shape, options.track)] if options.shape else SHAPES:
                shape = replace(chosen, dtype=dtype)
                counted = times(read, module, shape)
                found = list(rows(options.write or "", options.commit or commit(), shape, counted))
                new += found
                for row in found:
                    print(
                        f"{row.shape} {dtype:9} {row.stage:8} {row.milliseconds:9.4f} ms  {row.limit:8} {row.jobs} jobs"
                    )
                times_floor = found[-1].milliseconds / found[-1].floor
                print(f"{title(shape)} {dtype:9} floor    {found[-1].floor:9.4f} ms  {times_floor:.2f} times")
            if options.loops:
                print("\n".join(loop_lines(read)))
    except ToolError as error:
        print(error, file=sys.stderr)
        return 2
    except NotFoundError as error:
        print(
            f"not in the module: {error}. If the stage was rewritten, benchmarks/counted_stages.py is to be adapted "
            "(counted_dense.py, counted_direct.py, counted_teams.py)"
        )
        return 1
    if options.write:
        write(options.write, new)
        NOTES.write_text(into_notes(NOTES.read_text(), stored()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
