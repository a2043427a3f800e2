"""The log waits for the device once a window and never between, names the step that went wrong, and loses no record."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ldreg_kernels.metrics import effective_rank
from ldreg_kernels.trainer import step_log as module
from ldreg_kernels.trainer.config import TrainConfig
from ldreg_kernels.trainer.engine import Recorder, prepare, step_log, train, train_one_epoch
from ldreg_kernels.trainer.methods import Output, Time
from ldreg_kernels.trainer.regularisers import Term, Total, build_regulariser
from ldreg_kernels.trainer.step_log import NonFiniteLossError, Observer, Step, StepLog, Window, step_numbers

METHODS = ("simclr", "byol", "mae")
TinyOf = Callable[..., TrainConfig]
CPU = torch.device("cpu")

# What makes a GPU's host wait: a number read by the host, a size that depends on values, a comparison of wholes.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "is_nonzero")
# Copies to the host that no dispatcher sees on a CPU, where they are none.
COPIES = ("tolist", "cpu", "numpy")


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU.

    Args:
        on_host: of a tensor that lies on the host whatever the device: to read it is no wait.
    """

    def __init__(self, on_host: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.on_host = on_host
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        picks_by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        sized_by_values = name == "repeat_interleave" and "output_size" not in (kwargs or {})
        if (name in WAITS or picks_by_mask or sized_by_values) and not self.on_host(args[0]):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(
    monkeypatch: pytest.MonkeyPatch, on_host: Callable[[Tensor], bool] = lambda tensor: False
) -> Iterator[Counter[str]]:
    mode = Waits(on_host)

    def noted(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            mode.counts[name] += 1
            return original(tensor, *args, **kwargs)

        return call

    with monkeypatch.context() as patch, mode:
        for name in COPIES:
            patch.setattr(Tensor, name, noted(name))
        yield mode.counts


class Tally(Observer):
    """What had been counted after every step, and at every window."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.steps: list[Counter[str]] = []
        self.windows: list[Counter[str]] = []

    def step(self, step: Step) -> None:
        self.steps.append(self.counts.copy())

    def window(self, window: Window) -> None:
        self.windows.append(self.counts.copy())


def test_what_waits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    with counting(monkeypatch) as counts:
        x.sum().item(), float(x[0]), bool(x[1] > 0), x[mask], mask.nonzero(), x.tolist(), x.cpu()
        torch.equal(x, x)
        x.clone()[mask] = 1.0
    assert counts == {
        "_local_scalar_dense": 3, "index": 1, "nonzero": 1, "tolist": 1, "cpu": 1, "equal": 1, "index_put_": 1,
    }  # fmt: skip


@pytest.mark.parametrize("weight", [0.1, "ratio:0.05"])
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("simclr", {}),
        ("byol", {}),
        ("mae", {}),
        ("simclr", {"optimiser": {"name": "lars", "lr": 0.1}}),
    ],
    ids=["simclr", "byol", "mae", "lars"],
)
def test_no_step_waits_between_two_readings(
    method: str, changes: dict[str, Any], weight: Any, tiny_of: TinyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole steps, from the views to the optimiser; the log is read where the epoch ends. (Jitter and blur are judged
    in views/test_device.py: they read numbers that lie on the host, which cannot be told apart here.)
    """
    config = tiny_of(method, log_every=1000, epochs=1, regularisers__0__weight=weight)
    run = prepare(config.derive(changes))

    def counts_of_adamw(tensor: Tensor) -> bool:
        """How many steps AdamW has made with each tensor is kept on the host."""
        state = run.optimiser.state.values()
        return any(s["step"].data_ptr() == tensor.data_ptr() for s in state if "step" in s)

    with counting(monkeypatch) as of_loader:  # torch's loader draws a number when an epoch begins, on the host
        next(run.loader.epoch(0))
    with counting(monkeypatch) as of_rank:
        effective_rank(torch.randn(32, 8), variant="cov")
    with counting(monkeypatch, counts_of_adamw) as counts:
        tally = Tally(counts)
        train_one_epoch(run, 0, step_log(run, [tally]))
    assert sum(of_loader.values()) <= 1
    assert tally.steps == [of_loader] * len(run.loader)
    # The numbers in one transfer, whether the last features are finite, and their effective rank.
    assert tally.windows == [of_loader + of_rank + Counter(tolist=1, _local_scalar_dense=1)]
    assert sum(of_rank.values()) <= 3  # a hint for the progress bar may wait a little, once a window


def test_a_number_read_in_a_step_would_be_noticed(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(Observer):
        def step(self, step: Step) -> None:
            step.output.loss.item()

    run = prepare(tiny.derive({"optimiser": {"name": "lars", "lr": 0.1}, "log_every": 1000}))
    with counting(monkeypatch) as of_loader:
        next(run.loader.epoch(0))
    with counting(monkeypatch) as counts:
        tally = Tally(counts)
        train_one_epoch(run, 0, step_log(run, [Reads(), tally]))
    assert [sum((c - of_loader).values()) for c in tally.steps] == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------- records


class Windows(Observer):
    """Keeps the windows."""

    def __init__(self) -> None:
        self.seen: list[Window] = []

    def window(self, window: Window) -> None:
        self.seen.append(window)


def test_records_are_complete_and_in_order_where_windows_do_not_divide_the_epoch(tiny: TrainConfig) -> None:
    config = tiny.derive({"log_every": 3})
    run, windows, recorder = prepare(config), Windows(), Recorder()
    log = step_log(run, [windows, recorder])
    for epoch in range(2):
        train_one_epoch(run, epoch, log)
    assert [[r["step"] for r in w.records] for w in windows.seen] == [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9]]
    assert [r["step"] for r in recorder.steps] == list(range(10))
    assert [r["epoch"] for r in recorder.steps] == [0] * 5 + [1] * 5
    assert [w.time for w in windows.seen] == [Time(step, 10, step // 5) for step in (2, 4, 5, 8, 9)]
    assert all(math.isfinite(w.images_per_second) and w.images_per_second > 0 for w in windows.seen)
    assert ["batch_effective_rank" in r for r in recorder.steps] == [s in (2, 4, 5, 8, 9) for s in range(10)]


def test_how_often_the_log_is_read_changes_no_number(tiny_of: TinyOf) -> None:
    def numbers(log_every: int) -> list[list[float]]:
        steps = train(tiny_of("byol", log_every=log_every)).steps
        return [[s[name] for name in ("loss", "ssl_loss", "regulariser", "lid", "lr")] for s in steps]

    assert numbers(1) == numbers(4) == numbers(1000)


# ---------------------------------------------------------------- the log by itself


def step_of(loss: float) -> tuple[Output, Total]:
    value = torch.tensor(loss)
    return Output(value, torch.randn(8, 4)), Total(value, [], [])


def filled(log: StepLog, losses: Sequence[float], start: int = 0) -> None:
    for step, loss in enumerate(losses, start):
        log.add(Time(step, 100, step // log.epoch_steps), 0.1, *step_of(loss))


def test_nan_is_found_at_the_window_and_its_step_named() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        windows = Windows()
        log = StepLog(every=5, epoch_steps=7, batch_size=4, observers=[windows])
        filled(log, [3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, bad])  # readings after steps 4 and 6; then 7, 8 and 9
        with pytest.raises(NonFiniteLossError, match=rf"the loss is {bad} in epoch 1, step 8$"):
            filled(log, [math.nan], start=9)  # the first bad step is named, not the last
        # Who watches is told before the run ends.
        assert [[r["step"] for r in w.records] for w in windows.seen] == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
        assert "batch_effective_rank" not in windows.seen[-1].records[-1]


class Poison:
    """A regulariser that is NaN at its second call."""

    ratio = None

    def __init__(self, config: TrainConfig) -> None:
        self.sound = build_regulariser(config.regularisers[0], CPU)
        self.calls = 0

    def weight(self, time: Time) -> float:
        return 1.0

    def __call__(self, output: Output, group: Any = None) -> Term:
        self.calls += 1
        value, stats = self.sound(output)
        return Term(value * math.nan if self.calls == 2 else value, stats)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_breaks_goes_on_to_the_window_and_ends_there(method: str, tiny_of: TinyOf) -> None:
    config = tiny_of(method, log_every=1000)
    poison, recorder = Poison(config), Recorder()
    run = prepare(config, [poison])
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan in epoch 0, step 1$"):
        train_one_epoch(run, 0, step_log(run, [recorder]))
    assert poison.calls == 5
    assert [math.isfinite(r["loss"]) for r in recorder.steps] == [True] + [False] * 4


def test_speed_is_that_of_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now[0]

    monkeypatch.setattr(module, "clock", Clock)
    windows = Windows()
    log = StepLog(every=2, epoch_steps=3, batch_size=64, observers=[windows], _started=100.0)
    now[0] = 104.0
    filled(log, [1.0, 1.0])  # two steps of 64 images in 4 s
    now[0] = 105.0
    filled(log, [1.0], start=2)
    now[0] = 500.0  # an evaluation
    log.restart_clock()
    now[0] = 508.0
    filled(log, [1.0], start=3)
    assert [w.images_per_second for w in windows.seen] == [32.0, 64.0, 8.0]


def test_numbers_of_a_step_by_name() -> None:
    features = torch.randn(60, 8)
    output = Output(torch.tensor(3.0), features, logs={"accuracy": torch.tensor(0.5)})
    stats = build_regulariser_stats(features)
    two = [Term(torch.tensor(-2.0), stats), Term(torch.tensor(4.0))]
    total = Total(torch.tensor(3.0), two, [0.5, torch.tensor(0.25)], torch.tensor(0.05))
    numbers: Mapping[str, Tensor] = step_numbers(output, total)
    assert {name: value.item() for name, value in numbers.items() if name != "lid"} == pytest.approx(
        {
            "loss": 3.0 + 0.25 * 4.0,  # a ratio's term is not in the loss that backward is called on
            "ssl_loss": 3.0,
            "regulariser": -2.0,
            "degenerate": 1,
            "regulariser_2": 4.0,
            "weight_2": 0.25,
            "gradient_ratio": 0.05,
            "accuracy": 0.5,
        }
    )
    usable = stats.lid[1:]
    assert numbers["lid"].item() == pytest.approx(usable.log().mean().exp().item(), rel=1e-6)


def build_regulariser_stats(features: Tensor) -> Any:
    """Statistics of a batch with one degenerate row."""
    from ldreg_kernels import LDRegStats, lid

    values = lid(features, k=8)
    values[0] = math.nan
    return LDRegStats(values, {}, torch.tensor(1))
