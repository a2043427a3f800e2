"""The instruction sets of the CPU extension: which of them this machine executes.

A process computes with one set, which the extension chooses when it is first asked; LDREG_CPU_ISA names a lesser one.
So each set is measured in processes of its own, and whether it runs at all is found out in the same way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

from ldreg_kernels.kernels import native

VARIABLE = "LDREG_CPU_ISA"
ISAS = ("avx512bf16", "avx512", "avx2", "portable")  # in the order of every table: the widest first
_ASK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_cpu", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.isa())
"""  # without torch, which takes seconds to import


@cache
def instruction_sets() -> tuple[str, ...]:
    """Those that this machine executes, the one it would choose first; none without the extension."""
    module = getattr(native._cpu, "__file__", None)
    if module is None:
        return ()
    asked = [_answer(module, isa) for isa in ("", *ISAS)]
    return tuple(dict.fromkeys(isa for isa in asked if isa))


def environment(isa: str) -> dict[str, str]:
    """Of a process that computes with this set; "" leaves it to the environment of this one."""
    return {**os.environ, VARIABLE: isa} if isa else dict(os.environ)


def place(isa: str) -> int:
    """Where a set stands among the others; one this file does not know comes last."""
    return ISAS.index(isa) if isa in ISAS else len(ISAS)


def _answer(module: str, isa: str) -> str:
    """What the extension of a new process chooses; empty where it refuses."""
    found = subprocess.run(
        [sys.executable, "-c", _ASK, module], env={**os.environ, VARIABLE: isa}, capture_output=True, text=True
    )
    return found.stdout.strip() if found.returncode == 0 else ""
