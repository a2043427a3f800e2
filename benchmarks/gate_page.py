"""The page of gpu_gate.sh: what every step came to, where one hung, what was not reached.

    python -m benchmarks.gate_page OUT WORK [--dry-run] [--running STEP]   OUT/summary.md; exit code 1 if a step failed

The script calls it before every step as well, so that whoever kills it is left with what was known by then. WORK is the
script's folder: `machine`, `not_reached` and `steps`, a line each with what `Step` holds. Nothing is run here.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LARGEST_FILE = 16_000_000
INTERRUPTED, KILLED = 124, 137  # by `timeout`: at its limit; and because it did not listen to that
NOTHING_COLLECTED, NOTHING_TO_RUN, FOUND_BY_SANITIZER = 5, 3, 99  # exit codes: pytest, sanitize.py, compute-sanitizer
SLOWEST_TEST = {"tests-cuda": 40.0}  # seconds: torch.compile is in two of these, nothing else is compiled
PROGRESS = "progress.log"  # of gpu_pytest.py; the script adds a line "step", with its name and the time limit of a test


@dataclass(frozen=True)
class Step:
    """What the script wrote down about one step, in this order; its output is a part of a log in OUT."""

    name: str  # "build", or what and of which backend: "tests-cuda", "memcheck-triton"
    code: int
    seconds: int
    log: str
    running: tuple[tuple[str, float], ...] = ()  # tests begun and not ended, and the seconds they had
    lost: tuple[tuple[str, str], ...] = ()  # tests after which the device was lost for their process, and its error
    longest: float = math.inf  # seconds a test may take

    @property
    def kind(self) -> str:
        """The name without its backend."""
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class Verdict:
    """passed, FAILED, findings, not finished or nothing run, and a few words."""

    word: str
    note: str = ""


# ------------------------------------------------------------------------------------------------- verdicts


def judge(step: Step) -> Verdict:
    """What a step's exit code and log amount to. A hang is a failure, and so is one seen before the time ran out."""
    if step.kind in ("build", "install"):
        return judge_build(step)
    if step.code == KILLED:
        place = where(step)
        return Verdict("FAILED", "hung in a CUDA call" + (f": {place}" if place else ""))
    if step.kind == "tests":
        return judge_tests(step)
    if step.kind in ("answers", "memcheck", "racecheck", "initcheck"):
        return judge_workload(step)
    if step.kind == "profile":
        return judge_profile(step)
    wrong = re.findall(r"^WRONG: (.*)$", step.log, re.M)
    if wrong:
        return Verdict("FAILED", wrong[0])
    measured = len(re.findall(r"^.* \d+(?:\.\d+)? [mu]s\b", step.log, re.M))
    if step.code == INTERRUPTED:
        return Verdict("not finished" if measured else "FAILED", f"stopped at its time limit; {measured} times taken")
    if step.code:
        return Verdict("FAILED", f"exit code {step.code}")
    return Verdict("passed" if measured else "nothing run", f"{measured} times taken")


def judge_build(step: Step) -> Verdict:
    """Modules of a bundle that cannot be loaded are no failure: the build that follows may be."""
    if step.code == 0:
        return Verdict("passed")
    if step.kind == "install":
        return Verdict("nothing run", "what is in the bundle cannot be loaded here")
    stopped = step.code in (INTERRUPTED, KILLED)
    return Verdict("FAILED", "stopped at its time limit" if stopped else f"exit code {step.code}")


