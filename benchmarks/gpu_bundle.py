"""The half of gpu_bundle.sh and gpu_gate.sh that reads better in Python: what is in a bundle, and whether it fits here.

    python -m benchmarks.gpu_bundle manifest DIR PYTHON ARCH   write DIR/manifest.json, print sizes; 1 above 60 MB
    python -m benchmarks.gpu_bundle fits DIR ARCH              print which parts fit this machine; why not: stderr
    python -m benchmarks.gpu_bundle install DIR PART           modules or watchdog into ldreg_kernels/, and load them
    python -m benchmarks.gpu_bundle cache DIR                  unpack Triton's cache, print its folder

A bundle holds modules/ and watchdog/ (compiled modules), wheels/, triton.tar.gz (compiled kernels) and manifest.json.
Nothing is believed that can be looked at: sizes, the sources it was built from, and whether a module loads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 60_000_000  # bytes: what a copy of the checkout with 64 MiB in all has room for
MANIFEST = "manifest.json"
TRITON_CACHE = "triton.tar.gz"
UNPACKED = ROOT / "build" / "triton_cache"
PARTS = ("modules", "watchdog", "wheels", "triton")


# ------------------------------------------------------------------------------------------------- making one


def sources() -> str:
    """A hash of everything that is compiled into the modules."""
    found = hashlib.sha256()
    for path in sorted([ROOT / "setup.py", *(ROOT / "csrc").rglob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()


def needed_glibc(modules: list[Path]) -> str:
    """The newest version of glibc's symbols that any of the modules asks for."""
    asked = {int(minor) for path in modules for minor in re.findall(rb"GLIBC_2\.(\d+)", path.read_bytes())}
    return f"2.{max(asked, default=0)}"


def manifest(folder: Path, python: str, architecture: str) -> int:
    """Describe what lies in the folder. `triton.json` is what triton_cache.py says of the cache, and is taken in."""
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, "triton.json")
    }
    about = [python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"]
    triton = folder / "triton.json"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    content: dict[str, Any] = {
        "commit": commit.stdout.strip() or os.environ.get("LDREG_COMMIT", "unknown"),
        "sources": sources(),
        "suffix": subprocess.run(about, capture_output=True, text=True, check=True).stdout.strip(),
        "glibc": needed_glibc([path for part in ("modules", "watchdog") for path in (folder / part).glob("*.so")]),
        "architecture": architecture,
        "triton": json.loads(triton.read_text()) if triton.exists() else None,
        "files": files,
    }
    triton.unlink(missing_ok=True)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    for name, size in files.items():
        print(f"{size / 1e6:8.2f} MB  {name}")
    total = sum(files.values()) + (folder / MANIFEST).stat().st_size
    print(f"{total / 1e6:8.2f} MB  in all, of {LARGEST / 1e6:.0f} MB; carry {folder}")
    if total > LARGEST:
        print(f"gpu_bundle: {total} bytes are more than {LARGEST}", file=sys.stderr)
        return 1
    return 0


# ------------------------------------------------------------------------------------------------- using one


def fits(folder: Path, architecture: str) -> int:
    """Print the parts that can be used here, a line each; for all others, the reason on standard error."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        print(f"bundle: {folder}: {error}", file=sys.stderr)
        return 0
    for part in PARTS:
        reason = next(iter(misfits(folder, content, part, architecture)), None)
        if reason is None:
            print(part)
        elif reason:
            print(f"bundle: {part}: {reason}", file=sys.stderr)
    return 0


def misfits(folder: Path, content: dict[str, Any], part: str, architecture: str) -> Iterator[str]:
    """Why a part is of no use on this machine; an empty reason if the bundle was never to have it."""
    place = TRITON_CACHE if part == "triton" else f"{part}/"
    files = {name: size for name, size in content["files"].items() if name.startswith(place)}
    if not files:
        yield "" if part == "wheels" else "not in the bundle"
    for name, size in files.items():
        there = (folder / name).stat().st_size if (folder / name).exists() else None
        if there != size:
            yield f"{name} is missing" if there is None else f"{name} has {there} bytes, not {size}"
    if part in ("modules", "watchdog"):
        suffix, (_, glibc) = sysconfig.get_config_var("EXT_SUFFIX"), platform.libc_ver()
        if content["suffix"] != suffix:
            yield f"built for {content['suffix']}, this Python wants {suffix}"
        if content["architecture"] != architecture:
            yield f"built for {content['architecture']}, this GPU is {architecture}"
        if glibc and version(content["glibc"]) > version(glibc):
            yield f"needs glibc {content['glibc']}, here is {glibc}"
        if content["sources"] != sources():
            yield "built from other sources than those here"
    if part == "triton":
        there, made = triton_here(), content["triton"]
        if made is None or there is None:
            yield "there is no Triton" if made else "nothing is said of its kernels"
        elif there["version"] != made["version"]:
            yield f"compiled by Triton {made['version']}, here is {there['version']}"
        elif there["key"] != made["key"]:
            yield f"Triton {made['version']} is another build of it here (triton_key differs)"


def version(text: str) -> tuple[int, ...]:
    """2.36 as (2, 36)."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def triton_here() -> dict[str, str] | None:
    """Version and key of the Triton that this interpreter finds: the key goes into every name in its cache."""
    try:
        import triton
        from triton.runtime.cache import triton_key
    except ImportError:
        return None
    return {"version": triton.__version__, "key": hashlib.sha256(triton_key().encode()).hexdigest()}


def install(folder: Path, part: str) -> int:
    """Copy modules into ldreg_kernels/ and load them in a process of its own; the watchdog's take the place of some."""
    for module in [*sorted(folder.glob("modules/*.so")), *sorted(folder.glob("watchdog/*.so")) * (part == "watchdog")]:
        new = ROOT / "ldreg_kernels" / f"{module.name}.new"
        shutil.copyfile(module, new)
        os.replace(new, new.with_suffix(""))  # never into a file that someone has loaded
        print(f"{module.relative_to(folder)} to ldreg_kernels/", flush=True)
    load = "import ldreg_kernels._cpu, ldreg_kernels._cuda; print('loaded', ldreg_kernels._cuda.__file__)"
    return subprocess.run([sys.executable, "-c", load], cwd=ROOT).returncode


def cache(folder: Path) -> int:
    """Unpack beside what may be there; Triton lists a kernel's files by their whole path, so that is written anew."""
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / TRITON_CACHE) as archive:
        archive.extractall(UNPACKED, filter="data")
    for group in UNPACKED.glob("*/__grp__*"):
        content = json.loads(group.read_text())
        content["child_paths"] = {name: str(group.parent / name) for name in content["child_paths"]}
        group.write_text(json.dumps(content))
    print(UNPACKED)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bundle", description="Modules made elsewhere.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, names in (
        ("manifest", ("python", "architecture")),
        ("fits", ("architecture",)),
        ("install", ("part",)),
        ("cache", ()),
    ):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        for argument in names:
            command.add_argument(argument, choices=("modules", "watchdog") if argument == "part" else None)
    options = parser.parse_args(arguments)
    if options.command == "manifest":
        return manifest(options.folder, options.python, options.architecture)
    if options.command == "fits":
        return fits(options.folder, options.architecture)
    return cache(options.folder) if options.command == "cache" else install(options.folder, options.part)


if __name__ == "__main__":
    sys.exit(main())
