"""benchmarks/builds.py: what is demanded of two compilers' builds, and what is skipped with its reason."""

import pytest

from benchmarks import builds

ISAS, COMPILERS = ("avx512", "avx2", "portable"), ("g++", "clang++")


def times(**milliseconds):
    """Three rounds of a machine that slows down; 100 ms with avx sets and 300 with portable code, unless told."""
    found = {(isa, compiler): 300.0 if isa == "portable" else 100.0 for isa in ISAS for compiler in COMPILERS}
    found |= {tuple(who.split("_")): time for who, time in milliseconds.items()}
    return {who: [time * drift for drift in (1, 2, 5)] for who, time in found.items()}


def verdicts(turns, missing=()):
    return {clause.demand: clause.met for clause in builds.clauses(turns, missing)}


def test_both_demands_are_judged_for_every_build_and_set():
    assert set(verdicts(times()).values()) == {True}
    slow = {"avx2_g++": 131.0}
    assert [demand for demand, met in verdicts(times(**slow)).items() if not met] == [
        "avx2 by g++ >= 3 times as fast as portable",
        "builds with avx2 within 1.3 times of each other",
    ]
    words = [str(clause) for clause in builds.clauses(times(**slow), ())]
    assert "NOT met: builds with avx2 within 1.3 times of each other: g++ takes 1.31 times the time of clang++" in words


def test_what_is_missing_is_skipped_with_its_reason():
    alone = {who: turns for who, turns in times().items() if who[1] == "g++"}
    assert set(verdicts(alone).values()) == {True, None}
    words = [str(clause) for clause in builds.clauses(alone, ["clang++"])]
    assert "skipped: builds with avx2 within 1.3 times of each other: not found: clang++" in words
    no_avx2 = {who: turns for who, turns in times().items() if who[0] == "portable"}
    assert verdicts(no_avx2)["avx2 by g++ >= 3 times as fast as portable"] is None


def test_the_table_shows_every_set_beside_portable_code():
    shown = builds.table(times(), {"g++": "g++ 12", "clang++": "clang 14"}, "")
    assert shown.header[1:] == ("g++ 12, ms (portable / this)", "clang 14, ms (portable / this)")
    assert shown.rows[1] == ("avx2", "200 (3.0x)", "200 (3.0x)")


def test_without_any_compiler_nothing_is_measured(capsys):
    assert builds.main(["--compiler", "no-such-compiler"]) == 1
    assert capsys.readouterr().out == "not found: no-such-compiler\n"
    with pytest.raises(SystemExit):
        builds.main(["--rounds", "0"])
