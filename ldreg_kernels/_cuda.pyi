"""Types of the compiled CUDA module, csrc/bindings_cuda.cpp."""

def unavailable_reason() -> str | None: ...
def device_count() -> int: ...
def driver_version() -> int: ...
def runtime_version() -> int: ...
def architectures() -> list[str]: ...
def lid_formulas(distances: list[float], on_device: bool) -> list[list[float]]: ...

simulated: bool

class Call:
    """One call, as csrc/cuda/ldreg_cuda.h describes it; addresses are integers, 0 for none."""

    device: int
    dtype: int
    x: int
    y: int
    own_map: int
    B: int
    N: int
    D: int
    x_stride: int
    y_stride: int
    own_offset: int
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
    goal: float
    track: list[tuple[int, int]]
    distances: int
    indices: int
    lid: int
    degenerate: int
    tracked: int
    grad: int
    value: int
    coeff: int

def needs(call: Call) -> tuple[int, int, str]: ...
def launch(call: Call, workspace: int, state: int, stream: int) -> None: ...
