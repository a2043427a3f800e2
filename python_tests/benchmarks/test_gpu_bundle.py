"""benchmarks/gpu_bundle.sh and what the gate makes of its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pretended_gpu import GATE, NEEDED, ROOT, steps

from benchmarks import gpu_bundle

pytestmark = NEEDED


def bundle(tmp_path: Path, **changes: Any) -> Path:
    """One that fits this interpreter, but for the changes; its modules are empty files."""
    folder, suffix = tmp_path / "bundle", sysconfig.get_config_var("EXT_SUFFIX")
    names = [f"{part}/_cuda{suffix}" for part in ("modules", "watchdog")]
    for name in names:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    content = {
        "commit": "abc1234",
        "sources": gpu_bundle.sources(),
        "suffix": suffix,
        "glibc": "2.2",
        "architecture": "90a",
        "triton": None,
        "files": dict.fromkeys(names, 0),
    }
    (folder / "manifest.json").write_text(json.dumps({**content, **changes}))
    return folder


def test_modules_of_a_bundle_take_the_place_of_a_build(pretended, tmp_path: Path) -> None:
    result = pretended("first", "--bundle", str(bundle(tmp_path)))
    assert result.code == 0
    assert [step for step in steps(result) if step.startswith(("build", "install"))] == [
        "install-watchdog",
        "install-modules",
    ]
    assert "- bundle: triton: not in the bundle" in result.summary


def test_modules_that_cannot_be_loaded_are_built_instead(pretended, tmp_path: Path) -> None:
    given = ("second", "--bundle", str(bundle(tmp_path)))
    result = pretended(*given, INSTALL="echo undefined symbol; exit 1")
    assert result.code == 0
    assert steps(result)[:2] == ["install-modules", "build"]
    assert "- bundle: its modules cannot be loaded here, see build.log" in result.summary
    assert "undefined symbol" in result.log("build")


@pytest.mark.parametrize(
    ("changes", "part", "says"),
    [
        ({"suffix": ".cpython-39-x86_64-linux-gnu.so"}, "modules", "built for .cpython-39-x86_64-linux-gnu.so, this"),
        ({"architecture": "100a"}, "watchdog", "built for 100a, this GPU is 90a"),
        ({"glibc": "2.99"}, "modules", "needs glibc 2.99, here is"),
        ({"sources": "others"}, "modules", "built from other sources than those here"),
        ({"files": {}}, "modules", "not in the bundle"),
        ({"files": {"modules/_cuda.so": 5}}, "modules", "modules/_cuda.so is missing"),
        ({"files": {"wheels/a.whl": 5}}, "wheels", "wheels/a.whl is missing"),
        ({"triton": {"version": "1.0", "key": "k"}}, "triton", "compiled by Triton 1.0, here is 3.6.0"),
        ({"triton": {"version": "3.6.0", "key": "k"}}, "triton", "Triton 3.6.0 is another build of it here"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, monkeypatch, capsys, changes, part: str, says: str) -> None:
    monkeypatch.setattr(gpu_bundle, "triton_here", lambda: {"version": "3.6.0", "key": "here"})
    folder = bundle(tmp_path, **changes)
    if "triton" in changes:
        (folder / "triton.tar.gz").write_bytes(b"")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["triton.tar.gz"] = 0
        (folder / "manifest.json").write_text(json.dumps(manifest))
    assert gpu_bundle.main(["fits", str(folder), "90a"]) == 0
    fitting, reasons = capsys.readouterr()
    assert part not in fitting.split()
    assert f"bundle: {part}: {says}" in reasons


def test_what_fits_is_listed(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_bundle, "triton_here", lambda: {"version": "3.6.0", "key": "here"})
    gpu_bundle.main(["fits", str(bundle(tmp_path)), "90a"])
    assert capsys.readouterr().out.split() == ["modules", "watchdog"]


def test_a_bundle_that_does_not_fit_is_built_instead(pretended, tmp_path: Path) -> None:
    result = pretended("second", "--bundle", str(bundle(tmp_path, architecture="100a")))
    assert result.code == 0
    assert "- bundle: modules: built for 100a, this GPU is 90a" in result.summary
    assert steps(result)[0] == "build"
    nothing = pretended("second", "--no-build", "--bundle", "none")
    assert "- build: --no-build, and no module of a bundle fits; what is there is used" in nothing.summary


def test_the_kernels_of_a_cache_are_listed_by_where_they_were_unpacked(tmp_path: Path, monkeypatch, capsys) -> None:
    """Triton keeps whole paths, and takes a file whose path is not there for one it never had."""
    made, here = tmp_path / "made" / "KEY", tmp_path / "here"
    made.mkdir(parents=True)
    (made / "k.cubin").write_bytes(b"code")
    (made / "__grp__k.json").write_text(json.dumps({"child_paths": {"k.cubin": "/elsewhere/KEY/k.cubin"}}))
    with tarfile.open(tmp_path / gpu_bundle.TRITON_CACHE, "w:gz") as archive:
        archive.add(made, "KEY")
    monkeypatch.setattr(gpu_bundle, "UNPACKED", here)
    assert gpu_bundle.main(["cache", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(here)
    listed = json.loads((here / "KEY" / "__grp__k.json").read_text())["child_paths"]["k.cubin"]
    assert Path(listed).read_bytes() == b"code"


# ------------------------------------------------------------------------------------------------- making one

SCRIPT = GATE.with_name("gpu_bundle.sh")
SUFFIX = ".cpython-312-x86_64-linux-gnu.so"

# Python 3.12 that compiles nothing: modules are the words they were built for.
PYTHON312 = f"""#!/usr/bin/env bash
case "$*" in
  *'-m venv'*) mkdir -p "${{!#}}/bin"; cp "$0" "${{!#}}/bin/python" ;;
  *'pip install'*) ;;
  *'pip download'*) mkdir -p "$8"; echo wheel >"$8/flashlib-py3-none-any.whl" ;;
  *setup.py*) mkdir -p "${{!#}}/ldreg_kernels"
    for name in _cpu _cuda; do
      echo "$LDREG_CUDA_ARCHS watchdog ${{LDREG_WATCHDOG-0}} GLIBC_2.17" >"${{!#}}/ldreg_kernels/$name{SUFFIX}"
    done ;;
  *EXT_SUFFIX*) echo '{SUFFIX}' ;;
  *benchmarks.gpu_bundle*) exec {sys.executable} "$@" ;;
  --version) echo Python 3.12 ;;
