"""Builds the two compiled modules of ldreg_kernels. All metadata lives in pyproject.toml.

    ldreg_kernels._cpu    csrc/bindings_cpu.cpp + csrc/cpu/*.cpp      built, or the installation fails and says why
    ldreg_kernels._cuda   csrc/bindings_cuda.cpp + csrc/cuda/*.cu     built when nvcc is found

No torch here: the kernels take raw pointers, so one build serves every torch version and `pip install .`
works in isolation. The compilers are driven through a build.ninja written to build/, which makes rebuilds
incremental and parallel, in isolated and editable installs alike. Read from the environment:

    LDREG_BUILD_CPU    1 (default) | 0: without the CPU kernels, on a machine without a compiler; everything then runs
                       on the backend "reference", and ldreg_kernels.backends()["cpu"] says why
    LDREG_BUILD_CUDA   auto (default: when nvcc is found) | 0 (never) | 1 (fail when it cannot be built)
    LDREG_CUDA_ARCHS   e.g. "80;90a" (default "80;90a;100a"); PTX of the newest is always added
    LDREG_WATCHDOG     1: CUDA waits that do not end say what they wait for, and end the launch (slower)
    MAX_JOBS           compilers run at once (default: one per core, and one per 2 GB of memory)
    CXX                a compiler, with a launcher and flags if need be: "ccache g++ -m64"; quotes if its path has
                       spaces. nvcc gets the compiler and the flags, not the launcher. NVCC_CCBIN overrides that
    CXXFLAGS, LDFLAGS, CUDA_HOME   as everywhere

What it does not do: Windows, cross-compilation, universal macOS binaries.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# By its file: any folder on PYTHONPATH may hold a toolchain.py.
_spec = importlib.util.spec_from_file_location("toolchain", ROOT / "csrc/toolchain.py")
toolchain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toolchain)

CPU, CUDA = "ldreg_kernels._cpu", "ldreg_kernels._cuda"


class NinjaFile:
    """The few lines of build.ninja that a compile and a link need."""

    RULES = (
        "rule compile\n  command = $cmd -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
        "  description = compile $in\n"
        "rule link\n  command = $cmd -o $out $in $libs\n  description = link $out"
    )

    def __init__(self, folder):
        self.folder = folder
        self.lines = [f"builddir = {self.path(folder)}", self.RULES]

    @staticmethod
    def path(value):
        return re.sub(r"([$ :])", r"$\1", str(value))

    @staticmethod
    def shell(arguments):
        return shlex.join(arguments).replace("$", "$$")

    def compile(self, module, source, command):
        target = self.folder / module / (Path(source).name + ".o")
        self.lines += [
            f"build {self.path(target)}: compile {self.path(source)}",
            f"  cmd = {self.shell(command)}",
        ]
        return target

    def link(self, target, objects, command, libs=()):
        self.lines += [
            f"build {self.path(target)}: link {' '.join(map(self.path, objects))}",
            f"  cmd = {self.shell(command)}",
            f"  libs = {self.shell(libs)}",
        ]

    def run(self, jobs):
        script = self.folder / "build.ninja"
        (ROOT / script).write_bytes(os.fsencode("\n".join(self.lines) + "\n"))  # paths may be no text in this locale
        environment = dict(os.environ)
        if not toolchain.plain(tempfile.gettempdir()):  # nvcc puts it between double quotes
            (ROOT / self.folder / "tmp").mkdir(exist_ok=True)
            environment["TMPDIR"] = str(self.folder / "tmp")
        # From ROOT and with relative paths, so that a moved or copied checkout keeps its objects.
        command = [find_ninja(), "-f", str(script), "-j", str(jobs)]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            raise toolchain.BuildError("compilation failed, see above")


def find_ninja():
    """The ninja of the PyPI package that build-system.requires brings, or the one on PATH."""
    folders = [sysconfig.get_path("scripts")]
    with contextlib.suppress(ImportError, AttributeError):  # no package, or some other ninja.py
        import ninja

        folders.insert(0, ninja.BIN_DIR)
    programs = [os.path.join(folder, "ninja") for folder in folders]
    found = next((path for path in programs if os.access(path, os.X_OK)), None) or shutil.which("ninja")
    if found is None:
        raise toolchain.BuildError("ninja was not found; pip install ninja")
    return found


class BuildExtensions(build_ext):
    """build_ext that hands every source to ninja and copies the modules to where setuptools wants them."""

    def run(self):
        super().run()
        for name in {CPU, CUDA} - {ext.name for ext in self.extensions or []}:
            if self.inplace:  # a module left from an earlier build with other settings must not be loaded
                stale = ROOT.joinpath(*name.split(".")[:-1], Path(self.get_ext_filename(name)).name)
                stale.unlink(missing_ok=True)

    def build_extensions(self):
        if not self.extensions:
            return
        folder = Path("build") / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        cxx = toolchain.find_cxx(os.environ)
        with one_build_at_a_time(ROOT / folder):
            ninja = NinjaFile(folder)
            built = {ext.name: self.declare(ninja, cxx, ext) for ext in self.extensions}
            ninja.run(toolchain.max_jobs(os.environ))
            for name, module in built.items():
                target = Path(self.get_ext_fullpath(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(ROOT / module), str(target))

    def declare(self, ninja, cxx, ext):
        """Writes down how one extension is compiled and linked; returns the path ninja will leave it at."""
        import pybind11

        # Only bindings see pybind11 and Python: those folders move with every isolated build, and would
        # otherwise force the kernels to be compiled again.
        python = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
        host = [*cxx, *toolchain.CXX_FLAGS, "-Icsrc", f"-DLDREG_X86={int(toolchain.IS_X86)}"]
        user = toolchain.words(os.environ, "CXXFLAGS")
        nvcc, define = [], []
        if ext.name == CUDA:
            path = toolchain.choose_cuda(os.environ)
            archs = toolchain.supported_archs(path, os.environ)
            nvcc = [path, *toolchain.nvcc_host(cxx, os.environ, ninja.folder)]
            device = [*nvcc, *toolchain.device_flags(archs, os.environ)]
            define = [f'-DLDREG_CUDA_ARCHS="{toolchain.arch_names(archs)}"']

        objects = []
        for source in ext.sources:
            if source.endswith(".cu"):
                command = device
            elif Path(source).name.startswith("bindings_"):
                command = [*host, *python, *define, *user]
            else:
                command = [*host, *toolchain.isa_flags(source), *user]
            objects.append(ninja.compile(ext.name.rpartition(".")[2], source, command))

        target = ninja.folder / Path(self.get_ext_filename(ext.name)).name
        if nvcc:  # nvcc links its static runtime and whatever that needs
            ninja.link(target, objects, [*nvcc, "-shared", "-cudart=static"])
        else:
            shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
            libs = toolchain.words(os.environ, "LDFLAGS")
            ninja.link(target, objects, [*cxx, *shared, "-pthread"], libs)
        return target


class CleanBuild(build):
    """build that starts from an empty build/lib, so that no deleted module survives into a wheel."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


@contextlib.contextmanager
def one_build_at_a_time(folder):
    """Two builds of one checkout would write the same objects; the second waits."""
    import fcntl

    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class CompiledDistribution(Distribution):
    """One that runs build_ext even if there is nothing to build, for the sake of modules left from earlier builds."""

    def has_ext_modules(self):
        return True


def extensions(env):
    found = []
    if toolchain.cpu_mode(env) == "1":
        found.append(Extension(CPU, toolchain.cpu_sources()))
    else:
        print("ldreg_kernels: building without the CPU kernels (LDREG_BUILD_CPU=0)")
    if toolchain.choose_cuda(env):
        found.append(Extension(CUDA, toolchain.cuda_sources()))
    else:
        print("ldreg_kernels: building without CUDA (LDREG_BUILD_CUDA=0, or no nvcc was found)")
    return found


if __name__ == "__main__":
    if sys.platform == "win32":
        raise toolchain.BuildError("Windows is not supported; build under WSL")
    setup(
        ext_modules=extensions(os.environ),
        distclass=CompiledDistribution,
        cmdclass={"build": CleanBuild, "build_ext": BuildExtensions},
    )
