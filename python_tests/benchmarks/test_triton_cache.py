"""benchmarks/triton_cache.py: launches recorded with torch are told apart without it. Nothing is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("triton")

# On the machine that compiles: no torch, and a GPU that is only a name.
LOOK_UP = """
import json, pickle, sys

class NoTorch:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch)
from benchmarks import triton_cache as cache
cache.without_torch()
cache.pretend(90)
launches = pickle.loads(open(sys.argv[1], "rb").read())
found = {*cache.kernels(launches)}
pointers = [p for l in launches for group in l.arguments if isinstance(group, tuple) for p in group
            if isinstance(p, cache.Pointer)]
print(json.dumps({
    "launches": len(launches), "kernels": len(found), "again": len({*cache.kernels(launches * 2)}),
    "names": sorted({l.kernel for l in launches}), "dtypes": sorted({p.dtype for p in pointers}),
    "offsets": sorted({p.offset for p in pointers}),
}))
"""


def test_recorded_launches_are_told_apart_without_torch(tmp_path: Path) -> None:
    from benchmarks import sanitize

    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    recording = [sys.executable, "-m", "benchmarks.triton_cache", "record", "first", "90a"]
    recorded = subprocess.run(recording, cwd=ROOT, env=env, capture_output=True)
    assert recorded.returncode == 0, recorded.stderr.decode()
    file = tmp_path / "launches.pickle"
    file.write_bytes(recorded.stdout)
    ran = subprocess.run([sys.executable, "-c", LOOK_UP, file], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["launches"] == 3 * len(sanitize.SHAPES)  # knn, lid, ldreg_loss
    assert found["names"] == ["ldreg_fused_direct", "ldreg_fused_tiles"]
    assert len(sanitize.SHAPES) < found["kernels"] <= found["launches"]
    assert found["again"] == found["kernels"]  # a call like another needs no kernel of its own
    assert {"torch.float32", "torch.bfloat16", "torch.float16", "torch.float64"} <= set(found["dtypes"])
    assert found["offsets"] == [0, 12]  # x and y of the strided shape begin three floats into a row
    assert not (tmp_path / "cache").exists()
