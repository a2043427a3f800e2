"""Losses over all pairs of a batch, forward and backward: ours, which keep no matrix of logits, beside those that do.

    python -m benchmarks.contrastive [--quick] [--rounds 7] [--threads T] [--out FOLDER]    rows to FOLDER
    python -m benchmarks.contrastive --record    rows to benchmarks/results, and README's tables from them

NT-Xent (SimCLR), InfoNCE against a queue (MoCo v2) and the sigmoid loss (SigLIP). Every contender's value and gradient
are held against float64 before it is timed. Contenders take turns within every round, in one process, because the speed
of a shared machine drifts; `torch.mm` is the product of the rows with the candidates alone, a yardstick. Memory is what
autograd saves for backward, and what a call adds at its peak, on a CPU in a fresh process.

Half precision rows are computed in float32 by ours; the others get them as float32, inside the call, because in half
precision a logit at t = 0.1 has no digits left that one could train on.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ldreg_kernels import losses

from .cases import DTYPES
from .contenders import YARDSTICK
from .gate import ROUNDING, WrongAnswerError
from .harness import MEGABYTE, OutOfMemoryError, out_of_memory_named, resident_peak
from .records import FILE_NAME, RESULTS, ROOT, RecordFile, Row, Run
from .searches import UnavailableError
from .selection import CONTRASTIVE
from .session import MOST_CALLS, TURN_MS, available_memory
from .train_step import milliseconds, summary

NT_XENT, INFO_NCE, SIGMOID = "NT-Xent", "InfoNCE with a queue", "sigmoid"
TEMPERATURE = {NT_XENT: 0.1, INFO_NCE: 0.2}  # SimCLR on ImageNet, MoCo v2
SCALE, BIAS = 10.0, -10.0  # where SigLIP starts
OPS = {NT_XENT: "nt_xent_loss", INFO_NCE: "info_nce_loss", SIGMOID: "sigmoid_loss"}

# In float32 a cosine is within a few 2^-24 of exact, so a logit, at 1 / t = 10, within 1e-6 at worst. Errors of weights
# are independent and average out: reached are, in the value, 2e-9 to 1e-8 by ours and up to 5e-7 by others, in the
# gradient 2e-7 to 8e-7. A loss that rounds its logits to half precision is at 1e-3.
VALUE, GRADIENT = 1e-6, 1e-5
MIN_ROUNDS = 2
PATIENCE_MS = 15e3  # of turns, after which a contender gets no more
BLOCK = 512  # rows at a time that the float64 truth holds against all candidates

Call = Callable[..., Tensor]
Answer = tuple[Tensor, tuple[Tensor, ...]]  # value, gradients


@dataclass(frozen=True)
class Case:
    """B rows against N candidates of P features; NT-Xent's rows, two views of B / 2 images, are its candidates.

    Attributes:
        memory: peak memory is measured on a CPU.
        timed: on a CPU; a GPU times everything.
    """

    loss: str
    B: int
    N: int
    P: int = 128
    dtype: str = "float32"
    memory: bool = False
    timed: bool = True

    def inputs(self, device: torch.device, seed: int = 0) -> tuple[Tensor, ...]:
        """The loss's arguments: two views with cosines near 0.8; a queue of unit rows, constant as its keys are."""
        generator = torch.Generator(device).manual_seed(seed)
        images = self.B // 2 if self.loss == NT_XENT else self.B
        image, *noise = (torch.randn(images, self.P, generator=generator, device=device) for _ in range(3))
        made = [(image + 0.5 * each).to(DTYPES[self.dtype]) for each in noise]
        if self.loss == INFO_NCE:
            queue = F.normalize(torch.randn(self.N, self.P, generator=generator, device=device))
            return made[0].requires_grad_(), made[1], queue.to(made[0].dtype)
        return tuple(z.requires_grad_() for z in made)

    def row(self, backend: str, statistic: str, unit: str = "", value: float | None = None, note: str = "") -> Row:
        shape = (self.B, self.N, self.P, 0, self.dtype, self.loss)
        return Row(CONTRASTIVE, OPS[self.loss], backend, *shape, statistic, unit, value, note=note)

    def __str__(self) -> str:
        return f"{self.loss} ({self.B}, {self.N}, {self.P}) {self.dtype}"


def nt_xent(rows: int, **options: object) -> Case:
    return Case(NT_XENT, rows, rows, **options)  # type: ignore[arg-type]


FULL = (
    nt_xent(2048),
    nt_xent(8192, memory=True),
    nt_xent(8192, dtype="bfloat16"),
    nt_xent(65536, memory=True, timed=False),
    Case(INFO_NCE, 256, 65536),
    Case(SIGMOID, 4096, 4096),
)
QUICK = (nt_xent(2048, memory=True),)


