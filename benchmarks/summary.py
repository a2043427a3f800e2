"""The half of gpu_gate.sh that reads better in Python: what machine this is, which tests it can import, the page.

    python -m benchmarks.summary machine [--dry-run]         what the page says of it; exit code 2 without a GPU
    python -m benchmarks.summary tests                       pytest options that leave out what lacks a package
    python -m benchmarks.summary page OUT WORK [--dry-run]   OUT/summary.md; exit code 1 if a step failed

WORK is the script's folder: `machine`, `steps` (name, exit code and seconds, by tabs), `not_reached`, NAME.log of every
step. Only `machine` needs torch. Nothing is run here.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "python_tests"
LARGEST_FILE = 16_000_000
STOPPED = (124, 137)  # by `timeout`: interrupted, or killed because it did not listen
NOTHING_COLLECTED = 5  # pytest's exit code

# ------------------------------------------------------------------------------------------------- machine


def machine(dry_run: bool) -> int:
    """Print facts, one "name: value" a line; without a usable GPU the reason, and 2."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: it is there, and a library of its is not
        print(f"gpu_gate: {sys.executable} has no torch ({error}). PYTHON names another one.", file=sys.stderr)
        return 2
    from benchmarks import records

    facts = {"commit": records.commit(), "versions": records.versions()}
    if not dry_run:
        try:
            torch.cuda.init()
        except (AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            print(
                f"gpu_gate: there is no GPU that torch {torch.__version__} of {sys.executable} can use: {reason}\n"
                "gpu_gate: --dry-run goes through the same sections without one.",
                file=sys.stderr,
            )
            return 2
        major, minor = torch.cuda.get_device_capability()
        facts |= {
            "GPU": torch.cuda.get_device_name(),
            "architecture": f"{major}{minor}{'a' if major >= 9 else ''}",  # "90a", as LDREG_CUDA_ARCHS has it
            "driver": first_match(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], r"(\S+)"),
            "nvcc": first_match(["nvcc", "--version"], r"release (\S+),"),
            "compute-sanitizer": first_match(["compute-sanitizer", "--version"], r"Version (\S+)"),
        }
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    return 0


def first_match(command: list[str], pattern: str) -> str:
    """The first group of `pattern` in what a command prints."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "not found"
    found = re.search(pattern, text)
    return found.group(1) if found else "unknown"


# ------------------------------------------------------------------------------------------------- tests


def tests() -> int:
    """Print an --ignore for every test file that cannot be imported here, its reason on standard error.

    A missing package is no failure: extras of the trainer, or a library that answers are compared with. Any other
    error while pytest collects is one.
    """
    everywhere = [name for name in ("pytest", "pytest_timeout") if not installed(name)]
    everywhere += missing_packages(TESTS / "conftest.py")
    if everywhere:
        print(f"tests: {', '.join(everywhere)} not installed", file=sys.stderr)
        return 1
    left_out: list[Path] = []
    # Whatever a conftest.py lacks, its whole folder lacks.
    for path in [*sorted(TESTS.rglob("conftest.py")), *sorted(TESTS.rglob("test_*.py"))]:
        if any(folder in left_out for folder in path.parents) or not (missing := missing_packages(path)):
            continue
        left_out.append(path.parent if path.name == "conftest.py" else path)
        name = left_out[-1].relative_to(ROOT)
        print(f"--ignore={name}")
        print(f"{name}: {', '.join(missing)} not installed", file=sys.stderr)
    return 0


def missing_packages(path: Path) -> list[str]:
    """Third-party packages that importing a file needs and this Python lacks; our own modules are followed."""
    missing, seen, queue = set(), set(), [path]
    while queue:
        file = queue.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imports(file):
            ours = own_files(name)
            queue += ours
            top = name.partition(".")[0]
            if not ours and not installed(top):
                missing.add(top)
    return sorted(missing)


def imports(file: Path) -> Iterator[str]:
    """Absolute names of what a file imports at its outermost level; "a.b" and "a.b.c" for `from a.b import c`."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            stem = ".".join([*start, *([node.module] if node.module else [])])
            yield from (stem, *(f"{stem}.{alias.name}" for alias in node.names))