def judge_tests(step: Step) -> Verdict:
    """Every test skipped is not a pass; none collected is a failure, because there are some."""
    ends = re.findall(r"^.*\b(?:passed|failed|skipped|errors?|collected|deselected)\b.* in [\d.]+s.*$", step.log, re.M)
    note = ends[-1].strip("= ") if ends else "no result line"
    count = {word.rstrip("s"): int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", note)}
    if step.code == NOTHING_COLLECTED:
        return Verdict("FAILED", "no test was collected")
    if count.get("failed") or count.get("error"):
        return Verdict("FAILED", note)
    if step.code == INTERRUPTED:
        longest = min(step.longest, SLOWEST_TEST.get(step.name, math.inf))
        hung = [test for test, seconds in step.running if seconds > longest]
        if hung:  # its process did not listen to the time limit of a test either, or had not come to it
            return Verdict("FAILED", f"hung, or far too slow: {', '.join(hung)}")
        return Verdict("not finished" if ends else "FAILED", f"stopped at its time limit; {note}")
    if step.code:
        return Verdict("FAILED", f"exit code {step.code}; {note}")
    if "collected" not in note and not count.get("passed"):
        return Verdict("nothing run", f"{count.get('skipped', 0)} skipped, 0 run")
    return Verdict("passed", note)


def judge_workload(step: Step) -> Verdict:
    """benchmarks/sanitize.py, alone or under a tool of compute-sanitizer.

    Of what racecheck says not everything is a race: warps that hand over through an mbarrier alone look like one to it.
    So its findings are to be read, and fail nothing.
    """
    if "Device not supported" in step.log:
        return Verdict("nothing run", "compute-sanitizer does not support this device")
    wrong = re.search(r": WRONG, ", step.log)
    seen = re.search(r"^=+ (?:Invalid|Misaligned|Uninitialized|Error: )", step.log, re.M)
    errors = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (.*)$", step.log, re.M)
    answers = re.findall(r"^\d+ checked, \d+ wrong$", step.log, re.M)
    note = "; ".join([*answers[-1:], *errors[-1:]]) or f"exit code {step.code}"
    if step.kind == "racecheck" and not wrong and (seen or step.code == FOUND_BY_SANITIZER):
        return Verdict("findings", f"to be read; {note}")
    if step.code == INTERRUPTED:
        right = len(re.findall(r": ok, ", step.log))
        word = "FAILED" if wrong or seen or not right else "not finished"
        return Verdict(word, f"stopped at its time limit; {right} right, then in {where(step) or 'none'}")
    if step.code == NOTHING_TO_RUN:
        return Verdict("nothing run", "see below")
    if step.code and not answers and (place := where(step)):
        note += f", in {place}"
    return Verdict("FAILED" if step.code else "passed", note)


def judge_profile(step: Step) -> Verdict:
    """A profiler that cannot read the counters of this machine is no failure of ours."""
    if step.code == 0:
        return Verdict("passed")
    refused = re.findall(r"^==ERROR== (.*)$", step.log, re.M)
    if refused:
        return Verdict("nothing run", f"ncu: {refused[0]}")
    if step.code == INTERRUPTED:
        return Verdict("not finished", "stopped at its time limit")
    return Verdict("FAILED", f"exit code {step.code}")


def where(step: Step) -> str:
    """What was running: tests by name, a shape of sanitize.py, or the last line."""
    if step.kind == "tests":
        return ", ".join(f"{test} ({seconds:.0f} s)" for test, seconds in step.running)
    if step.kind in ("answers", "memcheck", "racecheck", "initcheck"):
        begun = re.findall(r"^(?:cuda|triton|cpu|reference): (?!.*: (?:ok|WRONG), )(.*?): *$", step.log, re.M)
        return begun[-1] if begun else ""
    return next((line.strip()[:120] for line in reversed(step.log.splitlines()) if line.strip()), "")


# ------------------------------------------------------------------------------------------------- the page


def page(out: Path, work: Path, dry_run: bool, running: str = "") -> int:
    """Write OUT/summary.md; 1 if a step failed. At the end print it, and keep every file within its limit."""
    steps = read_steps(out, work)
    verdicts = {step.name: judge(step) for step in steps}
    failed = [step for step in steps if verdicts[step.name].word == "FAILED"]
    left = not_reached(work, steps, verdicts) + ([] if running else shorten(out))

    checked = any(
        verdicts[step.name].word in ("passed", "findings")
        and step.kind not in ("build", "install", "timing", "profile", "host", "bench")
        for step in steps
    )
    if failed:
        outcome = f"FAILED: {', '.join(step.name for step in failed)}"
    elif not checked:
        outcome = "nothing failed, but nothing was checked"
    else:
        outcome = "passed" + (f", but not all was reached ({len(left)} below)" if left else "")
    if running:
        outcome = f"NOT AT ITS END, {running} was running" + (f"; {outcome}" if failed else "")
    facts = (work / "machine").read_text().splitlines()
    lines = [f"# GPU gate{', dry run without a GPU' if dry_run else ''}: {outcome}", ""]
    lines += [*(f"- {fact}" for fact in facts), *rows_of(out), "", "| step | verdict | s | |", "|---|---|---|---|"]
    for step in steps:
        verdict = verdicts[step.name]
        lines.append(f"| {step.name} | {verdict.word} | {step.seconds} | {verdict.note.replace('|', '/')} |")
    if left:
        lines += ["", "## Not reached", "", *(f"- {line}" for line in left)]
    lines += [line for step in steps for line in not_back(step)]
    for step in failed[:4]:
        lines += ["", f"## Where {step.name} failed", "", *quoted(step, 20)]
    for step in steps:
        if verdicts[step.name].word == "findings":
            lines += ["", f"## What {step.name} found", "", *quoted(step, 30)]
        elif step.kind in ("timing", "profile", "host", "bench") and step not in failed:
            lines += ["", f"## {step.name}", "", *quoted(step, 40)]
    text = "\n".join(lines) + "\n"
    (out / "summary.md").write_text(text)
    if not running:
        print("\n" + text, end="")
    return 1 if failed else 0


def read_steps(out: Path, work: Path) -> list[Step]:
    """The steps in the order in which they ran."""
    steps, tests = [], progress(out)
    for line in (work / "steps").read_text().splitlines():
        name, code, seconds, section, begin, end, started = line.split("\t")
        log = (out / f"{section}.log").read_bytes()[int(begin) : int(end)].decode(errors="replace")
        longest, events = tests.get(name, (math.inf, []))
        ended = int(started) + int(seconds)
        begun = {words[0]: float(when) for event, when, *words in events if event == "started"}
        for event, _, *words in events:
            if event != "started":
                begun.pop(words[0], None)
        running = tuple((test, max(0.0, ended - when)) for test, when in begun.items())
        lost = tuple((words[0], words[1]) for event, _, *words in events if event == "lost")
        steps.append(Step(name, int(code), int(seconds), log, running, lost, longest))
    return steps


def progress(out: Path) -> dict[str, tuple[float, list[tuple[str, ...]]]]:
    """Of every step that ran tests: the time limit of one, and (event, time, test, perhaps an error)."""
    found: dict[str, tuple[float, list[tuple[str, ...]]]] = {}
    events: list[tuple[str, ...]] = []
    path = out / PROGRESS
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        event, _, *rest = line.split("\t")
        if event == "step":
            events = []
            found[rest[0]] = (float(rest[1]), events)
        else:
            events.append((event, *rest))
    return found


def rows_of(out: Path) -> list[str]:
    """Where the measurements belong, if there are any."""
    path = out / "measurements.csv"
    rows = len(path.read_text().splitlines()) - 1 if path.exists() else 0
    if rows < 1:
        return []
    into = "benchmarks/results/measurements.csv"
    return [f"- measurements: {rows} rows, to be kept with `tail -n +2 {path.name} >>{into}` and committed"]


def not_reached(work: Path, steps: list[Step], verdicts: dict[str, Verdict]) -> list[str]:
    """What did not run and why: the script's own lines, those of the logs, and pytest's reasons for skipping."""
    lines = (work / "not_reached").read_text().splitlines()
    skipped: Counter[str] = Counter()
    for step in steps:
        verdict = verdicts[step.name]
        if verdict.word == "not finished" or "Device not supported" in step.log or "ncu" in verdict.note:
            lines.append(f"{step.name}: {verdict.note}")
        lines += re.findall(r"^not reached: (.*)$", step.log, re.M)
        for count, reason in re.findall(r"^SKIPPED \[(\d+)\] \S+: (.*)$", step.log, re.M):
            skipped[reason] += int(count)
    lines += [f"{count} skipped: {reason}" for reason, count in skipped.most_common(10)]
    return list(dict.fromkeys(lines))  # two steps may say the same


def not_back(step: Step) -> Iterator[str]:
    """Tests that ended their process, or had not ended when it was ended."""
    crashed = re.findall(r"^worker '\w+' crashed while running '(.*)'$", step.log, re.M)
    words = {test: f"running for {seconds:.0f} s when all was stopped" for test, seconds in step.running}
    words |= dict.fromkeys(crashed, "its process was ended: at the time limit of a test, or by a crash")
    words |= {test: f"the device was lost: {error}" for test, error in step.lost}
    if words:
        yield from ("", f"## Tests of {step.name} that did not come back", "")
        yield from (f"- {test}: {what}" for test, what in list(words.items())[:30])


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_page", description="The page of gpu_gate.sh.")
    parser.add_argument("out", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--running", default="", metavar="STEP")
    options = parser.parse_args(arguments)
    return page(options.out, options.work, options.dry_run, options.running)


if __name__ == "__main__":
    sys.exit(main())
