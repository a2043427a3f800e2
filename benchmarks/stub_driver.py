"""The Triton backend without a GPU: kernels are really compiled, launches really prepared, and nothing is run.

    with stub_driver.pretended_gpu() as gpu:
        ldk.ldreg_loss(torch.randn(512, 64), k=8, backend="triton")
        gpu.launches()

Tensors are on the CPU, the device is said to be of compute capability 9.0. Triton's own driver and launcher run, above
a libcuda.so.1 made here whose cuLaunchKernelEx counts and returns; results are whatever memory held. So what a call
costs the host can be measured (host.py): all but what the driver takes for a launch, and with malloc in place of
torch's CUDA allocator. It has to be a process with no other libcuda, and without TRITON_INTERPRET.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

CAPABILITY = 90
MULTIPROCESSORS = 132
SHARED_BYTES = 227 << 10
DEVICE = -1  # what Tensor.get_device says of tensors on the CPU
SILENT = (
    "CtxGetLimit CtxSetCurrent CtxSetLimit DeviceGet DeviceGetAttribute DevicePrimaryCtxRetain DriverGetVersion "
    "FuncGetAttribute FuncSetAttribute FuncSetCacheConfig GetErrorString ModuleGetFunction ModuleLoadData "
    "OccupancyMaxActiveClusters PointerGetAttributes TensorMapEncodeIm2col TensorMapEncodeTiled"
)
SOURCE = """
long ldreg_launches = 0;
int cuLaunchKernelEx(void) { ldreg_launches++; return 0; }
int cuCtxGetCurrent(void **context) { *context = &ldreg_launches; return 0; }
int cuPointerGetAttribute(unsigned long *out, int which, unsigned long pointer) { *out = pointer; return 0; }
""" + "".join(f"int cu{name}(void) {{ return 0; }}\n" for name in SILENT.split())


def unavailable_reason() -> str | None:
    """Why there can be no pretended GPU in this process, or None."""
    if torch.cuda.is_available():
        return "there is a real GPU"
    try:
        import triton
    except ImportError as error:
        return f"Triton could not be imported ({error})"
    if triton.knobs.runtime.interpret:
        return "TRITON_INTERPRET is set"
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        return "there is no C compiler"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else f"{header} is missing"


@dataclass(frozen=True)
class Pretended:
    """What happened on the pretended GPU."""

    library: ctypes.CDLL

    def launches(self) -> int:
        """How many times a kernel was launched in this process."""
        return ctypes.c_long.in_dll(self.library, "ldreg_launches").value


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Pretended]:
    """The backend "triton" serves CPU tensors, on a device that does nothing."""
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(f"no pretended GPU: {reason}")
    from triton.runtime import driver

    from ldreg_kernels.kernels import triton_backend

    gpu: dict[str, Any] = {
        "current_device": lambda: DEVICE,
        "get_device_capability": lambda *_: divmod(CAPABILITY, 10),
        "get_device_properties": lambda *_: SimpleNamespace(multi_processor_count=MULTIPROCESSORS),
        "is_current_stream_capturing": lambda: False,
    }
    backend: dict[str, Any] = {"unavailable_reason": lambda: None, "device_types": lambda: ("cpu",)}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ldreg-libcuda-", ignore_cleanup_errors=True))
        library = libcuda(Path(folder))
        # Triton builds a module of its own against libcuda, and would keep it.
        if "TRITON_CACHE_DIR" not in os.environ:
            stack.enter_context(mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder))
        stack.enter_context(mock.patch.dict(os.environ, TRITON_LIBCUDA_PATH=folder))
        stack.enter_context(mock.patch.multiple(torch.cuda, **gpu))
        stack.enter_context(mock.patch.multiple(triton_backend, **backend))
        stack.callback(setattr, driver, "_active", driver._active)
        driver.set_active(_driver())
        triton_backend.forget_plans()
        stack.callback(triton_backend.forget_plans)
        yield Pretended(library)


def libcuda(folder: Path) -> ctypes.CDLL:
    """Compiled, and loaded for whoever asks for libcuda.so.1 from now on."""
    source, path = folder / "libcuda.c", folder / "libcuda.so.1"
    source.write_text(SOURCE)
    compiler = shutil.which("gcc") or "cc"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", path, source], check=True)
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _driver() -> Any:
    """Triton's driver for NVIDIA, told what kind of GPU it has."""
    from triton.backends.nvidia.driver import CudaDriver

    real = CudaDriver()
    real.get_current_device = lambda: DEVICE
    real.get_current_stream = lambda _: 0
    real.get_device_capability = lambda *_: divmod(CAPABILITY, 10)
    real.utils = SimpleNamespace(**vars(real.utils))  # the original is shared by all drivers
    real.utils.load_binary = lambda *_: (0, 1, 255, 0, 1024)  # module, function, registers, spills, threads
    real.utils.get_device_properties = lambda _: {"max_shared_mem": SHARED_BYTES}
    return real