def own_files(name: str) -> list[Path]:
    """The files of this checkout that `import name` runs, packages on the way included."""
    parts = name.split(".")
    stems = [root.joinpath(*parts[: n + 1]) for root in (ROOT, TESTS) for n in range(len(parts))]
    candidates = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")]
    return [file for file in candidates if file.exists()]


def installed(package: str) -> bool:
    """Whether a top-level module can be found."""
    return importlib.util.find_spec(package) is not None


# ------------------------------------------------------------------------------------------------- verdicts


@dataclass(frozen=True)
class Step:
    """What the script wrote down about one step."""

    name: str  # "build", "tests", "bench", or tool and backend: "memcheck-cuda"
    code: int
    seconds: int
    log: str


@dataclass(frozen=True)
class Verdict:
    """passed, FAILED, not finished or nothing run, and a few words."""

    word: str
    note: str = ""


def judge(step: Step) -> Verdict:
    """What a step's exit code and log amount to. A failure seen before the time ran out is one."""
    if step.name == "tests":
        return judge_tests(step)
    if step.name not in ("build", "bench"):
        return judge_workload(step)
    wrong = re.findall(r"^WRONG: (.*)$", step.log, re.M)
    if wrong:
        return Verdict("FAILED", wrong[0])
    if step.code in STOPPED:
        return Verdict("not finished", "stopped at its time limit")
    if step.code:
        return Verdict("FAILED", f"exit code {step.code}")
    return Verdict("passed")