# ------------------------------------------------------------------------------------------------- float64


def truth(case: Case, inputs: Sequence[Tensor]) -> Answer:
    """Value and gradients in float64, some rows at a time."""
    wide = [z.detach().double().requires_grad_(z.requires_grad) for z in inputs]
    unit = [z / z.norm(dim=1, keepdim=True) for z in wide]
    blocks = torch.arange(case.B, device=unit[0].device).split(BLOCK)
    # Sums of blocks whose logits are made again in backward: 8192 rows would take gigabytes otherwise.
    parts = [checkpoint(_terms, case.loss, rows, *unit, use_reentrant=False) for rows in blocks]
    value = torch.stack(parts).sum() / case.B
    return value.detach(), torch.autograd.grad(value, [z for z in wide if z.requires_grad])


def _terms(loss: str, rows: Tensor, x: Tensor, y: Tensor, queue: Tensor | None = None) -> Tensor:
    """The sum of some rows' terms, from unit rows."""
    if loss == SIGMOID:
        logits = SCALE * (x[rows] @ y.T) + BIAS
        same = rows[:, None] == torch.arange(len(y), device=y.device)
        return F.softplus(torch.where(same, -logits, logits)).sum()
    if loss == INFO_NCE:
        assert queue is not None
        positive = (x[rows] * y[rows]).sum(1)
        candidates = torch.cat([positive[:, None], x[rows] @ queue.T], 1)
    else:
        z = torch.cat([x, y])
        positive = (z[rows] * z[(rows + len(x)) % len(z)]).sum(1)
        candidates = (z[rows] @ z.T).masked_fill(rows[:, None] == torch.arange(len(z), device=z.device), -math.inf)
    t = TEMPERATURE[loss]
    return ((candidates / t).logsumexp(1) - positive / t).sum()


def check(case: Case, answer: Answer, true: Answer) -> dict[str, float]:
    """Relative errors of value and gradient (in L2, over all inputs).

    Raises:
        WrongAnswerError: one is above what is allowed.
    """
    found = {"loss error": float((answer[0].double() - true[0]).abs() / true[0])}
    off, norm = (
        math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for gradients in ([g.double() - t for g, t in zip(answer[1], true[1], strict=True)], true[1])
    )
    found["gradient error"] = off / norm
    allowed = {"loss error": VALUE, "gradient error": GRADIENT + ROUNDING[case.dtype]}
    for what, error in found.items():
        if not error <= allowed[what]:  # NaN is not within anything
            raise WrongAnswerError(f"{what} {error:.1e}, {allowed[what]:.0e} allowed")
    return found


# ------------------------------------------------------------------------------------------------- contenders


def _ours(case: Case) -> Call:
    name = OPS[case.loss]
    if not hasattr(losses, name):
        raise UnavailableError(f"missing: ldreg_kernels.losses has no {name} yet")
    function: Call = getattr(losses, name)
    if case.loss == SIGMOID:
        return partial(function, scale=SCALE, bias=BIAS)
    call = partial(function, temperature=TEMPERATURE[case.loss])
    return call if case.loss == NT_XENT else lambda query, key, queue: call(query, key, negatives=queue)


def _eager(case: Case, *, compiled: bool = False) -> Call:
    """As training code has it: the logits, and cross_entropy or logsigmoid."""
    calls: dict[str, Call] = {NT_XENT: _eager_nt_xent, INFO_NCE: _eager_info_nce, SIGMOID: _eager_sigmoid}
    call = calls[case.loss]
    return torch.compile(call) if compiled else call


def _eager_nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]).float())
    rows = torch.arange(len(z), device=z.device)
    logits = z @ z.T / TEMPERATURE[NT_XENT]
    logits = logits.masked_fill(rows[:, None] == rows, -math.inf)
    return F.cross_entropy(logits, rows.roll(len(z1)))


