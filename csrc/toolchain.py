"""What the build reads from the environment, which compilers it finds, and the flags each source gets.

Used by setup.py alone. Nothing here builds anything or imports setuptools, so the tests can call it directly.
"""

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_ARCHS = "80;90a;100a"
ARCHITECTURES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
ARCHITECTURE = ARCHITECTURES.get(platform.machine().lower(), "") if sys.maxsize > 2**32 else ""
IS_X86 = ARCHITECTURE == "x86"

# -ffp-contract=off in code for any machine; the _avx* and _neon* sources turn it on, because their inner loops are
# written for a fused multiply-add. Sets with and without one may differ in the last bit, never in an exact (integer)
# result.
CXX_FLAGS = [
    *("-O3", "-DNDEBUG", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wno-psabi"),
]
# Vectors are never passed between functions compiled for different sets, and GCC 12's own headers warn about undefined
# lanes.
QUIET = ["-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-Wno-unknown-warning-option"]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-ffp-contract=fast", *QUIET]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]
AVX512BF16 = ["-mavx512bf16", *AVX512]
NEON = ["-ffp-contract=fast", "-DLDREG_FUSED=1", *QUIET]  # every 64-bit ARM has the instructions
NEONBF16 = ["-march=armv8.2-a+bf16", *NEON]
ISA_FLAGS = {  # by architecture and file-name suffix
    "x86": {"_avx2": AVX2, "_avx512": AVX512, "_avx512bf16": AVX512BF16},
    "arm": {"_neon": NEON, "_neonbf16": NEONBF16},
}
NVCC_FLAGS = [
    *("-O3", "-DNDEBUG", "-std=c++17", "-cudart=static", "-lineinfo", "--expt-relaxed-constexpr"),
    "-Xptxas=--warn-on-spills",  # no error, since other GPUs may be asked for: for ours, a test looks
    # The kernel for Hopper fills its registers to the last. At the default, 5, ptxas loads far ahead, and then spills.
    "-Xptxas=--register-usage-level=3",
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"),
]


# The last word of CXX that is called like one is the compiler: "ccache g++ -m64", "nice -n 10 x86_64-linux-gnu-g++-12".
COMPILER_NAME = re.compile(r"(.*-)?(g\+\+|c\+\+|clang\+\+|gcc|cc|clang|icpx|nvc\+\+)(-?[\d.]+)?(-\w+)?")


class BuildError(SystemExit):
    """Stops the build with one readable message instead of a traceback."""

    def __init__(self, message):
        super().__init__(f"\nldreg_kernels: {message}\n")


# ---------------------------------------------------------------- settings read from the environment


def cuda_mode(env):
    """LDREG_BUILD_CUDA as "auto", "0" or "1"; anything else is refused rather than guessed at."""
    mode = env.get("LDREG_BUILD_CUDA", "").strip().lower() or "auto"
    if mode not in ("auto", "0", "1"):
        raise BuildError(f"LDREG_BUILD_CUDA must be auto, 0 or 1, got {env['LDREG_BUILD_CUDA']!r}")
    return mode


def cpu_mode(env):
    """LDREG_BUILD_CPU as "0" or "1". There is no "auto": a package without its kernels has to be asked for."""
    mode = env.get("LDREG_BUILD_CPU", "").strip() or "1"
    if mode not in ("0", "1"):
        raise BuildError(f"LDREG_BUILD_CPU must be 0 or 1, got {env['LDREG_BUILD_CPU']!r}")
    return mode


def words(env, name):
    """A variable such as CXXFLAGS as arguments, by the rules of a shell."""
    try:
        return shlex.split(env.get(name, ""))
    except ValueError as error:  # No closing quotation
        raise BuildError(f"{name}={env[name]!r} cannot be split into words: {error}") from None


def cuda_archs(env):
    """LDREG_CUDA_ARCHS as a list such as ["80", "90a", "100a"], in ascending order without repeats."""
    text = env.get("LDREG_CUDA_ARCHS", "").strip() or DEFAULT_ARCHS
    archs = [item.strip() for item in text.split(";") if item.strip()]
    bad = [item for item in archs if not re.fullmatch(r"[1-9]\d{1,2}[af]?", item)]
    if bad or not archs:
        raise BuildError(
            "LDREG_CUDA_ARCHS must be compute capabilities without a dot, separated by semicolons, "
            f'such as "80;90a" (9.0a is written 90a); got {text!r}'
        )
    return sorted(dict.fromkeys(archs), key=lambda arch: (int(arch.rstrip("af")), arch))


def max_jobs(env):
    """Compilers run at once: a heavy .cu or pybind11 file takes up to 2 GB, so memory counts like cores."""
    if text := env.get("MAX_JOBS", "").strip():
        if not text.isdecimal() or int(text) < 1:
            raise BuildError(f"MAX_JOBS must be a positive integer, got {text!r}")
        return int(text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" when there is none
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(1, min(cores, memory // 2**31))


# ---------------------------------------------------------------- finding the compilers


def find_nvcc(env):
    """(path or None, places looked at): first an explicit CUDA_HOME, then PATH, then the usual folder."""
    homes = [Path(env[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if env.get(name)]
    on_path = [Path(folder) for folder in env.get("PATH", "").split(os.pathsep) if folder]
    places = [*homes, *on_path, Path("/usr/local/cuda/bin")]
    for folder in places:
        if os.access(folder / "nvcc", os.X_OK) and not (folder / "nvcc").is_dir():
            return str(folder / "nvcc"), places
    return None, places


def choose_cuda(env):
    """Path of the nvcc to build with, or None for a CPU-only build."""
    mode = cuda_mode(env)
    if mode == "0":
        return None
    nvcc, places = find_nvcc(env)
    if nvcc is None and mode == "1":
        looked = "\n  ".join(str(place) for place in dict.fromkeys(places))
        raise BuildError(f"LDREG_BUILD_CUDA=1, but no nvcc was found. Looked in\n  {looked}\nSet CUDA_HOME.")
    return nvcc


def supported_archs(nvcc, env):
    """cuda_archs, less what nvcc is too old for: a default is dropped aloud, a named one is an error."""
    try:
        listing = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or error
        raise BuildError(f"{nvcc} does not run: {detail}\nLDREG_BUILD_CUDA=0 builds without CUDA.") from None
    known = set(re.findall(r"sm_(\d+)", listing))
    archs = cuda_archs(env)
    unknown = [arch for arch in archs if arch.rstrip("af") not in known]
    if unknown and (env.get("LDREG_CUDA_ARCHS", "").strip() or len(unknown) == len(archs)):
        known_text = ", ".join(sorted(known, key=int))
        raise BuildError(f"LDREG_CUDA_ARCHS: {nvcc} cannot compile for {unknown}; it knows {known_text}")
    if unknown:
        print(f"ldreg_kernels: {nvcc} is too old for {unknown}, which are left out")
    return [arch for arch in archs if arch not in unknown]


def find_cxx(env):
    """The C++ compiler as an argument list, launcher and flags included, tried on every flag we are going to use."""
    if env.get("CXX", "").strip():
        found = named_cxx(env)
    else:
        usual = [sysconfig.get_config_var("CXX") or "c++", "c++", "g++", "clang++"]
        candidates = [shlex.split(name) for name in usual]
        found = next((command for command in candidates if shutil.which(command[0])), None)
        if found is None:
            raise BuildError(no_compiler(env, ", ".join(dict.fromkeys(command[0] for command in candidates))))
    flags = [*CXX_FLAGS, *{"x86": AVX512BF16, "arm": NEONBF16}.get(ARCHITECTURE, [])]
    trial = [*found, *flags, "-x", "c++", "-fsyntax-only", "-"]
    try:
        result = subprocess.run(trial, input="#include <vector>\n", capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{shlex.join(found)} does not run: {error}") from None
    if result.returncode:
        command = shlex.join(found)
        raise BuildError(f"{command} cannot compile this (GCC 12 or Clang 14 is needed):\n{result.stderr}")
    return found


def named_cxx(env):
    """CXX as words: a launcher, a compiler and flags, or one path that has spaces in it."""
    found = [env["CXX"]] if shutil.which(env["CXX"]) else words(env, "CXX")
    launcher, compiler, _ = split_cxx(found)
    absent = next((word for word in (*launcher[:1], compiler) if shutil.which(word) is None), None)
    if absent is not None:
        raise BuildError(
            f"CXX={env['CXX']!r}: there is no program {absent!r}. A path with spaces needs quotes inside CXX."
        )
    return found


def split_cxx(command):
    """(launcher, compiler, flags) of a command such as ["ccache", "g++", "-m64"]."""
    like_one = [
        i
        for i, word in enumerate(command)
        if not word.startswith("-") and COMPILER_NAME.fullmatch(os.path.basename(word))
    ]
    named = [i for i in like_one if shutil.which(command[i])] or like_one
    leading = next((i for i, word in enumerate(command) if word.startswith("-")), len(command))
    at = named[-1] if named else max(leading - 1, 0)  # of a compiler by another name: the last word before the flags
    return command[:at], command[at], command[at + 1 :]


def no_compiler(env, tried):
    """What to say where there is none: how to get one, and how to go on without."""
    skip = "LDREG_BUILD_CPU=0" + (" LDREG_BUILD_CUDA=0" if find_nvcc(env)[0] else "")
    return (
        f"no C++ compiler was found (tried {tried}).\n"
        "Install GCC 12 or Clang 14 at least (Debian: apt install g++; Fedora: dnf install gcc-c++; macOS: "
        "xcode-select --install), or name a compiler in CXX.\n"
        f"To go on without one: {skip} installs no compiled kernels. Everything then runs on the backend "
        '"reference": the same answers, many times slower.'
    )


def nvcc_host(cxx, env, folder):
    """What tells nvcc the host compiler: the compiler itself, since it takes no launcher, and flags by -Xcompiler.

    nvcc passes the name to a shell without quotes, so that a compiler whose path has spaces gets a link in `folder`.
    """
    _, compiler, flags = split_cxx(cxx)
    options = ["-Xcompiler=" + flag.replace(",", "\\,") for flag in flags]  # a bare comma would split it
    if env.get("NVCC_CCBIN"):  # nvcc reads it
        return []
    if not env.get("CXX", "").strip() and shutil.which("g++"):  # nvcc's own choice
        return []
    if plain(compiler):
        return ["-ccbin", compiler, *options]
    link = ROOT / folder / "host-c++"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.abspath(shutil.which(compiler)))
    return ["-ccbin", str(folder / link.name), *options]


def plain(path):
    """Whether a path means itself to any shell."""
    return shlex.quote(str(path)) == str(path)


# ---------------------------------------------------------------- what is compiled, and how


def isa_suffix(source):
    """What the end of a file name says about the instruction set: "_avx2" for topk_avx2.cpp, "" for topk.cpp."""
    suffix = re.search(r"_(avx|neon)\w*$", Path(source).stem)
    known = [name for flags in ISA_FLAGS.values() for name in flags]
    if suffix and suffix.group() not in known:
        raise BuildError(f"{source}: the suffix {suffix.group()} is none of {', '.join(known)}")
    return suffix.group() if suffix else ""


def isa_flags(source):
    """Extra flags a source needs, from its file-name suffix."""
    suffix = isa_suffix(source)
    return next((flags[suffix] for flags in ISA_FLAGS.values() if suffix in flags), [])


def cpu_sources(folder=ROOT, architecture=ARCHITECTURE):
    """csrc/bindings_cpu.cpp and csrc/cpu/*.cpp, without the files for the instruction sets of other processors."""
    kernels = sorted(path.relative_to(folder).as_posix() for path in (folder / "csrc/cpu").glob("*.cpp"))
    ours = ["", *ISA_FLAGS.get(architecture, {})]
    return ["csrc/bindings_cpu.cpp", *(source for source in kernels if isa_suffix(source) in ours)]


def cuda_sources(folder=ROOT):
    kernels = sorted(path.relative_to(folder).as_posix() for path in (folder / "csrc/cuda").glob("*.cu"))
    return ["csrc/bindings_cuda.cpp", *kernels]


def arch_names(archs):
    """What ends up in the module, named as torch.cuda.get_arch_list() names it: "sm_80;sm_90a;compute_90".

    PTX, which a later GPU compiles for itself, is of the plain architecture: that of an "a" target runs on no
    other GPU, now or later.
    """
    return ";".join([*(f"sm_{arch}" for arch in archs), f"compute_{archs[-1].rstrip('af')}"])


def gencode(archs):
    """The nvcc options for arch_names(archs)."""
    names = arch_names(archs).split(";")
    return [f"-gencode=arch={name.replace('sm_', 'compute_')},code={name}" for name in names]


def watchdog(env):
    """Whether LDREG_WATCHDOG=1: waits of the CUDA kernels that do not end then say so (csrc/cuda/watchdog.h)."""
    value = env.get("LDREG_WATCHDOG", "").strip() or "0"
    if value not in ("0", "1"):
        raise BuildError(f"LDREG_WATCHDOG must be 0 or 1, got {env['LDREG_WATCHDOG']!r}")
    return value == "1"


def device_flags(archs, env):
    """How every .cu file is compiled. Only the build for 9.0a holds what Hopper's tile stage is made of."""
    defines = [f"-DLDREG_HOPPER_BUILT={int('90a' in archs)}", *(["-DLDREG_WATCHDOG"] if watchdog(env) else [])]
    return [*NVCC_FLAGS, *gencode(archs), *defines, "-Icsrc"]
