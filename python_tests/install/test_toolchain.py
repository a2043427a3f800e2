"""What the build reads from the environment and finds on the machine: csrc/toolchain.py. Nothing is built.

Skipped, with the reason, where the tests run without the source tree.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toolchain() -> ModuleType:
    path = ROOT / "csrc" / "toolchain.py"
    if not path.exists():
        pytest.skip(f"no source tree: {path} does not exist")
    spec = importlib.util.spec_from_file_location("toolchain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_nvcc(folder: Path, codes: str = "sm_80 sm_90 sm_100") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho {codes} | tr ' ' '\\n'\n")
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("value", "mode"),
    [(None, "auto"), ("", "auto"), ("auto", "auto"), ("AUTO", "auto"), ("0", "0"), (" 1 ", "1")],
)
def test_cuda_mode(toolchain: ModuleType, value: str | None, mode: str) -> None:
    assert toolchain.cuda_mode({} if value is None else {"LDREG_BUILD_CUDA": value}) == mode


@pytest.mark.parametrize("value", ["yes", "2", "true"])
def test_cuda_mode_refuses_anything_else_by_name(toolchain: ModuleType, value: str) -> None:
    with pytest.raises(SystemExit, match=f"LDREG_BUILD_CUDA must be auto, 0 or 1, got '{value}'"):
        toolchain.cuda_mode({"LDREG_BUILD_CUDA": value})


@pytest.mark.parametrize(
    ("value", "archs"),
    [
        (None, ["80", "90a", "100a"]),
        ("", ["80", "90a", "100a"]),
        ("90a", ["90a"]),
        ("100a;80;90;90a;80;", ["80", "90", "90a", "100a"]),  # by number, not by letter: 100 comes after 90
    ],
)
def test_cuda_archs(toolchain: ModuleType, value: str | None, archs: list[str]) -> None:
    assert toolchain.cuda_archs({} if value is None else {"LDREG_CUDA_ARCHS": value}) == archs


@pytest.mark.parametrize("value", ["9.0a", "80,90", "sm_90", "90b", "all", ";", "080"])
def test_cuda_archs_refuses_other_spellings_by_name(toolchain: ModuleType, value: str) -> None:
    with pytest.raises(SystemExit, match="LDREG_CUDA_ARCHS must be"):
        toolchain.cuda_archs({"LDREG_CUDA_ARCHS": value})


def test_ptx_is_of_the_newest_plain_architecture(toolchain: ModuleType) -> None:
    assert toolchain.arch_names(["80", "90a"]) == "sm_80;sm_90a;compute_90"
    assert toolchain.gencode(["80", "90a"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_device_code_knows_whether_it_holds_the_stage_for_hopper(toolchain: ModuleType) -> None:
    assert "-DLDREG_HOPPER_BUILT=1" in toolchain.device_flags(["80", "90a"], {})
    assert "-DLDREG_HOPPER_BUILT=0" in toolchain.device_flags(["80", "90"], {})


def test_watchdog(toolchain: ModuleType) -> None:
    for value, watches in (("", False), ("0", False), ("1", True)):
        assert ("-DLDREG_WATCHDOG" in toolchain.device_flags(["90a"], {"LDREG_WATCHDOG": value})) == watches
    with pytest.raises(SystemExit, match="LDREG_WATCHDOG must be 0 or 1, got 'yes'"):
        toolchain.watchdog({"LDREG_WATCHDOG": "yes"})


def test_cuda_home_comes_before_path(toolchain: ModuleType, tmp_path: Path) -> None:
    at_home, on_path = fake_nvcc(tmp_path / "cuda" / "bin"), fake_nvcc(tmp_path / "elsewhere")
    env = {"PATH": str(on_path.parent), "CUDA_HOME": str(tmp_path / "cuda")}
    assert toolchain.choose_cuda(env) == str(at_home)
    del env["CUDA_HOME"]
    assert toolchain.choose_cuda(env) == str(on_path)
    assert toolchain.choose_cuda({**env, "LDREG_BUILD_CUDA": "0"}) is None


def test_without_nvcc_auto_builds_without_and_1_says_where_it_looked(
    toolchain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain.os, "access", lambda path, mode: False)  # this machine may well have an nvcc
    env = {"PATH": str(tmp_path / "a"), "CUDA_HOME": str(tmp_path / "b")}
    assert toolchain.choose_cuda(env) is None
    with pytest.raises(SystemExit) as caught:
        toolchain.choose_cuda({**env, "LDREG_BUILD_CUDA": "1"})
    for part in (
        "LDREG_BUILD_CUDA=1",
        str(tmp_path / "a"),
        str(tmp_path / "b" / "bin"),
        "/usr/local/cuda/bin",
    ):
        assert part in str(caught.value)


def test_an_old_nvcc_loses_defaults_aloud_but_never_a_named_architecture(
    toolchain: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nvcc = str(fake_nvcc(tmp_path, "sm_80 sm_90"))
    assert toolchain.supported_archs(nvcc, {}) == ["80", "90a"]
    assert "too old for ['100a']" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"LDREG_CUDA_ARCHS: .* cannot compile for \['100a'\]; it knows 80, 90"):
        toolchain.supported_archs(nvcc, {"LDREG_CUDA_ARCHS": "90a;100a"})


def test_an_nvcc_that_does_not_run_is_reported(toolchain: ModuleType, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho no such library >&2\nexit 1\n")
    nvcc.chmod(0o755)
    with pytest.raises(SystemExit, match="does not run: no such library"):
        toolchain.supported_archs(str(nvcc), {})


def test_instruction_sets_follow_the_file_name(toolchain: ModuleType) -> None:
    assert toolchain.isa_flags("csrc/cpu/knn_cpu.cpp") == []
    assert "-mavx2" in toolchain.isa_flags("csrc/cpu/dot_avx2.cpp")
    assert "-mavx512bf16" not in toolchain.isa_flags("csrc/cpu/dot_avx512.cpp")
    assert {"-mavx512bf16", "-mavx512f"} <= set(toolchain.isa_flags("csrc/cpu/dot_avx512bf16.cpp"))
    assert toolchain.isa_flags("csrc/cpu/dot_neon.cpp")[0] == "-ffp-contract=fast"
    assert "-march=armv8.2-a+bf16" in toolchain.isa_flags("csrc/cpu/dot_neonbf16.cpp")
    for suffix in ("avx10", "neonfp16"):
        with pytest.raises(SystemExit, match=rf"dot_{suffix}\.cpp: the suffix _{suffix} is none of _avx2, .*_neonbf16"):
            toolchain.isa_flags(f"csrc/cpu/dot_{suffix}.cpp")


def test_files_for_other_processors_are_left_out(toolchain: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    for name in ("b.cpp", "a_avx2.cpp", "a_neon.cpp", "a.h"):
        (tmp_path / "csrc" / "cpu" / name).touch()
    bindings, x86, arm, anywhere = (
        f"csrc/{name}.cpp" for name in ("bindings_cpu", "cpu/a_avx2", "cpu/a_neon", "cpu/b")
    )
    assert toolchain.cpu_sources(tmp_path, "x86") == [bindings, x86, anywhere]
    assert toolchain.cpu_sources(tmp_path, "arm") == [bindings, arm, anywhere]
    assert toolchain.cpu_sources(tmp_path, "") == [bindings, anywhere]


def test_max_jobs(toolchain: ModuleType) -> None:
    assert 1 <= toolchain.max_jobs({}) <= os.cpu_count()
    assert toolchain.max_jobs({"MAX_JOBS": "3"}) == 3
    with pytest.raises(SystemExit, match="MAX_JOBS must be a positive integer, got '0'"):
        toolchain.max_jobs({"MAX_JOBS": "0"})


def program(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("cxx", ["no-such-compiler", "/no/such/g++ -m64", "nice no-such-g++", "no-such-launcher c++"])
def test_a_missing_compiler_is_named(toolchain: ModuleType, cxx: str) -> None:
    name = next(word for word in cxx.split() if "no" in word)
    with pytest.raises(SystemExit, match=re.escape(f"CXX={cxx!r}: there is no program {name!r}")):
        toolchain.find_cxx({"CXX": cxx})


@pytest.mark.parametrize("name", ["CXX", "CXXFLAGS", "LDFLAGS"])
def test_an_open_quote_is_named(toolchain: ModuleType, name: str) -> None:
    with pytest.raises(SystemExit, match=f"{name}=.*cannot be split into words: No closing quotation"):
        toolchain.words({name: "'c++ -O1"}, name)


def test_without_any_compiler_it_says_how_to_go_on(toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain, "find_nvcc", lambda env: (None, []))
    with pytest.raises(SystemExit) as caught:
        toolchain.find_cxx({})
    for part in ("no C++ compiler was found (tried", "apt install g++", "LDREG_BUILD_CPU=0 installs", '"reference"'):
        assert part in str(caught.value)
    monkeypatch.setattr(toolchain, "find_nvcc", lambda env: ("/usr/bin/nvcc", []))
    with pytest.raises(SystemExit, match="LDREG_BUILD_CPU=0 LDREG_BUILD_CUDA=0 installs"):
        toolchain.find_cxx({})


def test_cpu_mode_is_0_or_1_and_nothing_guessed(toolchain: ModuleType) -> None:
    assert [toolchain.cpu_mode({"LDREG_BUILD_CPU": value}) for value in ("", "1", " 0 ")] == ["1", "1", "0"]
    with pytest.raises(SystemExit, match="LDREG_BUILD_CPU must be 0 or 1, got 'auto'"):
        toolchain.cpu_mode({"LDREG_BUILD_CPU": "auto"})


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("g++", ([], "g++", [])),
        ("g++ -m64 -pthread", ([], "g++", ["-m64", "-pthread"])),
        ("ccache g++", (["ccache"], "g++", [])),
        ("ccache distcc x86_64-linux-gnu-g++-12 -m64", (["ccache", "distcc"], "x86_64-linux-gnu-g++-12", ["-m64"])),
        ("nice -n 10 clang++-14 -m64", (["nice", "-n", "10"], "clang++-14", ["-m64"])),
        ("env CCACHE_DIR=/x ccache /usr/bin/c++", (["env", "CCACHE_DIR=/x", "ccache"], "/usr/bin/c++", [])),
        ("g++ -DNAME=/usr/bin/g++", ([], "g++", ["-DNAME=/usr/bin/g++"])),
        ("wrapper own-compiler -m64", (["wrapper"], "own-compiler", ["-m64"])),
    ],
)
def test_launcher_compiler_and_flags_are_told_apart(
    toolchain: ModuleType, command: str, parts: tuple[list[str], str, list[str]]
) -> None:
    assert toolchain.split_cxx(command.split()) == parts


def test_what_stands_in_front_of_the_compiler_is_kept_for_it(toolchain: ModuleType, tmp_path: Path) -> None:
    launcher = program(tmp_path / "ccache", f'echo "$1" >> {tmp_path}/log; exec "$@"')
    assert toolchain.find_cxx({"CXX": f"{launcher} c++ -O1"}) == [str(launcher), "c++", "-O1"]
    assert (tmp_path / "log").read_text() == "c++\n"


@pytest.mark.parametrize("quoted", [True, False])
def test_a_path_with_spaces(toolchain: ModuleType, tmp_path: Path, quoted: bool) -> None:
    compiler = str(program(tmp_path / "my tools" / "g++", 'exec c++ "$@"'))
    assert toolchain.find_cxx({"CXX": f"'{compiler}'" if quoted else compiler}) == [compiler]


CXX_KINDS = (
    "g++",
    "ccache g++",
    "g++ -m64",
    "nice -n 1 g++ -m64",
    "'{folder}/my tools/g++' -m64",
    "wrapper g++ '-DA=1,2'",
)


@pytest.mark.parametrize("cxx", CXX_KINDS)
def test_nvcc_gets_the_compiler_without_its_launcher(
    toolchain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cxx: str
) -> None:
    """nvcc itself compiles and links with it, where there is one."""
    for name in ("ccache", "wrapper"):
        program(tmp_path / name, 'exec "$@"')
    program(tmp_path / "my tools" / "g++", 'exec /usr/bin/env c++ "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(toolchain, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    env = {**os.environ, "CXX": cxx.format(folder=tmp_path)}
    command = toolchain.find_cxx(env)
    options = toolchain.nvcc_host(command, env, Path())
    assert options[0] == "-ccbin"
    assert options[1] == ("host-c++" if "my tools" in cxx else "g++")
    flags = toolchain.split_cxx(command)[2]
    assert options[2:] == [f"-Xcompiler={flag}".replace(",", "\\,") for flag in flags]
    assert toolchain.nvcc_host(command, {**env, "NVCC_CCBIN": "clang++"}, Path()) == []
    nvcc, _ = toolchain.find_nvcc(os.environ)
    if nvcc is None:
        return
    (tmp_path / "empty.cpp").touch()  # no device code, which would take seconds
    command = [nvcc, *options, "-shared", "-Xcompiler=-fPIC", "empty.cpp", "-o", "empty.so"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr


def test_nvcc_chooses_for_itself_where_nothing_is_asked(toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert toolchain.nvcc_host(["g++", "-pthread"], {}, Path()) == []
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None if name == "g++" else f"/usr/bin/{name}")
    assert toolchain.nvcc_host(["clang++"], {}, Path()) == ["-ccbin", "clang++"]


def test_a_compiler_without_the_flags_is_shown_its_own_words(toolchain: ModuleType, tmp_path: Path) -> None:
    old = tmp_path / "old-c++"
    old.write_text("#!/bin/sh\necho unrecognised option -mavx512bf16 >&2\nexit 1\n")
    old.chmod(0o755)
    with pytest.raises(SystemExit, match=r"(?s)old-c\+\+ cannot compile this.*unrecognised option"):
        toolchain.find_cxx({"CXX": str(old)})


def test_a_bad_setting_stops_setup_py_with_one_line(toolchain: ModuleType) -> None:
    pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    command = [sys.executable, str(ROOT / "setup.py"), "--version"]
    env = {**os.environ, "LDREG_BUILD_CUDA": "maybe"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 1
    assert "LDREG_BUILD_CUDA must be auto, 0 or 1" in result.stderr
    assert "Traceback" not in result.stderr