def _eager_info_nce(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    query, key = F.normalize(query.float()), F.normalize(key.float())  # the queue keeps normalised keys
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.float().T], 1) / TEMPERATURE[INFO_NCE]
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def _eager_sigmoid(z1: Tensor, z2: Tensor) -> Tensor:
    logits = SCALE * (F.normalize(z1.float()) @ F.normalize(z2.float()).T) + BIAS
    signs = 2 * torch.eye(len(z1), device=z1.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(z1)


def _lightly(case: Case) -> Call:
    """Past its packages' __init__, which want torchvision; a loss without memory bank needs none of it."""
    import lightly

    (root,) = map(Path, lightly.__path__)
    stubs = {}
    for name in ("lightly.loss", "lightly.models", "lightly.models.modules", "lightly.models.utils"):
        stubs[name] = ModuleType(name)
        stubs[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    with patch.dict(sys.modules, stubs):
        loss = importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss(TEMPERATURE[case.loss])
    return lambda z1, z2: loss(z1.float(), z2.float())


def _metric_learning(name: str, case: Case) -> Call:
    """A loss of pytorch-metric-learning, whose labels say which rows are views of one image.

    NTXentLoss averages over positive pairs, of which every row has one, and SupConLoss with one positive is the same
    formula.
    """
    from pytorch_metric_learning import losses as theirs

    mask = 4 * case.B * case.B * (case.B - 2)  # bytes, float32
    if name == "NTXentLoss" and 3 * mask > available_memory():
        raise UnavailableError(f"out of memory: its mask of positive by negative pairs alone has {mask / 1e9:.0f} GB")
    loss = getattr(theirs, name)(temperature=TEMPERATURE[case.loss])

    def call(z1: Tensor, z2: Tensor) -> Tensor:
        return loss(torch.cat([z1, z2]).float(), torch.arange(len(z1), device=z1.device).repeat(2))

    return call


def _product(case: Case) -> Call:
    def multiply(*inputs: Tensor) -> Tensor:
        x, y = inputs[0].detach(), inputs[-1].detach()
        return torch.mm(x, y.T)

    def multiply_batch(z1: Tensor, z2: Tensor) -> Tensor:
        z = torch.cat([z1, z2]).detach()
        return torch.mm(z, z.T)

    return multiply_batch if case.loss == NT_XENT else multiply


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        name: in rows; of ours with its backend.
        build: the call of a case; UnavailableError or ImportError where there is none.
        all_losses: also those that are not NT-Xent.
    """

    name: str
    build: Callable[[Case], Call]
    all_losses: bool = False


def contenders(device: str) -> tuple[Contender, ...]:
    """Ours first."""
    return (
        Contender("ldreg cpu" if device == "cpu" else "ldreg triton", _ours, all_losses=True),
        Contender("eager", _eager, all_losses=True),
        Contender("torch.compile", partial(_eager, compiled=True)),
        Contender("lightly", _lightly),
        Contender("pytorch-metric-learning NTXentLoss", partial(_metric_learning, "NTXentLoss")),
        Contender("pytorch-metric-learning SupConLoss", partial(_metric_learning, "SupConLoss")),
        Contender(YARDSTICK, _product, all_losses=True),
    )


def step(call: Call, inputs: Sequence[Tensor]) -> Answer:
    """Forward and backward: value and gradients; no gradients of the plain product."""
    value = call(*inputs)
    if not value.requires_grad:
        return value, ()
    return value.detach(), torch.autograd.grad(value, [z for z in inputs if z.requires_grad])


# ------------------------------------------------------------------------------------------------- memory


def saved_megabytes(call: Call, inputs: Sequence[Tensor]) -> float:
    """Storage that autograd keeps between forward and backward, without that of the inputs; each storage once."""
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(*inputs)
    own = {z.untyped_storage().data_ptr() for z in inputs}
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own) / MEGABYTE


def peak_megabytes(name: str, case: Case, device: torch.device) -> dict[str, float]:
    """What forward and backward add to the inputs at the peak; on a CPU in a process of its own, and its whole size.

    Raises:
        UnavailableError, OutOfMemoryError: there is nothing to measure, or the process was ended.
    """
    if device.type == "cuda":
        call, inputs = _named(name, "cuda").build(case), case.inputs(device)
        step(call, inputs)  # compiles
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(call, inputs)
        return {"peak memory": (torch.cuda.max_memory_allocated() - before) / MEGABYTE}
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, threads) as pool:
        try:
            added, whole = pool.submit(_resident, name, case).result()
        except BrokenProcessPool as error:
            raise OutOfMemoryError("out of memory: ended by the system") from error
    return {"peak memory": added, "peak resident": whole}


def _resident(name: str, case: Case) -> tuple[float, float]:
    """In the fresh process. A call on few rows before has loaded the libraries, and compiled."""
    device, build = torch.device("cpu"), _named(name, "cpu").build
    step(build(case), replace(case, B=8, N=8).inputs(device))
    inputs = case.inputs(device)
    return resident_peak(partial(step, build(case), inputs))


def _named(name: str, device: str) -> Contender:
    return next(contender for contender in contenders(device) if contender.name == name)


# ------------------------------------------------------------------------------------------------- a case


def measure(case: Case, device: torch.device, rounds: int, *, who: Sequence[Contender] | None = None) -> list[Row]:
    """All rows of a case: time; ratio to ours of everybody else; errors; memory. A reason where there is no figure.

    Args:
        case: what.
        device: where.
        rounds: turns of every contender.
        who: the contenders; default everybody who has this loss, ours first.
    """
    taking_part = [c for c in who or contenders(device.type) if c.all_losses or case.loss == NT_XENT]
    if device.type == "cpu" and not case.timed:
        why = "not timed: held against float64, it would take minutes"
        rows = [case.row(taking_part[0].name, "state", note=why)]
        return [*rows, *_peaks(case, device, taking_part[:1])]
    inputs, true = case.inputs(device), None
    rows, ready = [], {}
    for contender in taking_part:
        try:
            with out_of_memory_named(device):
                call = contender.build(case)
                answer = step(call, inputs)
                if contender.name != YARDSTICK:
                    true = true or truth(case, inputs)
                    errors = check(case, answer, true)
                    rows += [case.row(contender.name, what, "1", error) for what, error in errors.items()]
                    saved = saved_megabytes(call, inputs)
                    rows.append(case.row(contender.name, "saved memory", "MB", saved))
                del answer
            ready[contender] = call
        except (UnavailableError, OutOfMemoryError) as error:
            rows.append(case.row(contender.name, "state", note=str(error)))
        except ImportError as error:
            rows.append(case.row(contender.name, "state", note=f"missing: {error}"))
        except WrongAnswerError as error:
            rows.append(case.row(contender.name, "state", note=f"wrong: {error}"))
        gc.collect()
    rows += _times(case, device, ready, inputs, rounds)
    if case.memory or device.type == "cuda":
        rows += _peaks(case, device, [contender for contender in ready if contender.name != YARDSTICK])
    return rows


def _times(
    case: Case, device: torch.device, ready: dict[Contender, Call], inputs: Sequence[Tensor], rounds: int
) -> list[Row]:
    """Turns of about `TURN_MS`, of which the median call counts; nobody is always first."""
    runs = {contender.name: partial(step, call, inputs) for contender, call in ready.items()}
    calls = {
        name: max(1, min(MOST_CALLS, math.ceil(TURN_MS[device.type] / milliseconds(run, device))))
        for name, run in runs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            if index >= MIN_ROUNDS and sum(times[name]) > PATIENCE_MS:
                continue
            turn = [milliseconds(runs[name], device) for _ in range(calls[name])]
            times[name].append(statistics.median(turn))
    rows = [
        replace(summary(case.row(name, ""), "time", "ms", had), repetitions=len(had) * calls[name])
        for name, had in times.items()
    ]
    ours = next((name for name in names if name.startswith("ldreg")), None)
    if ours is not None:
        for name in names:
            if name != ours:
                ratios = [theirs / own for theirs, own in zip(times[name], times[ours], strict=False)]  # round by round
                rows.append(summary(case.row(name, ""), "ratio", "1", ratios))
    return rows


def _peaks(case: Case, device: torch.device, who: Iterable[Contender]) -> list[Row]:
    rows = []
    for contender in who:
        try:
            with out_of_memory_named(device):
                found = peak_megabytes(contender.name, case, device)
        except (UnavailableError, OutOfMemoryError) as error:
            rows.append(case.row(contender.name, "state", note=str(error)))
            continue
        rows += [replace(case.row(contender.name, what, "MB", value), repetitions=1) for what, value in found.items()]
    return rows


# ------------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, append; 1 if an answer of ours was wrong."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contrastive", description=about)
    parser.add_argument("--quick", action="store_true", help="2048 rows of NT-Xent, 3 rounds: a minute")
    parser.add_argument("--rounds", type=int, help="turns of every contender, at least 2 (default: 7, quick 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of measurements.csv")
    parser.add_argument("--record", action="store_true", help="into benchmarks/results, and README's tables from them")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (3 if options.quick else 7)
    if rounds < MIN_ROUNDS:
        parser.error(f"--rounds must be at least {MIN_ROUNDS}, got {options.rounds}")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if options.record and options.quick:
        parser.error("--record is for the complete suite, without --quick")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    run = Run.start(device.type, options.threads)
    print(f"{run.hardware}; {run.versions}; commit {run.commit}")
    rows: list[Row] = []
    for case in QUICK if options.quick else FULL:
        print(case, flush=True)
        found = measure(case, device, rounds)
        for row in found:
            value = "" if row.value is None else f"{row.value:.3g} {row.unit}  "
            print(f"  {row.backend:36} {row.statistic:16} {value}{row.note}", flush=True)
        rows += found
    RecordFile((RESULTS if options.record else options.out) / FILE_NAME).append(run, rows)
    if options.record:
        from .report import update_readme  # here, because its plots' 30 MB are nothing that a loss takes

        changed = update_readme(ROOT / "README.md", RESULTS)
        print("README.md: " + ("tables regenerated" if changed else "tables were up to date"))
    return int(any(row.backend.startswith("ldreg") and row.note.startswith("wrong") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
