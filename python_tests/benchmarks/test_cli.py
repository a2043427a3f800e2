"""`ldreg bench`: requests that are wrong, the lists, another commit beside this one."""

import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import ldreg_kernels.cli
from benchmarks import cli, compare
from benchmarks.cases import Case
from benchmarks.contenders import contenders
from benchmarks.records import RESULTS, ROOT
from benchmarks.session import Options
from benchmarks.worker import NoMeasurementError


def run(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "must be cpu or cuda"),
        (["--suite", "headlines"], "must be one of headline, k, n, memory, grid, train-step"),
        (["--contender", "annoy"], "is none of ldreg cpu"),
        (["--threads", "0"], "--threads"),
        (["--isa", "mmx"], "must be all or one of"),
        (["--report", "--out", "/nowhere/at/all"], "holds no measurements"),
        (["--compare", "no-such-revision"], "git knows no commit"),
        (["--quick", "--out", str(RESULTS)], "is for complete suites"),
        (["left", "over"], "unexpected extra argument"),
    ],
)
def test_a_wrong_request_exits_with_2_and_says_why(arguments, message):
    result = run("--device", "cpu", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", " ").split())


def test_cuda_without_cuda_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run("--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in result.output


def test_an_instruction_set_is_for_a_cpu_and_all_means_those_that_run_here(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "instruction_sets", lambda: ("avx512", "avx2", "portable"))
    given = []

    def measure(chosen, taking_part, options, isas, out, *, quick):
        given.append(isas)
        raise SystemExit(0)

    monkeypatch.setattr(cli, "_measure", measure)
    for arguments in ([], ["--isa", "avx2"], ["--isa", "portable", "--isa", "avx512"], ["--isa", "all"]):
        run("--device", "cpu", *arguments, "--out", str(tmp_path))
    assert given == [("",), ("avx2",), ("avx512", "portable"), ("avx512", "avx2", "portable")]
    refused = run("--device", "cuda", "--isa", "avx2", "--list")
    assert refused.exit_code == 2
    assert "is for --device cpu" in " ".join(refused.output.replace("│", " ").split())


def test_lists_what_would_run():
    result = run("--device", "cpu", "--quick", "--suite", "headline", "--contender", "ldreg", "--list")
    assert result.exit_code == 0
    assert "(4096, 4096, 2048, 64) float32 gradient" in result.output
    assert result.output.rstrip().endswith("contenders: ldreg cpu")


def test_a_whole_name_is_that_contender_alone():
    result = run("--device", "cpu", "--contender", "published", "--contender", "mm", "--list")
    assert result.output.rstrip().endswith("contenders: published, mm + topk + bag fp32, mm + topk + bag bf16")


def test_the_grid_is_run_on_request_only():
    listed = {
        arguments: run("--device", "cpu", *arguments, "--list").output.split()
        for arguments in ((), ("--suite", "grid"))
    }
    assert "grid" not in listed[()]
    assert listed["--suite", "grid"][0] == "grid"
    assert "rivals" in run("--device", "cuda", "--list").output.split()


def test_a_quick_grid_gets_its_minutes(monkeypatch, tmp_path):
    given = []

    def measure(chosen, taking_part, options, isas, out, *, quick):
        given.append(options.seconds)
        raise SystemExit(0)

    monkeypatch.setattr(cli, "_measure", measure)
    for arguments in ([], ["--suite", "grid"], ["--suite", "grid", "--seconds", "7"]):
        run("--device", "cpu", "--quick", *arguments, "--out", str(tmp_path))
    assert given == [cli.QUICK.seconds, cli.QUICK.seconds + cli.GRID_SECONDS, 7]


def test_a_short_run_leaves_rows_and_a_page(tmp_path, monkeypatch):
    tiny = {"headline": (Case(128, 128, 8, 4),)}
    monkeypatch.setattr(cli, "suites", lambda device, quick: tiny)
    wanted = ["--contender", "ldreg cpu", "--contender", "torch.mm"]
    result = run("--device", "cpu", "--threads", "1", "--quick", "--suite", "headline", *wanted, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"measurements.csv", "report.html"}
    assert "(128, 128, 8, 4)" in (tmp_path / "report.html").read_text()


def test_ldreg_bench_is_the_same_command():
    result = CliRunner().invoke(ldreg_kernels.cli.app, ["bench", "--device", "cpu", "--suite", "memory", "--list"])
    assert result.exit_code == 0
    assert "(32768, 32768, 512, 64) float32 gradient" in result.output


def test_ldreg_bench_of_an_installed_package_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(ldreg_kernels.cli, "__file__", str(tmp_path / "ldreg_kernels" / "cli.py"))
    result = CliRunner().invoke(ldreg_kernels.cli.app, ["bench", "--list"])
    assert result.exit_code == 2
    assert "Clone the repository" in " ".join(result.output.split())


def test_ldreg_bench_without_its_extra_names_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(ldreg_kernels.cli.importlib, "import_module", missing)
    result = CliRunner().invoke(ldreg_kernels.cli.app, ["bench", "--list"])
    assert result.exit_code == 2
    assert "No module named 'matplotlib'. Benchmarks need an extra: pip install '.[bench]'" in " ".join(
        result.output.split()
    )


# ---------------------------------------------------------------- --compare


class FakeWorker:
    def __init__(self, times, state=""):
        self.times, self.state = times, state

    def prepare(self, case, limit):
        if self.state:
            raise NoMeasurementError(self.state)

    def milliseconds(self, calls, limit):
        return [self.times.pop(0)]


def test_a_ratio_compares_times_of_one_round():
    options = Options("cpu", 1, rounds=3, patience=1, limit=10)
    this, that = FakeWorker([2.0, 20.0, 200.0]), FakeWorker([1.0, 10.0, 100.0])  # a machine that slows down
    assert compare._ratio(this, that, Case(9, 9, 2, 3), options).startswith("2.000 (2.000 to 2.000), 20.0 against 10.0")
    assert compare._ratio(FakeWorker([], "wrong: no"), that, Case(9, 9, 2, 3), options) == "wrong: no"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository's history")
def test_another_commit_is_built_timed_and_removed(monkeypatch):
    run_really = compare.run_in

    def run_without_compiling(folder, command, **environment):
        if "setup.py" not in command:
            run_really(folder, command, **environment)
            return
        for built in (ROOT / "ldreg_kernels").glob("_cpu*.so"):  # HEAD's own, or nearly
            shutil.copy(built, folder / "ldreg_kernels")

    monkeypatch.setattr(compare, "run_in", run_without_compiling)
    said = []
    compare.compare(
        "HEAD",
        [Case(128, 128, 8, 4)],
        contenders("cpu"),
        Options("cpu", 1, rounds=2, patience=1, limit=10),
        said.append,
    )
    assert "(128, 128, 8, 4) float32 gradient" in said[-1]
    assert " against " in said[-1]
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "ldreg-compare-" not in worktrees


def test_a_build_that_fails_says_what_was_printed(tmp_path):
    with pytest.raises(SystemExit, match="git show no-such-thing failed"):
        compare.run_in(Path(tmp_path), ["git", "show", "no-such-thing"])
    with pytest.raises(typer.BadParameter, match="git knows no commit"), compare.checkout("nope", "cpu", print):
        pass
