"""The CPU kernels run on torch's own OpenMP workers; without them, and after a fork, on threads of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_calls_start_no_threads_and_end_none():
    program = (
        "import os, torch, ldreg_kernels as ldk\n"
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