def judge_tests(step: Step) -> Verdict:
    """Every test skipped is not a pass; none collected is a failure, because there are some."""
    ends = re.findall(r"^.*\b(?:passed|failed|skipped|errors?|collected|deselected)\b.* in [\d.]+s.*$", step.log, re.M)
    note = ends[-1].strip("= ") if ends else "no result line"
    count = {word.rstrip("s"): int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", note)}
    if step.code == NOTHING_COLLECTED:
        return Verdict("FAILED", "no test was collected")
    if count.get("failed") or count.get("error"):
        return Verdict("FAILED", note)
    if step.code in STOPPED:
        return Verdict("not finished", f"stopped at its time limit; {note}")
    if step.code:
        return Verdict("FAILED", f"exit code {step.code}; {note}")
    if "collected" not in note and not count.get("passed"):
        return Verdict("nothing run", f"{count.get('skipped', 0)} skipped, 0 run")
    return Verdict("passed", note)


def judge_workload(step: Step) -> Verdict:
    """benchmarks/sanitize.py, alone or under a tool of compute-sanitizer."""
    if "Device not supported" in step.log:
        return Verdict("nothing run", "compute-sanitizer does not support this device")
    errors = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (.*)$", step.log, re.M)
    answers = re.findall(r"^\d+ checked, \d+ wrong$", step.log, re.M)
    seen = re.search(r"^=+ (?:Invalid|Misaligned|Uninitialized|Error: )|: WRONG, ", step.log, re.M)
    note = "; ".join([*answers[-1:], *errors[-1:]]) or f"exit code {step.code}"
    if step.code in STOPPED:
        return Verdict("FAILED" if seen else "not finished", "stopped at its time limit")
    if step.code == 3:
        return Verdict("nothing run", "see below")
    return Verdict("FAILED" if step.code else "passed", note)


# ------------------------------------------------------------------------------------------------- the page


def page(out: Path, work: Path, dry_run: bool) -> int:
    """Write OUT/summary.md, print it, keep every file within its limit; 1 if a step failed."""
    steps = read_steps(work)
    verdicts = {step.name: judge(step) for step in steps}
    failed = [step for step in steps if verdicts[step.name].word == "FAILED"]
    left = not_reached(work, steps, verdicts) + shorten(out)

    if failed:
        outcome = f"FAILED: {', '.join(step.name for step in failed)}"
    elif not any(verdict.word == "passed" for name, verdict in verdicts.items() if name not in ("build", "bench")):
        outcome = "nothing failed, but nothing was checked"
    else:
        outcome = "passed" + (f", but not all was reached ({len(left)} below)" if left else "")
    facts = (work / "machine").read_text().splitlines()
    lines = [f"# GPU gate{', dry run without a GPU' if dry_run else ''}: {outcome}", ""]
    lines += [*(f"- {fact}" for fact in facts), "", "| step | verdict | s | |", "|---|---|---|---|"]
    for step in steps:
        verdict = verdicts[step.name]
        lines.append(f"| {step.name} | {verdict.word} | {step.seconds} | {verdict.note.replace('|', '/')} |")
    if left:
        lines += ["", "## Not reached", "", *(f"- {line}" for line in left)]
    for step in failed[:3]:
        lines += ["", f"## Where {step.name} failed", "", *quoted(step, 20)]
    for step in steps:
        if step.name == "bench" and step not in failed:
            lines += ["", "## Benchmarks", "", *quoted(step, 40)]
    text = "\n".join(lines) + "\n"
    (out / "summary.md").write_text(text)
    print("\n" + text, end="")
    return 1 if failed else 0


def read_steps(work: Path) -> list[Step]:
    """The steps in the order in which they ran."""
    rows = [line.split("\t") for line in (work / "steps").read_text().splitlines()]
    return [
        Step(name, int(code), int(seconds), (work / f"{name}.log").read_text(errors="replace"))
        for name, code, seconds in rows
    ]


def not_reached(work: Path, steps: list[Step], verdicts: dict[str, Verdict]) -> list[str]:
    """What did not run and why: the script's own lines, those of the logs, and pytest's reasons for skipping."""
    lines = (work / "not_reached").read_text().splitlines()
    skipped: Counter[str] = Counter()
    for step in steps:
        verdict = verdicts[step.name]
        if verdict.word == "not finished" or "Device not supported" in step.log:
            lines.append(f"{step.name}: {verdict.note}")
        lines += re.findall(r"^not reached: (.*)$", step.log, re.M)
        for count, reason in re.findall(r"^SKIPPED \[(\d+)\] \S+: (.*)$", step.log, re.M):
            skipped[reason] += int(count)
    lines += [f"{count} skipped: {reason}" for reason, count in skipped.most_common(10)]
    return list(dict.fromkeys(lines))  # two steps may say the same


def quoted(step: Step, count: int) -> list[str]:
    """The last lines of a step's log, as a block of code."""
    return ["```", *(line[:200] for line in step.log.rstrip().splitlines()[-count:]), "```"]


def shorten(out: Path) -> list[str]:
    """Cut what is too large down to its beginning and its end; a page that is, is left out and can be made again."""
    notes = []
    for path in sorted(out.iterdir()):
        if not path.is_file() or (size := path.stat().st_size) <= LARGEST_FILE:
            continue
        if path.suffix != ".log":
            path.unlink()
            notes.append(f"{path.name}: {size} bytes are too many; the benchmarks' report command makes it again")
            continue
        half = LARGEST_FILE // 2 - 100
        with path.open("rb+") as file:
            head = file.read(half)
            file.seek(-half, os.SEEK_END)
            tail = file.read()
            file.seek(0)
            file.truncate()
            file.write(head + f"\n[... {size - 2 * half} bytes left out ...]\n".encode() + tail)
    return notes


def main(arguments: list[str] | None = None) -> int:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description="The Python half of gpu_gate.sh.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments_of in (("machine", ()), ("tests", ()), ("page", ("out", "work"))):
        command = commands.add_parser(name)
        command.add_argument("--dry-run", action="store_true")
        for argument in arguments_of:
            command.add_argument(argument, type=Path)
    options = parser.parse_args(arguments)
    if options.command == "machine":
        return machine(options.dry_run)
    if options.command == "tests":
        return tests()
    return page(options.out, options.work, options.dry_run)


if __name__ == "__main__":
    sys.exit(main())