esac
"""


def make(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, folder, *options], capture_output=True, text=True, env={**os.environ, **variables})


def test_one_command_makes_it(tmp_path: Path) -> None:
    python = tmp_path / "python312"
    python.write_text(PYTHON312)
    python.chmod(0o755)
    folder = tmp_path / "bundle"
    made = make(folder, "--kernels", "none", "--python", str(python))
    assert made.returncode == 0, made.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["suffix"] == SUFFIX
    assert manifest["architecture"] == "90a"
    assert manifest["glibc"] == "2.17"
    modules = [f"modules/_cpu{SUFFIX}", f"modules/_cuda{SUFFIX}", f"watchdog/_cuda{SUFFIX}"]
    assert sorted(manifest["files"]) == [*modules, "wheels/flashlib-py3-none-any.whl"]
    assert all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    assert (folder / modules[1]).read_text().startswith("90a watchdog 0")
    assert (folder / modules[2]).read_text().startswith("90a watchdog 1")
    assert f"carry {folder}" in made.stdout
    (folder / "manifest.json").unlink()
    refused = make(folder, "--kernels", "none", "--python", str(python))  # whose folder is that?
    assert refused.returncode == 2
    assert "DIR must be empty or a bundle" in refused.stderr


def test_without_python_3_12_it_says_so(tmp_path: Path) -> None:
    made = make(tmp_path / "bundle", PATH="/usr/bin:/bin", PYENV_ROOT=str(tmp_path), PYTHON312="")
    if made.returncode != 2 and shutil.which("python3.12", path="/usr/bin:/bin"):
        pytest.skip("the system's Python is 3.12")
    assert made.returncode == 2
    assert "no Python 3.12 was found; --python or PYTHON312 names one" in made.stderr


def test_more_than_60_megabytes_is_a_failure(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_bundle, "LARGEST", 400)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "_cuda.so").write_bytes(b"x" * 500)
    assert gpu_bundle.main(["manifest", str(tmp_path), sys.executable, "90a"]) == 1
    assert "are more than 400" in capsys.readouterr().err


REAL = ROOT / "build" / "gpu_bundle"


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """What is in build/gpu_bundle, if somebody made it: minutes of compiling, which is not for a test."""
    if not (REAL / "manifest.json").exists():
        pytest.skip(f"{SCRIPT.name} was not run: there is no {REAL}")
    content: dict[str, Any] = json.loads((REAL / "manifest.json").read_text())
    if content["sources"] != gpu_bundle.sources():
        pytest.skip(f"{REAL} was made from other sources: run {SCRIPT.name} again")
    return content


def test_the_real_one_has_every_module_at_its_size(real: dict[str, Any]) -> None:
    modules = [f"modules/_cpu{SUFFIX}", f"modules/_cuda{SUFFIX}", f"watchdog/_cuda{SUFFIX}"]
    assert [name for name in real["files"] if name.endswith(".so")] == modules
    assert all((REAL / name).stat().st_size == size for name, size in real["files"].items())
    assert sum(real["files"].values()) < gpu_bundle.LARGEST
    for name in modules[1:]:
        content = (REAL / name).read_bytes()
        assert b"PyInit__cuda" in content
        assert b"sm_90a" in content


def test_the_real_modules_load_in_their_python(real: dict[str, Any]) -> None:
    python = (REAL.with_name("gpu_bundle.work") / "venv" / "bin" / "python").absolute()
    if not python.exists():
        pytest.skip(f"no {python}")
    load = """
import importlib.util, sys
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location(path.rsplit("/", 1)[1].split(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
print("loaded")
"""
    modules = [str(REAL / name) for name in real["files"] if name.endswith(".so")]
    for some in (modules[:2], modules[2:]):  # both flavours have one name, so not in one process
        ran = subprocess.run([python, "-c", load, *some], capture_output=True, text=True)
        assert ran.stdout == "loaded\n", ran.stderr
