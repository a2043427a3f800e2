"""Ctrl-C ends a long run on the CPU within about a second, and other Python threads run meanwhile.

Each test starts a Python of its own, waits until the kernel is well under way, and sends it SIGINT as a
terminal would.
"""

import signal
import subprocess
import sys
import time

import pytest
import tolerances

import ldreg_kernels as ldk

pytestmark = pytest.mark.alone

# Minutes of work for two cores if left alone. The other thread counts, which needs the interpreter lock.
# A shell starts what runs in its background with SIGINT ignored, and children inherit that: hence the handler.
CHILD = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
import ldreg_kernels as ldk

ticks = 0
def count():
    global ticks
    while True:
        time.sleep(0.002)
        ticks += 1

from ldreg_kernels.losses import nt_xent_loss

x = torch.randn(60000, 512)
call = {
    "knn": lambda: ldk.knn(x, k=64, backend="cpu"),
    "ldreg_loss": lambda: ldk.ldreg_loss(x.requires_grad_(), k=64, backend="cpu"),
    "nt_xent_loss": lambda: nt_xent_loss(x, x.flip(0).requires_grad_(), backend="cpu").backward(),
}[sys.argv[1]]
ldk.knn(torch.randn(100, 8), k=4, backend="cpu")
threading.Thread(target=count, daemon=True).start()
ticks = 0
print("ready", flush=True)
try:
    call()
    print("finished", flush=True)
except KeyboardInterrupt:
    print("ticks", ticks, flush=True)
    ldk.knn(torch.randn(100, 8), k=4, backend="cpu")  # the library is usable afterwards
    print("usable", flush=True)
    raise
"""


@pytest.mark.parametrize("function", ["knn", "ldreg_loss", "nt_xent_loss"])
def test_ctrl_c_ends_a_long_run(function):
    reason = ldk.backends()["cpu"]
    assert reason is None, reason
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, function], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(1.0)
        assert child.poll() is None, "finished before it could be interrupted"
        child.send_signal(signal.SIGINT)
        sent = time.monotonic()
        out = child.stdout.readline()  # printed as soon as KeyboardInterrupt arrives
        waited = time.monotonic() - sent
        child.wait(timeout=30)
        rest, errors = child.stdout.read(), child.stderr.read()  # communicate() misses what readline() buffered
    finally:
        child.kill()
    assert out.startswith("ticks "), out + rest + errors
    assert waited <= tolerances.INTERRUPT_SECONDS
    assert int(out.split()[1]) > 20, "other Python threads made no progress: the interpreter lock is held"
    assert rest == "usable\n"
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert child.returncode != 0
