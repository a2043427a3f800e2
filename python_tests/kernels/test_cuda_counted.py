"""The counting model: its reading of machine code, and what it says of the built module. Nothing is run.

Addresses, loops and bank conflicts are checked on code written out here; then the module's own. benchmarks/counted.py.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from benchmarks import compiled_cuda, counted, counted_dense, counted_direct, counted_stages
from benchmarks.counted_lanes import LANES, UNIFORM, LaneWalk, Value, wavefronts, width
from benchmarks.counted_loops import Graph
from benchmarks.counted_model import NotFoundError, Part, Shape, job_cost
from benchmarks.counted_sass import Kernel, _instructions, function_name

ALL = [True] * LANES

# A loop in which every thread stores four words, sixteen bytes from those of its neighbour: as ptxas writes it.
SCALAR_STORES = """
        /*0000*/                   S2R R2, SR_TID.X ;
        /*0010*/                   LDC R3, c[0x0][0x210] ;
        /*0020*/                   IMAD.SHL.U32 R4, R2, 0x4, RZ ;
        /*0030*/                   IMAD.MOV.U32 R7, RZ, RZ, RZ ;
.L_x_0:
        /*0040*/                   IMAD R5, R4, 0x4, R3 ;
        /*0050*/                   IMAD R5, R7, 0x1000, R5 ;
        /*0060*/                   LOP3.LUT P1, RZ, R2, 0x1f, RZ, 0xc0, !PT ;
        /*0070*/              @!P0 BRA `(.L_x_1) ;
        /*0080*/                   STS [R5+0x4], R8 ;
        /*0090*/                   STS.128 [R5], R8 ;
        /*00a0*/                   LDS R9, [R3+0x20] ;
        /*00b0*/                   LDS R10, [R9+0x20] ;
        /*00c0*/              @!P1 STS [R5], R10 ;
        /*00d0*/                   LDS R11, [R5] ;
        /*00e0*/                   STS [R11], R10 ;
.L_x_1:
        /*00f0*/                   VIADD R7, R7, 0x1 ;
        /*0100*/                   ISETP.GE.AND P2, PT, R7, R3, PT ;
        /*0110*/              @!P2 BRA `(.L_x_0) ;
        /*0120*/                   EXIT ;
"""


@pytest.fixture(scope="module")
def graph():
    return Graph(Kernel("", "", "float32", list(_instructions(SCALAR_STORES, []))))


def test_a_loop_is_found_with_its_longest_and_shortest_way(graph):
    (loop,) = graph.loops
    assert [graph.blocks[loop.head].code[0].address, len(loop.blocks)] == [0x40, 3]
    assert len(loop.path(lambda i: 1.0)) == 14
    assert len(loop.path(lambda i: 1.0, longest=False)) == 7
    assert len(loop.path(lambda i: 1.0, avoid=lambda i: i.opcode == "STS.128")) == 7


def test_bank_conflicts_follow_from_the_instructions(graph):
    (loop,) = graph.loops
    walk = LaneWalk(graph, 96)

    def fronts(address):
        (access,) = (i for i in loop.code if i.address == address)
        lanes = walk.address(access)
        return None if lanes is None else wavefronts(lanes, width(access), walk.active(access, loop.head))

    assert fronts(0x80) == 4  # one word, 16 bytes apart: the lanes share every fourth bank
    assert fronts(0x90) == 4  # four words at once: 512 bytes, which is as many wavefronts for four times the work
    assert fronts(0xA0) == 1  # all lanes the same word
    assert fronts(0xB0) == 1  # an address that all lanes loaded from one place
    assert fronts(0xC0) == 1  # one lane of them
    assert fronts(0xE0) is None  # lanes differ by something loaded


@pytest.mark.parametrize(
    ("stride", "size", "expected"),
    [
        (0, 4, 1),
        (4, 4, 1),
        (8, 4, 2),
        (16, 4, 4),
        (32, 4, 8),
        (128, 4, 32),
        (8, 8, 2),
        (16, 8, 4),
        (16, 16, 4),
        (32, 16, 8),
        (0, 16, 1),
    ],
)
def test_wavefronts_of_lanes_a_stride_apart(stride, size, expected):
    assert wavefronts(Value(tuple(stride * lane for lane in range(LANES))), size, ALL) == expected
    assert wavefronts(UNIFORM, size, [False] * LANES) == 0


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("_ZN5ldreg4cuda8evaluateIfLi8ELi1EEEvNS0_10TeamSharedINS0_7ComputeIT_E4RealEEEi", "evaluate"),
        ("_ZNK5ldreg4cuda10TeamSharedIfE4taskEv", "task"),
        ("_ZN5ldreg4cuda9TileStageINS0_7MmaLoopEE3runERKNS0_6CursorEjRNS0_6TileAtEPcPKNS0_9TensorMapE", "run"),
        ("_ZZN5ldreg4cuda14centre_columnsIfEEviPcENKUliE_clEi", "centre_columns"),
        ("_Z4fabsf", "fabs"),
    ],
)
def test_names_of_functions(mangled, name):
    assert function_name(mangled) == name


# ------------------------------------------------------------------------------------------------- the built module


@pytest.fixture(scope="module")
def module():
    try:
        path = compiled_cuda.built_module()
    except compiled_cuda.ToolError as missing:
        pytest.skip(str(missing))
    built = counted.load(path)
    if compiled_cuda.HOPPER not in built.architectures():
        pytest.skip(f"the module was built without {compiled_cuda.HOPPER}")
    return built


@pytest.fixture(scope="module")
def read(module):
    try:
        return counted.readings(compiled_cuda.built_module(), "float32")
    except compiled_cuda.ToolError as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.alone  # half a minute of one core for the reading, once for the file
def test_every_loop_that_a_stage_names_is_in_the_module_and_the_newest_rows_are_its(module, read):
    """NOTES' figures are those of the file (below); the file's newest are those of this module, to 1 % (float32)."""
    newest = {
        (row.shape, row.stage): row
        for row in counted.stored()
        if row.name == counted.stored()[-1].name and row.dtype == "float32"
    }
    for shape in (counted.SHAPES[1], counted.SHAPES[4], counted.SHAPES[5]):
        for found in counted.times(read, module, shape):
            told = newest[counted.title(shape), found.stage]
            assert found.milliseconds == pytest.approx(told.milliseconds, rel=0.01), (
                "run python -m benchmarks.counted --write after"
            )
            assert (found.limit, found.jobs) == (told.limit, told.jobs)


@pytest.mark.slow
@pytest.mark.alone
def test_a_loop_that_is_not_there_is_named(module, read):
    missing = Part("polish", "polish_rows", "LDG", lambda work: counted_stages.spread(1, 1))
    stage = dataclasses.replace(counted_stages.SCAN, parts=(missing,))
    work = counted.works(module, counted.SHAPES[1])[0]
    with pytest.raises(NotFoundError, match="polish: a loop of polish_rows with LDG"):
        job_cost(read[counted.LISTS], stage, work)


@pytest.mark.slow
@pytest.mark.alone
def test_small_problems_are_counted_from_the_loops_of_their_stage(module, read):
    shape = Shape(128, 1000, 128, 100)
    assert counted.planned(module, shape).words == "direct, 4 queries together"
    found = counted.times(read, module, shape)
    assert [one.stage for one in found] == ["scan", "direct", "gradient"]
    # For each of four queries, a difference and a square of every column that a lane has.
    (part, work) = counted_direct.DIRECT.parts[0], counted.works(module, shape)[-1]
    path = read[counted.DIRECT].count(part, part.most(work)).path
    assert sum(i.name in ("FADD", "FFMA") for i in path) >= 2 * 4 * counted_direct.VALUES


@pytest.mark.slow
@pytest.mark.alone
def test_a_dense_tile_does_little_besides_its_differences(module, read):
    """A thread's 64 pairs in four columns: a subtraction and a multiplication each, and loads for columns to come."""
    part = counted_dense.DENSE.parts[0]
    (work, *_) = (w for w in counted.works(module, counted.SHAPES[5]) if w.segment.job == "dense")
    path = read[counted.DENSE].count(part, part.most(work)).path
    floor = 2 * 64 * 4
    found = Counter(instruction.name for instruction in path)
    assert found["FADD"] + found["FFMA"] == floor
    assert found["LDG"] == 1  # of four features: the way of aligned rows
    assert 1.0 < len(path) / floor < 1.3


