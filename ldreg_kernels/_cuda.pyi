"""Types of the compiled CUDA module, csrc/bindings_cuda.cpp."""

from typing import overload

def unavailable_reason() -> str | None: ...
def device_count() -> int: ...
def driver_version() -> int: ...
def runtime_version() -> int: ...
def architectures() -> list[str]: ...
def lid_formulas(distances: list[float], on_device: bool) -> list[list[float]]: ...

simulated: bool

class Call:
    """What is asked for, as csrc/cuda/ldreg_cuda.h describes it."""

    device: int
    dtype: int
    B: int
    N: int
    D: int
    x_stride: int
    y_stride: int
    same: bool
    exact: bool
    drop_smallest: bool
    wanted: int
    tiles: bool
    loop: str
    budget: int
    knn: bool
    gradient: bool
    loss: bool
    estimator: int
    k: int
    form: int
    reduction: int
    track: list[tuple[int, int]]

class Planned:
    """A call, planned for its device, or for a GPU that need not be there."""

    @overload
    def __init__(self, call: Call) -> None: ...
    @overload
    def __init__(self, call: Call, *, multiprocessors: int, shared_bytes: int, major: int) -> None: ...
    @property
    def workspace(self) -> int: ...
    @property
    def state(self) -> int: ...
    @property
    def words(self) -> str: ...
    @property
    def numbers(self) -> list[tuple[str, int]]: ...
    @property
    def segments(self) -> list[tuple[str, int, int, int, int, int]]: ...
    def launch(
        self,
        x: int,
        y: int,
        own_map: int,
        own_offset: int,
        goal: float,
        distances: int,
        indices: int,
        lid: int,
        degenerate: int,
        tracked: int,
        grad: int,
        value: int,
        coeff: int,
        workspace: int,
        stream: int,
        /,
    ) -> None: ...

def state_of(device: int, stream: int) -> list[int]: ...
