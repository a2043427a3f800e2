"""The CPU kernels run on torch's own OpenMP workers; without them, and after a fork, on threads of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulator
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ldreg_kernels as ldk
from ldreg_kernels.kernels import native

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(native.unavailable_reason() is not None, reason="the CPU extension is not built"),
]


@pytest.fixture
def features(threads):
    torch.set_num_threads(2)
    return torch.randn(700, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def own_threads():
    native._cpu.borrow_workers(0)
    yield
    native._cpu.borrow_workers(native._torch_workers())


def lid(features):
    return ldk.lid(features, k=20, backend="cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="runtimes are looked for in /proc")
def test_torch_workers_are_found():
    # In a process of its own: what other tests import may bring more OpenMP runtimes.
    program = "from ldreg_kernels.kernels import native; print(native._torch_workers())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="runtimes are looked for in /proc")
def test_a_mapped_file_whose_name_is_no_text_is_none_of_our_business(tmp_path):
    program = (
        "import mmap, os, sys\n"
        "folder = os.fsencode(sys.argv[1]) + b'/lib'\n"  # among the names that are looked at
        "os.mkdir(folder)\n"
        "with open(folder + b'/libgomp-\\xff\\xfe', 'w+b') as file:\n"
        "    file.write(bytes(4096)), file.flush()\n"
        "    mapped = mmap.mmap(file.fileno(), 4096)\n"
        "from ldreg_kernels.kernels import native\n"
        "print(native._torch_workers())\n"
    )
    found = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 0


def test_no_workers_are_borrowed_where_the_maps_cannot_be_read(monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert native._torch_workers() == 0


LINE = "7f00-7f01 r-xp 00000000 08:01 42   "
RUNTIMES = ["/opt/torch/lib/libgomp-1.so.1", "/usr/lib/libomp.so", "/lib/libiomp5.so (deleted)", "/a b/libgomp.so"]


@given(st.data())
@settings(max_examples=100)
def test_any_bytes_may_stand_in_the_maps(data):
    """Names that are no text, lines cut short, nothing at all: the runtimes are found among them, and nothing else."""
    noise = st.binary(max_size=40).map(lambda text: text.replace(b"libgomp", b"").replace(b"mp", b""))
    mapped = st.sampled_from([b"/lib", b"/x/lib\xff", b"[heap]", LINE.encode(), b"/usr/lib/\xc3("])
    lines = data.draw(st.lists(st.tuples(noise, mapped, noise).map(b"".join)))
    expected = data.draw(st.lists(st.sampled_from(RUNTIMES), unique=True))
    lines += [(LINE + name).encode() for name in expected]
    text = b"\n".join(data.draw(st.permutations(lines)))
    assert native._openmp_runtimes(text) == sorted(map(Path, expected))


@given(st.binary(max_size=60))
def test_maps_that_name_no_usable_runtime_lend_no_workers(name):
    line = LINE.encode() + b"/lib/libgomp" + name
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda self: line)
        assert native._torch_workers() == 0
        patched.setattr(Path, "read_bytes", lambda self: b"")
        assert native._torch_workers() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_calls_start_no_threads_and_end_none():
    program = (
        "import os, torch, ldreg_kernels as ldk\n"
        "from ldreg_kernels.kernels import native\n"
        "native._cpu.always_share(True)\n"
        "torch.set_num_threads(4)\n"
        "torch.ones(1 << 20).mul(2)\n"  # torch starts its workers
        "tasks = lambda: sorted(os.listdir('/proc/self/task'))\n"
        "before = tasks()\n"
        "for rows in (700, 97, 700, 130): ldk.lid(torch.randn(rows, 40), k=20, backend='cpu')\n"  # few items, then many
        "torch.ones(1 << 20).mul(2)\n"
        "assert tasks() == before, (before, tasks())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_same_answer_on_own_threads(features, request):
    borrowed = lid(features)
    request.getfixturevalue("own_threads")
    assert torch.equal(lid(features), borrowed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_wait_for_workers_it_lacks():
    # A process of its own again: forking one that has pytest's and torch's threads is what this is not about.
    program = (
        "import os, torch, ldreg_kernels as ldk\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(700, 40)\n"
        "before = ldk.lid(x, k=20, backend='cpu')\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if torch.equal(ldk.lid(x, k=20, backend='cpu'), before) else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forks_while_other_threads_compute():
    """Whatever the other threads are in the middle of, a child has none of them to wait for."""
    program = (
        "import os, signal, threading, torch, ldreg_kernels as ldk\n"
        "from ldreg_kernels.kernels import native\n"
        "native._cpu.always_share(True)\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(700, 40)\n"
        "before = ldk.knn(x, k=20, backend='cpu').distances\n"
        "over = False\n"
        "def compute():\n"
        "    while not over: ldk.lid(x, k=20, backend='cpu')\n"
        "threads = [threading.Thread(target=compute) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "try:\n"
        "    for _ in range(20):\n"
        "        child = os.fork()\n"
        "        if child == 0:\n"
        "            signal.alarm(20)\n"
        "            os._exit(0 if torch.equal(ldk.knn(x, k=20, backend='cpu').distances, before) else 1)\n"
        "        assert os.waitpid(child, 0)[1] == 0\n"
        "finally:\n"
        "    over = True\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.skipif(not simulator.compiler(), reason="no C++ compiler")
def test_forks_while_other_threads_hold_the_pool(tmp_path):
    """The same where it is a matter of nanoseconds: a program that does nothing else (pool_fork.cpp)."""
    root, program = simulator.ROOT, tmp_path / "pool_fork"
    sources = [Path(__file__).with_name("pool_fork.cpp"), root / "csrc/cpu/blocks.cpp"]
    flags = ["-O1", "-std=c++17", "-pthread", f"-I{root / 'csrc'}"]
    subprocess.run([*simulator.compiler(), *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_a_busy_machine():
    """Two other programs want both processors, and a small call does not wait for threads that are not run.

    Medians, in turns within one run; what is waited for comes in slices of the system's time, 4 ms and more.
    """
    program = (
        "import statistics, time, torch, ldreg_kernels as ldk\n"
        "x = torch.randn(256, 512, requires_grad=True)\n"
        "taken = {1: [], 2: []}\n"
        "for turn in range(6):\n"
        "    for threads in (1, 2):\n"
        "        torch.set_num_threads(threads)\n"
        "        end = time.perf_counter() + 0.3\n"
        "        while (start := time.perf_counter()) < end:\n"
        "            ldk.lid(x, k=16, backend='cpu')\n"
        "            taken[threads].append(time.perf_counter() - start)\n"
        "print(*(statistics.median(taken[threads]) for threads in (1, 2)))\n"
    )
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert done.returncode == 0, done.stderr
    alone, together = map(float, done.stdout.split())
    assert together <= 2 * alone, f"{together:.4f} s with two threads, {alone:.4f} s with one"


def normal(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


FLUSHED = {
    "normalised float16": torch.nn.functional.normalize(normal(300, 768)).half(),
    "float32 below 1e-34": normal(700, 48) * 1e-35,
    "subnormal float32": normal(700, 48) * 1e-39,
}


@pytest.fixture
def flush_denormal():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    torch.set_flush_denormal(False)
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("workers", ["torch's", "own"])
@pytest.mark.parametrize("features", FLUSHED)
def test_the_callers_floating_point_mode(features, workers, threads, flush_denormal, shared, request):
    """torch.set_flush_denormal changes nothing in the kernels, on any thread, and is on afterwards."""
    if workers == "own":
        request.getfixturevalue("own_threads")
    x = FLUSHED[features].clone().requires_grad_()
    outcome = []
    for flush in (False, True):
        for count in (1, 2):
            torch.set_num_threads(count)
            flush_denormal(flush)
            found = ldk.knn(x.detach(), k=20, backend="cpu")
            lid = ldk.lid(x, k=20, backend="cpu")
            kept = (torch.tensor(1e-40) * torch.ones(1)).item() == 0
            flush_denormal(False)
            assert kept == flush
            outcome.append([*found, lid.detach(), *torch.autograd.grad(lid.sum(), x)])
    for other in outcome[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcome[0], other, strict=True))


def test_the_workers_floating_point_mode():
    """Nor does the mode that torch's workers were started in, which the caller may have left since."""
    program = (
        "import torch, ldreg_kernels as ldk\n"
        "from ldreg_kernels.kernels import native\n"
        "native._cpu.always_share(True)\n"
        "torch.set_num_threads(1)\n"  # torch's own workers would flush some of x
        "x = torch.randn(700, 48).double().mul(1e-39).float()\n"
        "torch.set_num_threads(2)\n"
        "torch.set_flush_denormal(True)\n"
        "torch.ones(1 << 20).mul(2)\n"  # torch starts its workers
        "torch.set_flush_denormal(False)\n"
        "together = [ldk.knn(x, k=20, backend='cpu').distances for _ in range(10)]\n"
        "torch.set_num_threads(1)\n"
        "alone = ldk.knn(x, k=20, backend='cpu').distances\n"
        "assert (alone > 0).all() and all(torch.equal(alone, found) for found in together)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
