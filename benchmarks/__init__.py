"""Benchmarks of ldreg_kernels: `ldreg bench`, or `python -m benchmarks` from the root of a checkout.

    cases.py       what is timed: shapes, dtypes, modes, and the suites they form
    contenders.py  who is timed: this package's backends and every library that can do the same job
    gate.py        is the answer right? Nothing wrong is timed
    harness.py     how long did it take, how many launches, how much memory: inside one process
    worker.py      one process per contender, driven by session.py, which lets them take turns
    roofline.py    what the hardware could do, measured in the same run
    records.py     one row per measurement, append-only
    report.py      tables, plots, the page and the README's numbers, made from those rows
    compare.py     this commit against another
    train_step.py  the regulariser inside a SimCLR step
    bench_*.py     the same through pytest-benchmark

Nothing here is imported by the package, and nothing here is installed with it.
"""
