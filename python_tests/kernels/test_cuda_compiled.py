"""The CUDA C++ kernels of the built module, disassembled: nothing compiled, nothing run.

What is required: benchmarks/compiled_cuda.py. The committed figures are those of this version.
"""

from __future__ import annotations

import csv
import dataclasses

import pytest

from benchmarks import compiled_cuda

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,  # ten seconds of two cores, once for the whole file
]


@pytest.fixture(scope="module")
def rows():
    try:
        return compiled_cuda.rows_of(compiled_cuda.built_module())
    except compiled_cuda.ToolError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def hopper(rows):
    for row in rows:
        if row.kernel == "HopperTileStage":
            return row
    pytest.skip(f"the module was built without {compiled_cuda.HOPPER}")


def test_every_requirement_is_met(rows):
    assert rows
    assert [(row, fault) for row in rows for fault in row.faults()] == []


def test_every_kernel_is_there_for_every_architecture(rows):
    built = pytest.importorskip("ldreg_kernels._cuda", exc_type=ImportError).architectures()
    assert {row.architecture for row in rows} == {name for name in built if name.startswith("sm_")}
    assert list(compiled_cuda.absent(rows)) == []


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        ({"stack_bytes": 16, "local_loads": 4, "local_stores": 4}, "16 bytes of stack, 4 loads and 4 stores"),
        ({"registers": 104}, "104 registers, 96 are there for each of 640 threads"),
        ({"utmaldg": 0}, "no wgmma, or no tensor copies"),
        ({"hgmma_waited": 4, "hgmma": 4}, "every wgmma waits for the one before"),
        ({"architecture": "sm_80"}, "only sm_90a runs it"),
    ],
)
def test_a_fault_is_noticed(hopper, figures, fault):
    (found,) = dataclasses.replace(hopper, **figures).faults()
    assert fault in found


def test_committed_file_is_up_to_date(rows):
    with compiled_cuda.RESULTS.open(newline="") as file:
        committed = list(csv.DictReader(file))
    found = [{name: str(value) for name, value in dataclasses.asdict(row).items()} for row in rows]
    both = {row["architecture"] for row in committed} & {row["architecture"] for row in found}  # of LDREG_CUDA_ARCHS

    def of_both(rows, *columns):
        return [tuple(row[name] for name in columns) for row in rows if row["architecture"] in both]

    assert of_both(committed, "kernel", "dtype", "architecture") == of_both(found, "kernel", "dtype", "architecture")
    if {row["cuda"] for row in committed} == {row["cuda"] for row in found}:  # another compiler, other figures
        columns = compiled_cuda.COLUMNS
        remedy = "run python -m benchmarks.compiled_cuda --write"
        assert of_both(committed, *columns) == of_both(found, *columns), remedy