def test_the_plan_of_an_absent_gpu_holds_every_tile_once(module):
    shape = Shape(700, 700, 256, 8)
    works = counted.works(module, shape)
    blocks = -(-shape.N // 128)
    assert [work.segment.job for work in works][:2] == ["scan", "pack references"]
    assert works[-1].segment.job == "rows"
    steps = [work.segment for work in works if work.segment.job == "tiles"]
    assert [0, *(step.meets for step in steps)] == [*(step.met for step in steps), blocks // 2 + 1]
    # Each pair of blocks once, but that tiles may be two blocks wide where one is left.
    pairs = blocks * (blocks + 1) // 2
    assert (
        pairs
        <= sum(step.jobs * counted_stages.width(work) for work in works if (step := work.segment).job == "tiles")
        <= 2 * pairs
    )


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (counted.SHAPES[5], {}),  # unasked
        (Shape(700, 900, 256, 8), {"pairs": "dense"}),
        (Shape(300, 20000, 64, 8), {"pairs": "dense", "budget": 8 << 20}),  # references in stretches
    ],
)
def test_rounds_of_dense_tiles_follow_from_the_jobs(module, shape, options):
    planned = counted.planned(module, shape, **options)
    works = counted.works_of(planned, shape)
    plan = works[0].plan
    words = f"dense, {plan['dense_rows']} queries, {plan['dense_references']} references a round"
    assert planned.words == words
    tiles, selections = ([w for w in works if w.segment.job == job] for job in ("dense", "select"))
    assert sum(w.segment.jobs for w in tiles) == -(-shape.B // 128) * -(-shape.N // 128)
    panels = -(-shape.B // plan["dense_rows"])
    assert sum(counted_dense.references(w) for w in selections) == panels * shape.N
    assert sum(counted_dense.last(w) for w in selections) == panels


# ------------------------------------------------------------------------------------------------- the file and NOTES


def test_notes_say_what_the_file_says():
    text = counted.NOTES.read_text()
    assert counted.into_notes(text, counted.stored()) == text, "run python -m benchmarks.counted --write"


def test_measurements_stand_beside_the_count(tmp_path, monkeypatch):
    measured = tmp_path / "measurements.csv"
    monkeypatch.setattr(counted, "MEASURED", measured)
    title = counted.title(counted.SHAPES[1])
    assert counted.measured(title, "float32") == ""
    measured.write_text(
        "device,hardware,op,backend,B,N,D,k,dtype,mode,unit,value\n"
        "cpu,EPYC,ldreg_loss,ldreg cpu,4096,4096,2048,64,float32,gradient,ms,200\n"
    )
    assert counted.measured(title, "float32") == "not yet"
    with measured.open("a") as file:
        file.write("cuda,H200,ldreg_loss,ldreg cuda,4096,4096,2048,64,float32,gradient,ms,0.9\n")
    assert counted.measured(title, "float32") == "0.900 (H200)"
